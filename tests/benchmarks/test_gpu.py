from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu
from dreamfleet.agents import load
from dreamfleet.core.config import apply
from dreamfleet.core.types import EnvSpec


@pytest.fixture
def options(tmp_path):
    return gpu.Options("cpu", True, tmp_path, "", {}, ())


def test_a_rehearsal_measures_updates_and_dreams_and_a_second_call_measures_nothing(
    options, capsys
):
    gpu.run(["dreamwalker"], options)
    (path,) = options.out.iterdir()
    assert path.name == "gpu-dreamwalker.json"
    found = json.loads(path.read_text())
    (case,) = found["cases"].values()
    assert case.keys() == {"act", "world", "dream", "policy", "together"}
    assert all(part["eager"]["ms"] > 0 for part in case.values())
    parts = [case[part]["eager"]["operations"] for part in ("world", "dream", "policy")]
    assert all(count > 50 for count in parts)
    assert case["together"]["eager"]["operations"] == sum(parts)
    written = path.stat().st_mtime_ns
    gpu.run(["dreamwalker"], options)
    assert path.stat().st_mtime_ns == written
    assert "measured before" in capsys.readouterr().out


def test_barlow_dreamer_is_measured_with_the_preset_of_atari_100k(options):
    cases = gpu.cases("barlow-dreamer", replace(options, tiny=False, settings={"lr": 1e-4}))
    spec, settings = cases["preset"]
    assert spec.obs.shape == (64, 64, 3) and spec.action.n == 18
    config = apply(load("barlow-dreamer").Config(), settings)
    assert (config.size, config.batch, config.window, config.dream_horizon) == ("12M", 16, 64, 15)
    assert (config.precision, config.halving, config.lr) == ("bfloat16", "max-pool", 1e-4)
    changed = {
        case: {k: v for k, v in more.items() if settings.get(k) != v}
        for case, (_, more) in cases.items()
    }
    assert changed == {
        "preset": {},
        "compiled": {"compile": True},
        "reconstruction": {"objective": "reconstruction"},
        "25M": {"size": "25M"},
    }


def test_a_rehearsal_measures_barlow_dreamer(options):
    gpu.run(["barlow-dreamer"], options)
    (path,) = options.out.iterdir()
    cases = json.loads(path.read_text())["cases"]
    assert cases.keys() == {"preset", "reconstruction"}
    assert all(case["together"]["eager"]["operations"] > 1000 for case in cases.values())


def test_views_and_new_memory_launch_no_kernel():
    x = torch.ones(4, 6)
    with gpu.Operations() as operations:
        x.T.reshape(24)[1:].detach()  # a transposed tensor is copied
        torch.empty(3)
        x.add_(1).sum()
    assert operations.count == 3


def test_a_row_that_fails_is_reported_and_tried_again(options, capsys):
    for _ in range(2):
        gpu.run(["no-such-agent"], options)
    assert capsys.readouterr().out.count("no-such-agent: failed: UserError") == 2
    assert not list(options.out.iterdir())


def test_an_agent_that_never_captures_calls_the_same_code():
    agent_class = load("dreamwalker")
    spec = EnvSpec("Any-v0", gpu.OBSERVATIONS["vector"], gpu.ACTIONS["continuous"])
    agent = agent_class(agent_class.Config(), spec, 0, "cpu")
    gpu.never_capture(agent)
    assert {"respond", "update_world", "roll_out", "update_policy"} <= vars(agent).keys()
    assert agent.update_world.func is agent_class.update_world.__wrapped__


def test_the_last_10000_frames_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    events = [
        {"kind": "episode", "env_steps": 7_400, "return": 100.0},
        {"kind": "episode", "env_steps": 7_600, "return": 1.0},
        {"kind": "episode", "env_steps": 9_900, "return": 3.0},
        {"kind": "eval", "env_steps": 10_000, "return_mean": 50.0},
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert gpu.last_returns(path) == {"mean": 2.0, "episodes": 2}


@pytest.mark.parametrize(
    ("text", "expected"), [("size=12M", "12M"), ("units=256", 256), ("dense=false", False)]
)
def test_settings_are_json_or_text(text, expected):
    assert gpu.setting(text)[1] == expected
