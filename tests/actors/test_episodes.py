"""Tests the returns of episodes, their facts, and their statistics."""

import numpy as np
import pytest

from dreamfleet.actors.episodes import Episode, Episodes, summary


def test_returns_and_lengths_restart_with_each_episode():
    running = Episodes(2)
    rows = [
        {"first": [True, True], "reward": [0.0, 0.0], "last": [False, False]},
        {"first": [False, False], "reward": [1.0, 2.0], "last": [True, False]},
        {"first": [True, False], "reward": [0.0, 2.0], "last": [False, True]},
        {"first": [False, True], "reward": [5.0, 0.0], "last": [True, False]},
    ]
    ended = []
    for t, row in enumerate(rows):
        info = {"at": np.array([t, 10 + t]), "won": np.array([True, False])}
        ended += running.add({name: np.array(values) for name, values in row.items()}, info)
    assert ended == [
        Episode(0, 1.0, 1, {"at": 1, "won": True}),
        Episode(1, 4.0, 2, {"at": 12, "won": False}),
        Episode(0, 5.0, 1, {"at": 3, "won": True}),
    ]


def test_integer_facts_are_categories_and_other_facts_are_averaged():
    facts = [(0, True, 0.5), (2, False, 1.0), (2, True, 0.0), (2, False, 2.5)]
    episodes = [
        Episode(0, float(i), i, {"tier": tier, "won": won, "health": health})
        for i, (tier, won, health) in enumerate(facts)
    ]
    found = summary(episodes)
    assert found["episodes"] == 4 and found["return_mean"] == 1.5
    assert found["won_mean"] == 0.5 and found["health_mean"] == 1.0
    assert (found["tier_0/episodes"], found["tier_0/return_mean"]) == (1, 0)
    assert (found["tier_2/episodes"], found["tier_2/return_mean"]) == (3, 2)
    assert found["tier_2/return_std"] == pytest.approx(np.std([1, 2, 3]))
    assert found["tier_2/won_mean"] == pytest.approx(1 / 3)
    assert "tier_mean" not in found and "tier_1/episodes" not in found


def test_without_facts_only_the_statistics_of_all_episodes_are_reported():
    found = summary([Episode(0, 1.0, 7, {})])
    assert found == {
        "return_mean": 1.0,
        "return_std": 0.0,
        "return_min": 1.0,
        "length_mean": 7.0,
        "episodes": 1,
        "reached_step_limit": 0,
    }


def test_facts_of_some_episodes_only_are_averaged_over_those():
    facts = [{}, {"is_success": True}, {"is_success": False, "gap": 2.0}]
    found = summary([Episode(0, 1.0, 5, fact) for fact in facts])
    assert (found["is_success_mean"], found["gap_mean"], found["episodes"]) == (0.5, 2.0, 3)


def test_facts_that_are_none_are_left_out_and_the_unshaped_return_is_used():
    rows = {"first": np.array([True]), "reward": np.array([1.0]), "last": np.array([True])}
    said = {"gap": np.array([None], object), "return": np.array([-7.0], object)}
    (episode,) = Episodes(1).add(rows, said)
    assert (episode.total, episode.facts) == (-7.0, {})
