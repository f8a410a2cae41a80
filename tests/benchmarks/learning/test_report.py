"""Tests the tables and plots of learning curves."""

import json

import pytest

from benchmarks.learning.curves import write_record
from benchmarks.learning.report import report
from tests.benchmarks.learning.test_curves import evaluation


def write_records(out, name, *seeds, agent="dreamer-lite", final=None):
    """Writes a record (the file of a training run) for each seed of the method `name`.

    seeds: the mean returns of the evaluations of each seed. final: the evaluation after training.
    """
    for seed, returns in enumerate(seeds):
        evaluations = [
            evaluation(500 * (i + 1), mean, 10.0 * (i + 1)) for i, mean in enumerate(returns)
        ]
        about = {
            "seed": seed,
            "agent": agent,
            "command": f"python launch.py --agent {agent} --seed 0",
        }
        write_record(about, evaluations, out / name / f"seed-{seed}.jsonl", final)


def test_methods_are_compared_with_ours_and_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    write_records(tmp_path, "sb3-dqn", [20.0] * 9 + [480.0], [20.0] * 10)
    write_records(tmp_path, "dreamer-lite", [480.0, 500.0], [20.0, 490.0])
    lines = report("CartPole-v1", tmp_path).splitlines()
    assert lines[2:4] == [
        "| CartPole-v1 | dreamer-lite | 2 | 495.0 (490.0 to 500.0) | 1,000 | 0.3 |",
        "| CartPole-v1 | sb3-dqn | 2 | 250.0 (20.0 to 480.0) | 5,000 | 1.7 |",
    ]
    late = "> 5,000 (5,000 to > 5,000)"
    assert lines[-2:] == [
        "| CartPole-v1 | dreamer-lite | 475 | 750 (500 to 1,000) | 1× | 2/2 | 100% | 2/2 |",
        f"| CartPole-v1 | sb3-dqn | 475 | {late} | – | 1/2 | – | 1/2 |",
    ]
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert [row["steps"] for row in figures] == [[500, 1000], [5000, None]]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_episodes_are_reported_if_the_task_asks_for_them(tmp_path):
    pytest.importorskip("matplotlib")
    episodes = [{"kind": "episode", "env_steps": 900 * n, "return": 90.0 * n} for n in range(1, 6)]
    path = tmp_path / "dreamwalker" / "seed-0.jsonl"
    write_record({"agent": "dreamwalker"}, [*episodes, evaluation(5000, 305.0)], path)
    assert report("BipedalWalker-v3", tmp_path).splitlines()[-1] == (
        "| BipedalWalker-v3 | dreamwalker | 300 | 4 | 3,600 | > 5,000 | 0/1 | – |"
    )


def test_a_baseline_without_a_method_of_ours_is_not_compared(tmp_path):
    pytest.importorskip("matplotlib")
    write_records(tmp_path, "sb3-sac", [-1500.0, -190.0])
    assert "| sb3-sac | -200 | 1,000 | – | 1/1 |" in report("Pendulum-v1", tmp_path)
