"""Tests that the advice on speed names the part that limits the run."""

from __future__ import annotations

import pytest

from dreamfleet.runtime.advice import advice, in_words


@pytest.mark.parametrize(
    ("waits", "start"),
    [
        ({}, ""),
        ({"actor → replay": 0.3, "learner → dreamer": 0.4}, ""),
        ({"actor → replay": 1.0}, "Learning is the limit"),
        ({"learner → replay": 0.9}, "Collecting rows is the limit"),
        ({"learner → replay": 0.9, "actor → replay": 0.9}, "Training the world model is the limit"),
        ({"learner → dreamer": 0.9, "actor → replay": 1.0}, "The dreamer is the limit"),
        ({"learner → dreamer": 0.9, "dreamer → replay": 0.9}, ""),
        ({"learner → replay + dreamer": 0.9, "dreamer → replay": 0.9}, "Collecting rows"),
        ({"learner → replay": 0.3, "learner → replay + dreamer": 0.3}, "Collecting rows"),
    ],
)
def test_advice_follows_from_the_parts_that_wait(waits, start):
    found = advice(waits)
    assert found.startswith(start) and bool(found) == bool(start)


def test_more_actors_are_advised_only_where_they_help():
    assert "More actors (--num-actors) help" in advice({"learner → replay": 1.0})
    assert "more actors do not" in advice({"actor → replay": 1.0})


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("actor → replay", "actors wait for the replay ratio"),
        ("learner → replay + dreamer", "learner waits for rows and dreams"),
        ("dreamer → learner", "dreamers wait for room for dreams"),
        ("critic → oracle", "critic waits for oracle"),
    ],
)
def test_a_wait_is_said_in_words(pair, words):
    assert in_words(pair) == words
