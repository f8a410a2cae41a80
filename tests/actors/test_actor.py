"""Tests that an actor adds each row to the replay once, and acts with the newest weights."""

import numpy as np
import pytest

from dreamfleet.actors.actor import Actor
from dreamfleet.core.errors import Diverged
from dreamfleet.core.types import ChunkId
from dreamfleet.learner.weight_store import LocalWeights
from tests.fakes import FakeAgent, FakeEnv, FakeReplay


def make(env=None, replay=None, weights=None, **changes):
    settings = {
        "index": 0,
        "restarts": 0,
        "pulls": ("policy",),
        "chunk": 4,
        "pull_every": 1,
        **changes,
    }
    env = env or FakeEnv()
    settings.setdefault("streams", np.arange(env.num_envs))
    agent = FakeAgent()
    replay, weights = replay or FakeReplay(), weights or LocalWeights()
    return Actor(env, agent, replay, weights, **settings), agent, replay, weights


def test_the_chunks_hold_every_row_once_and_in_order():
    actor, agent, replay, _ = make(FakeEnv(lengths=(3, 2)), streams=np.array([5, 9]))
    assert all(actor.step() for _ in range(4 * 3 + 1))
    assert [table for table, _, _ in replay.added] == ["real"] * 3
    assert all(streams.tolist() == [5, 9] for _, _, streams in replay.added)
    columns = agent.tables["real"].columns
    rows = {key: np.concatenate([c[key] for _, c, _ in replay.added], axis=1) for key in columns}
    assert rows["obs"].shape == (2, 12, 2)  # (N, T, O)
    assert rows["obs"][0].tolist() == [[e, t] for e in range(3) for t in range(4)]
    assert rows["obs"][1].tolist() == [[e, t] for e in range(4) for t in range(3)]
    assert rows["last"][1].tolist() == [False, False, True] * 4


def test_each_row_carries_the_action_chosen_on_it():
    env = FakeEnv()
    actor, _, replay, _ = make(env)
    for _ in range(5):
        actor.step()
    taken = replay.added[0][1]["action"]  # (N, T)
    np.testing.assert_array_equal(taken, np.stack(env.actions[:4], axis=1))
    np.testing.assert_array_equal(taken[0], [0, 1, 0, 1])  # the fake's policy: t % 2


@pytest.mark.parametrize("name", ["action", "log_prob"])
def test_actions_that_are_not_finite_are_the_fault_of_the_agent(name):
    env = FakeEnv()
    actor, agent, replay, _ = make(env)
    agent.act = lambda rows, state, explore: (
        np.full((2, 1), np.nan if name == "action" else 0.0, np.float32),
        state,
        {"log_prob": np.full(2, np.inf if name == "log_prob" else 0.0)},
    )
    with pytest.raises(Diverged, match=f"{name}' is not finite"):
        actor.step()
    assert not env.actions and not replay.added


def test_it_explores():
    actor, agent, _, _ = make()
    for _ in range(3):
        actor.step()
    assert [name for name, _ in agent.seen] == ["explore"] * 3


def test_no_step_is_taken_while_a_chunk_is_refused_and_no_row_is_lost():
    env = FakeEnv()
    actor, _, replay, _ = make(env, FakeReplay(refusals={"real": 2}))
    assert [actor.step() for _ in range(7)] == [True] * 4 + [False] * 2 + [True]
    assert actor.waiting_for == "replay: room to insert"
    assert len(replay.added) == 1 and replay.added[0][1]["obs"].shape == (2, 4, 2)
    assert len(env.actions) == 5


def test_its_chunks_are_numbered_and_a_refused_one_keeps_its_number():
    actor, _, replay, _ = make(None, FakeReplay(refusals={"real": 2}), index=3, restarts=2)
    for _ in range(4 * 3 + 3):
        actor.step()
    assert replay.chunk_ids == [ChunkId(3, 2, 0), ChunkId(3, 2, 1), ChunkId(3, 2, 2)]


def test_finished_episodes_are_reported_once_with_their_undiscounted_return():
    actor, *_ = make(FakeEnv(lengths=(3, 5)), index=7)
    for _ in range(8):
        actor.step()
    short = {"kind": "episode", "return": 6.0, "length": 3, "actor": 7}  # 1 + 2 + 3
    long = {"kind": "episode", "return": 15.0, "length": 5, "actor": 7}
    assert actor.drain() == [short, long, short]
    assert actor.drain() == []


def test_an_episode_event_has_the_facts_of_its_environment():
    env = FakeEnv(lengths=(3, 2))
    actor, *_ = make(env)
    env.info = {"level": np.array([4, 5])}
    for _ in range(3):
        actor.step()
    assert [event["level"] for event in actor.drain()] == [5, 4]


def test_with_shaped_rewards_the_unshaped_return_is_reported():
    env = FakeEnv(lengths=(3, 2))
    actor, *_ = make(env)
    env.info = {"return": np.array([-40.0, -50.0])}
    for _ in range(3):
        actor.step()
    assert [event["return"] for event in actor.drain()] == [-50.0, -40.0]


def test_newer_weights_are_pulled_every_few_steps_and_used():
    weights = LocalWeights()
    actor, _, replay, _ = make(weights=weights, chunk=1, pull_every=3)
    weights.publish("policy", {"count": np.array(10)})
    actor.step()
    weights.publish("policy", {"count": np.array(20)})
    for _ in range(5):
        actor.step()
    used = [int(rows["version"][0, 0]) for _, rows, _ in replay.added]
    assert used == [10, 10, 10, 20, 20]
    assert actor.versions == {"policy": 2}


def test_an_actor_that_shares_its_agent_pulls_nothing():
    weights = LocalWeights()
    weights.publish("policy", {"count": np.array(10)})
    actor, agent, _, _ = make(weights=weights, pulls=())
    actor.step()
    assert agent.count["policy"] == 0


def test_exceptions_of_an_environment_are_not_caught():
    class Breaks(FakeEnv):
        def step(self, action):
            raise RuntimeError("broken")

    actor, *_ = make(Breaks())
    with pytest.raises(RuntimeError, match="broken"):
        actor.step()
