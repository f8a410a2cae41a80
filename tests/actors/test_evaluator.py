"""Tests that the evaluator plays complete greedy episodes when an evaluation is due."""

import numpy as np
import pytest

from dreamfleet.actors.episodes import summary
from dreamfleet.actors.evaluator import Evaluator, play
from dreamfleet.envs.vector import GymVector
from dreamfleet.learner.weight_store import LocalWeights
from tests.fakes import FakeAgent, FakeEnv, FakeReplay


def make(replay, weights=None, envs=None, **changes):
    envs = [] if envs is None else envs

    def make_env():
        envs.append(FakeEnv(lengths=(3, 5)))
        return envs[-1]

    settings = {"pulls": ("policy",), "episodes": 2, "every": 100, "seed": 0, "max_steps": 99}
    settings |= changes
    agent = FakeAgent()
    return Evaluator(make_env, agent, replay, weights or LocalWeights(), **settings), agent


def test_it_waits_for_the_next_multiple_of_its_interval():
    replay = FakeReplay()
    evaluator, _ = make(replay)
    replay.env_steps = 99
    assert not evaluator.step()
    assert evaluator.waiting_for == "replay: the next evaluation at 100 steps"
    replay.env_steps = 350
    assert evaluator.step()
    assert not evaluator.step()
    assert evaluator.waiting_for == "replay: the next evaluation at 400 steps"


def test_an_evaluation_reports_its_episodes():
    replay, envs = FakeReplay(), []
    evaluator, agent = make(replay, envs=envs)
    replay.env_steps = 120
    evaluator.step()
    (event,) = evaluator.drain()
    assert 0 <= event.pop("took_s") < 60
    assert event == {
        "kind": "eval",
        "at": 120,
        "return_mean": (6 + 15) / 2,
        "return_std": pytest.approx(np.std([6, 15])),
        "return_min": 6.0,
        "length_mean": 4.0,
        "episodes": 2,
        "reached_step_limit": 0,
    }
    assert evaluator.drain() == []
    assert {name for name, _ in agent.seen} == {"greedy"}
    assert replay.added == [] and envs[0].closed


def test_the_newest_weights_are_the_ones_evaluated():
    replay, weights = FakeReplay(), LocalWeights()
    evaluator, agent = make(replay, weights)
    weights.publish("policy", {"count": np.array(42)})
    replay.env_steps = 100
    evaluator.step()
    assert agent.count["policy"] == 42 and evaluator.versions == {"policy": 1}


def seeds_of(steps, seed):
    replay, envs = FakeReplay(), []
    evaluator, _ = make(replay, envs=envs, seed=seed)
    for replay.env_steps in steps:
        evaluator.step()
    return [seed for env in envs for seeds in env.seeds for seed in seeds]


def test_evaluation_seeds_are_fresh_reproducible_and_the_same_after_a_resume():
    run = seeds_of((100, 200, 300), seed=1)
    assert len(set(run)) == 3 * 2
    assert seeds_of((100, 200, 300), seed=1) == run
    assert seeds_of((300,), seed=1) == run[4:]
    assert not set(seeds_of((100, 200, 300), seed=2)) & set(run)


@pytest.mark.parametrize(
    ("episodes", "expected"), [(1, [3]), (2, [3, 9]), (3, [3, 9, 3]), (6, [3, 9, 3, 9, 3, 9])]
)
def test_short_episodes_are_not_counted_more_often_than_long_ones(episodes, expected):
    played = play(FakeEnv(lengths=(3, 9)), FakeAgent(), episodes, seed=0, max_steps=99)
    assert [episode.length for episode in played] == expected
    assert [episode.total for episode in played] == [n * (n + 1) / 2 for n in expected]


def test_there_may_be_more_environments_than_episodes():
    played = play(FakeEnv(lengths=(2, 3, 4)), FakeAgent(), 2, seed=0, max_steps=99)
    assert [episode.length for episode in played] == [2, 3]


def test_environments_without_an_episode_to_play_are_not_waited_for():
    env = FakeEnv(lengths=(2, 3, 400))
    play(env, FakeAgent(), 2, seed=0, max_steps=99)
    assert len(env.actions) == 3


