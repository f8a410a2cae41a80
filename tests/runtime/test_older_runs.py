"""Tests that a run of dreamfleet 0.2.0 or older is refused with a message of one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import dreamfleet
from dreamfleet import cli
from dreamfleet.core import checkpoint
from dreamfleet.core.errors import UserError
from dreamfleet.core.version import VERSION
from dreamfleet.runtime.run_folder import versions

LINE = (
    r"was made by dreamfleet 0\.2\.0 or an older version, in which settings and networks have "
    rf"other names; dreamfleet {VERSION} cannot read it\. Use dreamfleet 0\.2\.0 for it, or train "
    r"it again\.$"
)


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run as dreamfleet 0.2.0 wrote it. It has a setting that 0.3.0 renamed."""
    config = {
        "agent": "gated-rainbow",
        "env": "CartPole-v1",
        "steps": 500,
        "agent_options": {"share": 0.3},
        "history": [{"time": "2026-01-01T00:00:00+0000", "command": "launch.py"}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    made_with = {"python": "3.11.7", "git": None, "torch": "2.13.0"}
    (tmp_path / "versions.json").write_text(json.dumps(made_with))
    event = {"kind": "eval", "env_steps": 200, "return_mean": 12.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    for folder in ("checkpoints", "best"):
        saved = tmp_path / folder / "ckpt-000000000200.000"
        saved.mkdir(parents=True)
        np.savez(saved / "arrays.npz", a0=np.zeros(3))
        about = {"format": "dreamfleet-checkpoint", "version": 2, "agent": "gated-rainbow"}
        about |= {"env": "CartPole-v1", "env_steps": 200, "sha256": "", "state": {}}
        (saved / "manifest.json").write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize("command", [["eval"], ["--local", "--steps", "900", "--resume"]])
def test_commands_refuse_it_in_one_line(run, capsys, command):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert cli.main([*command, str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(UserError, match=f"run {run} {LINE}"):
        raise UserError(line.strip())
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.mark.parametrize("which", ["latest", "best"])
def test_loading_its_policy_is_refused(run, which):
    with pytest.raises(UserError, match=f"run {run} {LINE}"):
        dreamfleet.load(run, which)


def test_one_of_its_checkpoints_is_refused_wherever_it_lies(run):
    path = run / "checkpoints" / "ckpt-000000000200.000"
    with pytest.raises(UserError, match=f"checkpoint {path} {LINE}"):
        checkpoint.load(path)
    with pytest.raises(UserError, match=f"checkpoint {path} {LINE}"):
        checkpoint.read_newest(path.parent)


def test_its_metrics_can_still_be_read(run):
    assert [event["return_mean"] for event in dreamfleet.Run(run).metrics("eval")] == [12.0]


def test_a_run_records_the_version_that_made_it():
    assert versions()["dreamfleet"] == VERSION
