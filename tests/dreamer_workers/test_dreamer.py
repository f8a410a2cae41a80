"""Tests that a dreamer trains the world model, and keeps at most one batch of dreams waiting."""

import dataclasses

import numpy as np
import pytest

from dreamfleet.core.types import Consumer, Sample
from dreamfleet.dreamer_workers.dreamer import Dreamer, sharing_fault
from dreamfleet.learner.weight_store import LocalWeights
from tests.fakes import FakeAgent, FakeReplay, SharingAgent, sample

WORLD, START = ("real", "world"), ("real", "start")


def make(offers, refusals=None, agent=None, **changes):
    settings = {"pulls": (), "trains": True, "publish_every": 2, "log_every": 2, **changes}
    agent, replay, weights = agent or FakeAgent(), FakeReplay(offers, refusals), LocalWeights()
    return Dreamer(agent, replay, weights, **settings), agent, replay, weights


def called(agent):
    return [name for name, _ in agent.seen]


def test_no_dream_before_the_first_update_of_the_world():
    dreamer, agent, replay, _ = make({START: [sample(1)]})
    assert not dreamer.step()
    assert dreamer.waiting_for == (
        "replay: real rows to learn the world from, dreamer: a first world model"
    )
    assert agent.seen == [] and replay.asked[START] == 0


def test_a_resumed_dreamer_dreams_before_its_next_update():
    """Otherwise all would wait: the learner for dreams, and the next update for more rows.

    Rows can be added again only after the learner has used a dream.
    """
    dreamer, agent, _, weights = make({START: [sample(3)]}, updates=7)
    assert dreamer.step()
    assert called(agent) == ["dream"] and weights.latest("world", 0) is not None


def test_it_trains_then_dreams_and_adds_the_dream_to_the_queue():
    starts = sample(3)
    dreamer, agent, replay, _ = make({WORLD: [sample(1)], START: [starts]})
    assert dreamer.step()
    assert called(agent) == ["learn_world", "dream"]
    [(table, dream, streams)] = replay.added
    assert table == "dream" and streams is None
    assert dream == {"obs": starts.data["obs"], "world": 1}


def test_a_refused_dream_is_kept_and_no_other_is_made_before_it_is_added():
    offers = {WORLD: [sample(1)], START: [sample(1), sample(2)]}
    dreamer, agent, replay, _ = make(offers, refusals={"dream": 3})
    assert [dreamer.step() for _ in range(3)] == [True, False, False]
    assert "learner: room for a dream" in dreamer.waiting_for
    assert dreamer.step()
    assert called(agent).count("dream") == 1 and len(replay.added) == 1
    assert dreamer.step()
    assert [dream["obs"][0, 0, 0] for _, dream, _ in replay.added] == [1, 2]


def test_training_goes_on_while_a_dream_waits():
    n = 4
    offers = {WORLD: [sample(i) for i in range(n)], START: [sample(1)]}
    dreamer, agent, _, _ = make(offers, refusals={"dream": 100})
    assert all(dreamer.step() for _ in range(n))
    assert agent.count["world"] == dreamer.updates == n


def test_the_first_update_is_published_then_one_per_interval():
    n = 5
    dreamer, _, _, weights = make({WORLD: [sample(i) for i in range(n)]}, publish_every=2)
    published = []
    for _ in range(n):
        dreamer.step()
        published.append(weights.latest("world", have=0))
    assert [(version, int(w["count"])) for version, w in published] == [
        (1, 1), (2, 2), (2, 2), (3, 4), (3, 4),
    ]  # fmt: skip


def test_it_logs_at_its_interval():
    dreamer, *_ = make({WORLD: [sample(i) for i in range(5)]}, log_every=2)
    for _ in range(5):
        dreamer.step()
    assert dreamer.drain() == [
        {"kind": "world", "updates": 2, "loss/world": 1 / 2},
        {"kind": "world", "updates": 4, "loss/world": 1 / 4},
    ]
    assert dreamer.drain() == []


def test_a_dreamer_that_does_not_train_dreams_once_a_world_model_is_published():
    offers = {WORLD: [sample(1)], START: [sample(2)]}
    dreamer, agent, replay, weights = make(offers, trains=False, pulls=("world", "policy"))
    assert not dreamer.step()
    assert dreamer.waiting_for == "dreamer: a first world model"
    weights.publish("world", {"count": np.array(6)})
    assert dreamer.step()
    assert called(agent) == ["dream"] and agent.count["world"] == 6
    assert replay.asked[WORLD] == 0 and dreamer.versions == {"world": 1, "policy": 0}


def test_an_agent_without_dreams_only_learns_its_world():
    agent = FakeAgent()
    del agent.tables["dream"]
    dreamer, _, replay, _ = make({WORLD: [sample(1)], START: [sample(1)]}, agent=agent)
    assert [dreamer.step(), dreamer.step()] == [True, False]
    assert called(agent) == ["learn_world"] and replay.asked[START] == 0


