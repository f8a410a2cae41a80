"""The table and the plot that curves come to."""

import json

import pytest

from benchmarks.learning.curves import keep
from benchmarks.learning.report import mean_and_range, report, spread
from tests.benchmarks.learning.test_curves import look


def method(out, name, *seeds, agent="dreamer-lite", final=None):
    for seed, returns in enumerate(seeds):
        looks = [look(500 * (i + 1), mean, 10.0 * (i + 1)) for i, mean in enumerate(returns)]
        about = {
            "seed": seed,
            "agent": agent,
            "command": f"python launch.py --agent {agent} --seed 0",
        }
        keep(about, looks, out / name / f"seed-{seed}.jsonl", final)


def test_methods_are_compared_with_ours_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    method(tmp_path, "sb3-dqn", [20.0] * 9 + [480.0], [20.0] * 10)
    method(tmp_path, "dreamer-lite", [480.0, 500.0], [20.0, 490.0])
    lines = report("CartPole-v1", tmp_path).splitlines()
    ours = "| dreamer-lite | ≥ 475 | 750 (500 to 1,000) | 1 | 2/2 | 750 (500 to 1,000) | 2/2 |"
    late = "> 5,000 (5,000 to > 5,000)"
    assert ours in lines[2]
    assert f"| sb3-dqn | ≥ 475 | {late} | – | 1/2 | {late} | 1/2 |" in lines[3]
    figures = json.loads((tmp_path / "summary.json").read_text())["figures"]
    assert [row["steps"] for row in figures] == [[500, 1000], [5000, None]]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_episodes_are_reported_where_they_matter(tmp_path):
    pytest.importorskip("matplotlib")
    ends = [{"kind": "episode", "env_steps": 900 * n, "return": 90.0 * n} for n in range(1, 6)]
    keep(
        {"agent": "dreamwalker"}, [*ends, look(5000, 305.0)], tmp_path / "dreamwalker/seed-0.jsonl"
    )
    assert report("BipedalWalker-v3", tmp_path).splitlines()[-1] == (
        "| dreamwalker | ≥ 300 | 4 | 3,600 | > 5,000 | 0/1 | – |"
    )


def test_peers_alone_are_not_compared(tmp_path):
    pytest.importorskip("matplotlib")
    method(tmp_path, "sb3-sac", [-1500.0, -190.0])
    assert "| sb3-sac | ≥ -200 | 1,000 | – | 1/1 |" in report("Pendulum-v1", tmp_path)


def test_a_spread_is_the_median_between_the_extremes():
    assert spread([3000.0, 1000.0, 1500.0]) == "1,500 (1,000 to 3,000)"
    assert spread([2.0, 2.0], ".1f") == "2.0"
    assert spread([None, None], beyond=50_000) == "> 50,000"


def test_a_mean_stands_before_the_extremes():
    assert mean_and_range([1.0, 2.0, 6.0], ".1f") == "3.0 (1.0 to 6.0)"
    assert mean_and_range([-1.0, 1.5], "+.1f") == "+0.2 (-1.0 to +1.5)"
