"""Tests the comparison of two checkouts (copies of this repository) on small run folders."""

import json
import shutil
import sys

import numpy as np
import pytest

from benchmarks.checkouts import before_after, short_runs

EVENTS = (
    {"kind": "learn", "env_steps": 8, "loss/critic": 0.5, "loss/actor": -1.0, "wall_s": 1.0},
    {"kind": "run", "env_steps": 9, "wait/learner": 0.25, "wall_s": 2.0},
    {"kind": "eval", "env_steps": 9, "at": 9, "return_mean": 7.0, "took_s": 0.1, "wall_s": 3.0},
)
ARRAYS = {"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(3), "steps": np.array(9)}


def write_run(folder, name="lite-cartpole", events=EVENTS, arrays=ARRAYS, commit="abc"):
    """Writes the run folder `folder / name` with one checkpoint, and returns its path.

    events: the content of `metrics.jsonl`. arrays: the content of the checkpoint. commit: the git
    commit in `versions.json`.
    """
    run = folder / name
    checkpoint = run / "checkpoints" / "ckpt-000000000009.000"
    checkpoint.mkdir(parents=True)
    np.savez(checkpoint / "arrays.npz", **arrays)
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    versions = {"git": commit, "python": "3.11", "torch": "2.13"}
    (run / "versions.json").write_text(json.dumps(versions))
    return run


def renamed(event):
    """Returns the event with different names of metrics, and with different times."""
    times = {name: 9.0 for name in event if name.endswith("_s") or name.startswith("wait/")}
    event = {**event, **times}
    return {name.replace("loss/", "losses/"): value for name, value in event.items()}


def test_names_and_times_may_differ(tmp_path):
    write_run(tmp_path / "old")
    arrays = {"w": ARRAYS["weight"], "a": ARRAYS["steps"], "b": ARRAYS["bias"]}
    write_run(tmp_path / "new", events=map(renamed, EVENTS), arrays=arrays, commit="def")
    found = short_runs.compare(tmp_path / "old", tmp_path / "new")
    run = found["runs"]["lite-cartpole"]
    assert found["same"] and run["same"]
    assert (run["arrays"], run["events"]) == (3, 2)
    assert (run["old"]["git"], run["new"]["git"]) == ("abc", "def")
    assert run["command"].startswith("python launch.py --local --num-actors 1 --seed 5 --env")


@pytest.mark.parametrize(
    "arrays",
    [
        {**ARRAYS, "bias": np.array([0.0, 0.0, 1e-9])},
        {**ARRAYS, "bias": np.zeros(3, np.float32)},
        {**ARRAYS, "weight": ARRAYS["weight"].reshape(3, 2)},
        {**ARRAYS, "copy": ARRAYS["bias"]},
        {name: ARRAYS[name] for name in ("weight", "bias")},
    ],
    ids=["value", "data type", "shape", "one more", "one less"],
)
def test_a_different_array_is_found(tmp_path, arrays):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", arrays=arrays)
    found = short_runs.compare_run(old, new)
    assert (found["arrays_differ"], found["events_differ"], found["same"]) == (1, 0, False)


@pytest.mark.parametrize(
    "events",
    [
        (*EVENTS[:2], {**EVENTS[2], "return_mean": 7.0000001}),
        (*EVENTS[:2], {**EVENTS[2], "at": 10}),
        (*EVENTS, {"kind": "episode", "env_steps": 10, "return": 1.0}),
        EVENTS[:2],
    ],
    ids=["value", "step", "one more", "one less"],
)
def test_a_different_event_is_found(tmp_path, events):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", events=events)
    found = short_runs.compare_run(old, new)
    assert (found["arrays_differ"], found["events_differ"], found["same"]) == (0, 1, False)


def test_only_the_last_checkpoint_counts(tmp_path):
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new")
    shutil.copytree(new / "checkpoints/ckpt-000000000009.000", new / "checkpoints/ckpt-1.000")
    np.savez(new / "checkpoints/ckpt-000000000009.000/arrays.npz", other=np.ones(1))
    assert short_runs.compare_run(old, new)["same"]


def test_both_folders_must_have_the_same_runs(tmp_path):
    write_run(tmp_path / "old")
    write_run(tmp_path / "new", "lite-pendulum")
    with pytest.raises(SystemExit, match=r"has the runs \['lite-cartpole'\]"):
        short_runs.compare(tmp_path / "old", tmp_path / "new")
    with pytest.raises(SystemExit, match=r"has the runs \[\]"):
        short_runs.compare(tmp_path, tmp_path)


def same(monkeypatch, *paths):
    """Runs the command `before_after.py same` with the arguments `paths`."""
    monkeypatch.setattr(sys, "argv", ["before_after.py", "same", *map(str, paths)])
    before_after.main()


def test_the_command_writes_a_record_and_fails_for_a_difference(tmp_path, monkeypatch, capsys):
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "same.json"
    write_run(old)
    write_run(new, arrays={**ARRAYS, "bias": np.ones(3)})
    same(monkeypatch, old, old, "--out", out)
    assert json.loads(out.read_text())["same"]
    with pytest.raises(SystemExit, match="1"):
        same(monkeypatch, old, new, "--out", out)
    assert not json.loads(out.read_text())["same"]
    assert "| lite-cartpole | 3 | 1 | 2 | 0 | no |" in capsys.readouterr().out


def test_every_agent_has_a_short_run_with_a_valid_command():
    from dreamfleet import agents, cli

    configs = [
        cli.configured([*short_runs.COMMON, *flags]).config for flags in short_runs.RUNS.values()
    ]
    assert {config.agent for config in configs} == set(agents.REGISTRY)
    assert all(config.local and config.seed == 5 for config in configs)


def test_learning_is_compared_over_seeds():
    def runs(*returns):
        return {
            f"cartpole-{seed}": {
                "evaluations": [[500, 0.0], [1000, mean]],
                "score": {"return_mean": mean},
            }
            for seed, mean in enumerate(returns)
        }

    found = before_after.row("cartpole", runs(100.0, 200.0), runs(120.0, 260.0))
    assert found == [
        "cartpole, 2 seeds",
        "75.0 (50.0 to 100.0)",
        "95.0 (60.0 to 130.0)",
        "+20.0 ± 10.0",
        "150.0 (100.0 to 200.0)",
        "190.0 (120.0 to 260.0)",
        "+40.0 ± 20.0",
    ]
