"""Tests the results that are computed from learning curves, on small curves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.formatting import median
from benchmarks.learning.curves import (
    MAX_EPISODES,
    Curve,
    final_by_category,
    ratio,
    read_curve,
    read_events,
    summarise,
    summarise_training,
    with_present_settings,
    write_record,
)


def curve(*returns, command=""):
    """Returns a learning curve with the mean returns `returns`, one every 500 steps and 60 s.

    Each evaluation takes 6 s of the 60 s.
    """
    number = np.arange(1, len(returns) + 1)
    times = (60.0 * number, np.full(len(returns), 6.0))
    return Curve(500 * number, np.array(returns, float), *times, command=command)


def evaluation(env_steps, mean, wall_s=1.0):
    """Returns the event of an evaluation with the mean return `mean`."""
    figures = {"return_mean": mean, "return_std": 0.0, "return_min": mean, "episodes": 100}
    return {"kind": "eval", "env_steps": env_steps, **figures, "wall_s": wall_s, "took_s": 0.25}


def write(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_the_first_evaluation_at_the_threshold_counts_and_later_ones_show_whether_it_lasts():
    found = curve(20, 475, 474, 500, 500)
    assert found.first_steps_at(475) == 1000
    assert found.later_share_at(475) == pytest.approx(2 / 3)


def test_the_threshold_is_kept_from_the_evaluation_after_the_last_one_below_it():
    assert curve(20, 475, 474, 500, 500).lasting_steps_at(475) == 2000
    assert curve(500, 500).lasting_steps_at(475) == 500
    assert curve(500, 20).lasting_steps_at(475) is None


def test_a_curve_below_the_threshold_has_no_steps_to_it():
    assert curve(20, 30).first_steps_at(475) is None
    assert curve(20, 30).later_share_at(475) is None


def test_no_evaluation_comes_after_the_last_one():
    assert curve(20, 500).first_steps_at(475) == 1000
    assert curve(20, 500).later_share_at(475) is None


def test_figures_are_over_all_seeds():
    found = summarise([curve(500, 500), curve(20, 500), curve(20, 500, 100, 30)], 475)
    assert found["steps"] == [500, 1000, 1000]
    assert found["steps_for_good"] == [500, 1000, None]
    assert found["later_looks_above"] == pytest.approx((1 + 0) / 2)
    assert found["final_returns"] == [500, 500, 30]
    assert found["budget"] == 2000
    assert found["wall_without_evaluations_s"] == [2 * 54, 2 * 54, 4 * 54]


def test_training_episodes_are_averaged_a_hundred_at_a_time():
    returns = np.array([0.0] * 50 + [300.0] + [0.0] * 9 + [320.0] * 140)
    trained = replace(curve(500), episode_ends=10 * np.arange(1, 201), episode_returns=returns)
    found = summarise_training([trained, curve(500)], 300)
    assert found["first_episode"] == [51, None]
    assert found["first_episode_steps"] == [510, None]
    first = next(n for n in range(100, 201) if returns[n - 100 : n].mean() >= 300)
    assert found["mean_steps"] == [10 * first, None]
    assert found["best_mean"] == [320.0, None]
    assert found["episodes"] == [200, 0]


def test_a_seed_that_never_reaches_the_threshold_counts_as_infinite():
    assert median([500, None, 700]) == 700
    assert median([500, None, None]) == np.inf
    assert ratio([5000, None, 7000], [500, 700, 1000]) == 10
    assert ratio([None], [500]) is None
    assert ratio([500], [None]) is None
    assert ratio([500], []) is None


def test_repeated_steps_of_a_resumed_run_count_the_second_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    episode = {"kind": "episode", "env_steps": 1016, "return": 9.0, "length": 9}
    write(path, [*map(evaluation, (500, 1000, 1500), (1, 2, 3)), episode, evaluation(1500, 4)])
    kept = [event["return_mean"] for event in read_events(path) if event["kind"] == "eval"]
    assert kept == [1, 2, 4]


def test_a_record_has_evaluations_and_episodes_and_gives_the_same_curve(tmp_path):
    episode = {"kind": "episode", "env_steps": 510, "return": 9.0, "length": 9, "actor": 0}
    learn = {"kind": "learn", "env_steps": 510, "loss/critic": 1.0}
    events = [evaluation(500, 11.12345, 3.0), episode, learn, evaluation(1000, 500.0, 7.0)]
    path = tmp_path / "ours" / "seed-0.jsonl"
    write_record({"seed": 0}, events, path)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["kind"] for event in kept] == ["about", "eval", "episode", "eval"]
    found = read_curve(path)
    assert found.steps.tolist() == [500, 1000]
    assert found.returns.tolist() == [11.123, 500]
    assert found.wall_s.tolist() == [3.0, 7.0] and found.eval_s.tolist() == [0.25, 0.25]


def test_a_record_has_only_some_of_many_episodes(tmp_path):
    episodes = [
        {"kind": "episode", "env_steps": i, "return": float(i)} for i in range(3 * MAX_EPISODES)
    ]
    path = tmp_path / "seed-0.jsonl"
    write_record({}, [*episodes, evaluation(10**6, 1.0)], path)
    kept = [event["return"] for event in read_events(path) if event["kind"] == "episode"]
    assert kept == [float(i) for i in range(2, 3 * MAX_EPISODES, 3)]


def test_the_evaluation_after_training_gives_the_final_return(tmp_path):
    path = tmp_path / "seed-0.jsonl"
    figures = {"return_mean": 7.0, "length_mean": 3.0, "won_mean": 0.5, "episodes": 4}
    by_category = {"tier_0/return_mean": 9.0, "tier_0/won_mean": 1.0, "tier_0/episodes": 1}
    final = {"kind": "final", "env_steps": 1200, **figures, **by_category}
    events = [evaluation(500, 1.0), evaluation(1000, 3.0)]
    write_record({"agent": "gated-rainbow"}, events, path, final)
    found = read_curve(path)
    assert (found.final_return, found.mean_return, found.agent) == (7.0, 2.0, "gated-rainbow")
    assert summarise([found], 5)["final_returns"] == [7.0]
    assert final_by_category([found, found]) == {
        "all": {"return": [7.0, 7.0], "won": [0.5, 0.5]},
        "tier_0": {"return": [9.0, 9.0], "won": [1.0, 1.0]},
    }
    write_record({}, [evaluation(500, 1.0)], path)
    found = read_curve(path)
    assert found.final_return == 1.0 and final_by_category([found]) == {}


def test_training_time_leaves_out_evaluations_except_on_ray():
    local, ray = "python launch.py --local", "python launch.py --num-actors 4"
    assert curve(1, 2, command=local).training_minutes.tolist() == [0.9, 1.8]
    assert curve(1, 2, command="python benchmarks/peers.py").training_minutes.tolist() == [0.9, 1.8]
    assert curve(1, 2, command=ray).training_minutes.tolist() == [1.0, 2.0]


def test_renamed_settings_get_their_present_names():
    command = "python launch.py --set agent.share=0 --set agent.dense=false --set agent.n=1"
    assert with_present_settings(command) == (
        "python launch.py --set agent.dream_share=0 --set agent.dense=false --set agent.n_step=1"
    )
