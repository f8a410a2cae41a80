"""When a curve was good enough, on curves small enough to see."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning.curves import (
    EPISODES_KEPT,
    Curve,
    by_kind,
    in_training,
    keep,
    median,
    ratio,
    read_curve,
    read_events,
    summarise,
)


def curve(*returns, every=500, wall_s=100.0, looking_s=20.0):
    steps = every * np.arange(1, len(returns) + 1)
    return Curve(steps, np.array(returns, float), wall_s, looking_s)


def look(env_steps, mean, wall_s=1.0):
    figures = {"return_mean": mean, "return_std": 0.0, "return_min": mean, "episodes": 100}
    return {"kind": "eval", "env_steps": env_steps, **figures, "wall_s": wall_s, "took_s": 0.25}


def write(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_the_first_look_at_the_threshold_counts_and_those_after_it_show_whether_it_lasts():
    found = curve(20, 475, 474, 500, 500)
    assert found.reached(475) == 1000
    assert found.stays(475) == pytest.approx(2 / 3)


def test_it_is_good_for_good_from_the_look_after_the_last_bad_one():
    assert curve(20, 475, 474, 500, 500).settled(475) == 2000
    assert curve(500, 500).settled(475) == 500
    assert curve(500, 20).settled(475) is None


def test_a_curve_that_never_gets_there_says_so():
    assert curve(20, 30).reached(475) is None
    assert curve(20, 30).stays(475) is None


def test_nothing_is_known_of_what_comes_after_the_last_look():
    assert curve(20, 500).reached(475) == 1000
    assert curve(20, 500).stays(475) is None


def test_figures_are_over_all_seeds():
    found = summarise([curve(500, 500), curve(20, 500), curve(20, 500, 100, 30)], 475)
    assert found["steps"] == [500, 1000, 1000]
    assert found["steps_for_good"] == [500, 1000, None]
    assert found["later_looks_above"] == pytest.approx((1 + 0) / 2)
    assert found["final_returns"] == [500, 500, 30]
    assert found["budget"] == 2000
    assert found["wall_without_evaluations_s"] == [80, 80, 80]


def test_training_episodes_are_averaged_a_hundred_at_a_time():
    scores = np.array([0.0] * 50 + [300.0] + [0.0] * 9 + [320.0] * 140)
    trained = replace(curve(500), ended=10 * np.arange(1, 201), scores=scores)
    found = in_training([trained, curve(500)], 300)
    assert found["first_episode"] == [51, None]
    assert found["first_episode_steps"] == [510, None]
    first = next(n for n in range(100, 201) if scores[n - 100 : n].mean() >= 300)
    assert found["mean_steps"] == [10 * first, None]
    assert found["best_mean"] == [320.0, None]
    assert found["episodes"] == [200, 0]


def test_a_seed_that_never_gets_there_is_later_than_any_other():
    assert median([500, None, 700]) == 700
    assert median([500, None, None]) == np.inf
    assert ratio([5000, None, 7000], [500, 700, 1000]) == 10
    assert ratio([None], [500]) is None
    assert ratio([500], [None]) is None
    assert ratio([500], []) is None


def test_what_a_resumed_run_does_again_counts_the_second_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    ended = {"kind": "episode", "env_steps": 1016, "return": 9.0, "length": 9}
    write(path, [look(500, 1), look(1000, 2), look(1500, 3), ended, look(1500, 4)])
    kept = [event["return_mean"] for event in read_events(path) if event["kind"] == "eval"]
    assert kept == [1, 2, 4]


def test_the_slim_copy_keeps_evaluations_and_episodes_and_gives_the_same_curve(tmp_path):
    ended = {"kind": "episode", "env_steps": 510, "return": 9.0, "length": 9, "actor": 0}
    noise = {"kind": "learn", "env_steps": 510, "loss/critic": 1.0}
    events = [look(500, 11.12345, 3.0), ended, noise, look(1000, 500.0, 7.0)]
    path = tmp_path / "ours" / "seed-0.jsonl"
    keep({"seed": 0}, events, path)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["kind"] for event in kept] == ["about", "eval", "episode", "eval"]
    found = read_curve(path)
    assert found.steps.tolist() == [500, 1000]
    assert found.returns.tolist() == [11.123, 500]
    assert (found.wall_s, found.looking_s) == (7.0, 0.5)


def test_of_many_episodes_some_are_kept(tmp_path):
    ended = [
        {"kind": "episode", "env_steps": i, "return": float(i)} for i in range(3 * EPISODES_KEPT)
    ]
    path = tmp_path / "seed-0.jsonl"
    keep({}, [*ended, look(10**6, 1.0)], path)
    kept = [event["return"] for event in read_events(path) if event["kind"] == "episode"]
    assert kept == [float(i) for i in range(2, 3 * EPISODES_KEPT, 3)]


def test_the_evaluation_at_the_end_counts_where_there_is_one(tmp_path):
    path = tmp_path / "seed-0.jsonl"
    figures = {"return_mean": 7.0, "length_mean": 3.0, "won_mean": 0.5, "episodes": 4}
    by_tier = {"tier_0/return_mean": 9.0, "tier_0/won_mean": 1.0, "tier_0/episodes": 1}
    final = {"kind": "final", "env_steps": 1200, **figures, **by_tier}
    keep({"agent": "gated-rainbow"}, [look(500, 1.0), look(1000, 3.0)], path, final)
    found = read_curve(path)
    assert (found.final_return, found.area, found.agent) == (7.0, 2.0, "gated-rainbow")
    assert summarise([found], 5)["final_returns"] == [7.0]
    assert by_kind([found, found]) == {
        "all": {"return": [7.0, 7.0], "won": [0.5, 0.5]},
        "tier_0": {"return": [9.0, 9.0], "won": [1.0, 1.0]},
    }
    keep({}, [look(500, 1.0)], path)
    assert read_curve(path).final_return == 1.0 and by_kind([read_curve(path)]) == {}
