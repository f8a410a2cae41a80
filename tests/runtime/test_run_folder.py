from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.run_folder import RunFolder, check_new, latest, read_config, versions

CONFIG = RunConfig(
    env="pkg.mod:My/Env-v0", train=TrainConfig(chunk=3), agent_options={"net.units": (8, 8)}
)


def test_a_default_folder_is_named_after_the_run(tmp_path):
    with RunFolder.create(CONFIG, tmp_path) as folder:
        assert folder.path.parent == tmp_path
        assert folder.path.name.endswith("_dreamer-lite_pkg.mod-My-Env-v0_s0")
        assert folder.config.run_dir == str(folder.path)


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    with RunFolder.create(CONFIG, tmp_path) as one, RunFolder.create(CONFIG, tmp_path) as two:
        assert one.path != two.path


def test_the_config_reads_back_as_it_was_written(tmp_path):
    with RunFolder.create(replace(CONFIG, run_dir=str(tmp_path / "a" / "b"))) as folder:
        pass
    found = read_config(folder.path)
    assert found.train == CONFIG.train
    assert found.agent_options == {"net.units": [8, 8]}
    assert replace(found, agent_options={}) == replace(folder.config, agent_options={})


def test_versions_are_those_installed_and_nothing_is_imported():
    code = (
        "import json, sys; from dreamfleet.runtime.run_folder import versions; found = versions()\n"
        "assert not {'torch', 'ray', 'gymnasium'} & set(sys.modules)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found == versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["ray"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: (path.mkdir(), (path / "x").touch()), "exists and is not empty"),
        (lambda path: path.touch(), "is a file"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused(tmp_path, make, said):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        RunFolder.create(RunConfig(run_dir=str(tmp_path / "run")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_where_nothing_can_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write in"):
        check_new(tmp_path / "run")


def test_an_empty_folder_will_do(tmp_path):
    check_new(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_actor: 3", r"unknown setting num_actor\. Nearest: num_actors\."),
        ("steps: many", "steps must be a whole number; found 'many'"),
        ("train:\n\tchunk: 3", "is not YAML"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("x: !!python/object/apply:os.system [exit]", "is not YAML"),
    ],
)
def test_a_broken_config_is_named_with_its_file(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_a_live_run_is_held_even_against_another_process(tmp_path):
    path = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from dreamfleet.core.errors import UserError\n"
        "from dreamfleet.runtime.run_folder import RunFolder, read_config\n"
        "path = Path(sys.argv[1])\n"
        "try: RunFolder.reopen(path, read_config(path))\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with RunFolder.create(RunConfig(run_dir=str(path))):
        held = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"is live: process {os.getpid()} holds it" in held.stdout
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert free.stdout == ""


def test_reopening_changes_nothing_until_recorded(tmp_path):
    with RunFolder.create(RunConfig(run_dir=str(tmp_path / "run"))) as folder:
        pass
    file = folder.path / "config.yaml"
    before = file.read_bytes()
    with RunFolder.reopen(folder.path, RunConfig(steps=77), command="again") as again:
        assert file.read_bytes() == before
        again.record()
    assert read_config(folder.path).steps == 77
    assert file.read_bytes().startswith(before)
    first, second = yaml.safe_load(file.read_text())["history"]
    assert "changed" not in first
    assert second["changed"] == {"steps": 77}
    assert second["command"] == "again"
    assert second["versions"] == versions()


def test_latest_is_the_run_last_written_to(tmp_path):
    folders = [RunFolder.create(RunConfig(seed=s), tmp_path) for s in range(3)]
    for folder, when in zip(folders, (10, 30, 20), strict=True):
        os.utime(folder.path / "config.yaml", (when, when))
        checkpoint.save(folder.checkpoints, 1, {}, agent="dreamer-lite", env="CartPole-v1")
        folder.close()
    assert latest(tmp_path) == folders[1].path
    folders[2].metrics.touch()
    assert latest(tmp_path) == folders[2].path