@pytest.mark.parametrize("env_id", ["CartPole-v1", "NumberGame-v1"])
def test_the_same_episodes_are_played_with_any_number_of_environments(env_id):
    def played(envs, episodes=12):
        env = GymVector(env_id, envs, seed=envs)
        return [
            (episode.total, episode.length, episode.facts)
            for episode in play(env, FakeAgent(), episodes, seed=5, max_steps=999)
        ]

    assert played(1) == played(5) == played(12)
    assert played(4, episodes=7) == played(12)[:7]
    assert len({total for total, *_ in played(12)}) > 3


def test_an_episode_that_never_ends_is_truncated_and_counted():
    played = play(FakeEnv(lengths=(3, 400, 400)), FakeAgent(), 3, seed=0, max_steps=10)
    assert [(it.length, it.truncated) for it in played] == [(3, False), (10, True), (10, True)]
    assert [it.total for it in played] == [6, 55, 55]
    found = summary(played)
    assert (found["reached_step_limit"], found["episodes"], found["return_mean"]) == (2, 3, 116 / 3)


def test_an_episode_that_ends_at_the_step_limit_is_not_truncated():
    (played,) = play(FakeEnv(lengths=(10,)), FakeAgent(), 1, seed=0, max_steps=10)
    assert (played.length, played.truncated) == (10, False)


def test_an_interrupted_evaluation_ends_at_the_next_step_without_an_event():
    replay, envs, asked = FakeReplay(), [], []

    def stop():
        asked.append(len(envs[-1].actions))
        return len(asked) > 2

    evaluator, _ = make(replay, envs=envs, stop=stop)
    replay.env_steps = 100
    assert not evaluator.step()
    assert asked == [0, 1, 2]
    assert envs[0].closed
    assert evaluator.drain() == []
    assert evaluator.take_best() is None


def test_the_best_evaluation_returns_the_weights_it_played():
    replay, weights = FakeReplay(), LocalWeights()
    evaluator, agent = make(replay, weights, best_score=10.5)  # the mean return of FakeEnv
    weights.publish("policy", {"count": np.array(42)})
    replay.env_steps = 120
    evaluator.step()
    agent.count["policy"] = 43  # an update before `take_best`
    best = evaluator.take_best()
    assert (best.at, best.score, best.episodes) == (120, 10.5, 2)  # of two equal scores the newer
    assert {group: int(it["count"]) for group, it in best.weights.items()} == {"policy": 42}
    assert evaluator.take_best() is None


@pytest.mark.parametrize("score", [10.6, float("inf")])
def test_a_worse_evaluation_returns_no_weights(score):
    replay = FakeReplay()
    evaluator, _ = make(replay, best_score=score)
    replay.env_steps = 120
    evaluator.step()
    assert evaluator.take_best() is None


def test_the_saved_policy_is_evaluated_although_a_newer_one_is_published():
    replay, weights = FakeReplay(), LocalWeights()
    evaluator, agent = make(replay, weights)
    weights.publish("policy", {"count": np.array(42)})
    evaluator.evaluate_saved(77, {"policy": {"count": 50}})
    (event,) = evaluator.drain()
    assert (event["kind"], event["at"], event["episodes"]) == ("eval", 77, 2)
    assert agent.count["policy"] == 50
    assert evaluator.take_best().at == 77


def test_whoever_watches_is_given_every_row_of_an_episode_with_its_action():
    seen = []
    play(FakeEnv(lengths=(3, 5)), FakeAgent(), 2, seed=0, max_steps=99, watch=seen.append)
    rows = {name: np.stack([row[name] for row in seen], 1) for name in seen[0]}
    assert rows["last"].argmax(1).tolist() == [3, 5]
    for i, length in enumerate((3, 5)):
        t = np.arange(length + 1)
        np.testing.assert_array_equal(rows["obs"][i, : length + 1, 1], t)
        np.testing.assert_array_equal(rows["action"][i, : length + 1], t % 2)
        np.testing.assert_array_equal(rows["version"][i, : length + 1], 0)


def test_an_episode_at_the_step_limit_is_watched_up_to_its_newest_row():
    seen = []
    play(FakeEnv(lengths=(50,)), FakeAgent(), 1, seed=0, max_steps=4, watch=seen.append)
    assert [int(row["reward"][0]) for row in seen] == [0, 1, 2, 3, 4]