def window(key):
    """Returns a sample of consumer `world` of `SharingAgent`: four windows of four rows."""
    data = {"obs": np.full((4, 4, 2), key, np.float32), "written": np.zeros((4, 2), np.float16)}
    return Sample(data, np.arange(4), np.ones(4), size=4)


def test_shared_windows_serve_an_update_and_then_a_dream_with_their_new_values():
    n = 3
    offers = {WORLD: [window(i) for i in range(n)], START: [sample(9)]}
    dreamer, agent, replay, _ = make(offers, agent=SharingAgent())
    assert [dreamer.step() for _ in range(n + 1)] == [True] * n + [False]
    assert called(agent) == ["learn_world", "dream"] * n and replay.asked[START] == 0
    for i in range(n):
        real, starts = agent.seen[2 * i][1], agent.seen[2 * i + 1][1]
        assert starts.keys is real.keys and starts.data["obs"] is real.data["obs"]
        assert starts.data["written"] is replay.updated[i][2]["written"]
        assert real.data["written"].shape == (4, 2)


def test_an_update_whose_windows_are_shared_waits_until_the_dream_before_is_added():
    offers = {WORLD: [window(i) for i in range(4)]}
    dreamer, agent, replay, _ = make(offers, refusals={"dream": 3}, agent=SharingAgent())
    assert [dreamer.step() for _ in range(3)] == [True, False, False]
    assert dreamer.waiting_for == "learner: room for a dream"
    assert (agent.count["world"], replay.asked[WORLD]) == (1, 1)
    assert [dreamer.step() for _ in range(4)] == [True] * 4
    assert called(agent) == ["learn_world", "dream"] * 4 and len(replay.added) == 4


def test_a_resumed_dreamer_whose_windows_are_shared_first_takes_an_update():
    dreamer, agent, *_ = make({WORLD: [None, window(1)]}, agent=SharingAgent(), updates=7)
    assert [dreamer.step(), dreamer.step()] == [False, True]
    assert called(agent) == ["learn_world", "dream"]


def test_a_dreamer_that_does_not_train_samples_its_own_windows_although_they_are_shared():
    start = sample(2)
    start.data["written"] = np.zeros((1, 1, 2), np.float16)
    offers = {WORLD: [window(1)], START: [start]}
    dreamer, agent, replay, weights = make(
        offers, trains=False, pulls=("world",), agent=SharingAgent()
    )
    weights.publish("world", {"count": np.array(6)})
    assert dreamer.step()
    assert called(agent) == ["dream"] and replay.asked[WORLD] == 0


@pytest.mark.parametrize(
    ("consumers", "message"),
    [
        ({"policy": Consumer(4, samples_per_step=0.5)}, "samples_per_step None, found 0.5"),
        ({"policy": Consumer(4, min_steps=9)}, "found 9 and 1 with 8 and 3"),
        ({"policy": Consumer(4, 4)}, "found 1 and 4 with 8 and 3"),
        ({"policy": Consumer(4, shares="world")}, "only the consumer 'start' may share"),
        ({"start": Consumer(4, shares="policy")}, "only the consumer 'start' may share"),
    ],
)
def test_sharing_is_refused_where_dreams_and_updates_could_wait_for_each_other(consumers, message):
    agent = SharingAgent()
    real = agent.tables["real"]
    assert sharing_fault(agent.tables) is None
    agent.tables["real"] = dataclasses.replace(real, consumers={**real.consumers, **consumers})
    assert message in sharing_fault(agent.tables)


def test_new_values_reach_the_replay_as_numpy_arrays():
    class OnDevice:
        """A tensor of a device, which only `cpu` copies to numpy's memory."""

        def cpu(self):
            return self

        def numpy(self):
            return np.ones((2, 1, 3), np.float16)

    class Rewriting(FakeAgent):
        def learn_world(self, real):
            feedback = super().learn_world(real)
            feedback.rows = {"latent": OnDevice()}
            return feedback

    dreamer, _, replay, _ = make({WORLD: [sample(5, 6)]}, agent=Rewriting())
    dreamer.step()
    [(table, keys, rows, consumer)] = replay.updated
    assert (table, keys.tolist(), consumer) == ("real", [5, 6], "world")
    np.testing.assert_array_equal(rows["latent"], np.ones((2, 1, 3), np.float16))


def test_priorities_of_the_world_loss_reach_the_replay():
    class Surprised(FakeAgent):
        def learn_world(self, real):
            feedback = super().learn_world(real)
            feedback.rows = {"priority": np.full(len(real.keys), 2.0)}
            return feedback

    dreamer, _, replay, _ = make({WORLD: [sample(5, 6)]}, agent=Surprised())
    dreamer.step()
    [(table, keys, rows, consumer)] = replay.updated
    assert (table, consumer) == ("real", "world")
    assert keys.tolist() == [5, 6] and rows["priority"].tolist() == [2, 2]
