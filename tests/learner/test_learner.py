"""Tests that the learner uses each batch once, returns priorities, and publishes its weights."""

import dataclasses

import numpy as np
import pytest

from dreamfleet.core.errors import Diverged
from dreamfleet.core.types import Feedback, QueueSpec
from dreamfleet.learner.learner import Learner
from dreamfleet.learner.weight_store import LocalWeights
from tests.fakes import FakeAgent, FakeReplay, sample

POLICY, DREAM = ("real", "policy"), ("dream", "policy")


def make(offers, agent=None, store=None, **changes):
    settings = {"pulls": (), "publish_every": 2, "log_every": 2, **changes}
    agent, replay, weights = agent or FakeAgent(), FakeReplay(offers), store or LocalWeights()
    return Learner(agent, replay, weights, **settings), agent, replay, weights


def test_actors_get_a_first_version_before_anything_is_learned():
    learner, _, _, weights = make({})
    assert not learner.step()
    version, values = weights.latest("policy", have=0)
    assert version == 1 and values["count"] == 0


def test_a_batch_is_kept_until_the_other_batch_arrives():
    real, dream = sample(1, 2), {"obs": np.zeros((1, 1))}
    learner, agent, replay, _ = make({POLICY: [real], DREAM: [None, None, dream]})
    assert [learner.step() for _ in range(2)] == [False, False]
    assert learner.waiting_for == "dreamer: a dream"
    assert learner.step()
    assert agent.seen == [("learn_policy", (real, dream))]
    assert replay.asked[POLICY] == 1  # a sample is counted when it is taken


def test_it_reports_everything_it_waits_for():
    learner, *_ = make({})
    learner.step()
    assert learner.waiting_for == "replay: real rows to learn from, dreamer: a dream"


def test_a_batch_is_learned_from_once():
    learner, agent, _, _ = make({POLICY: [sample(1)], DREAM: [{}]})
    assert [learner.step(), learner.step()] == [True, False]
    assert agent.count["policy"] == 1


def test_a_dream_serves_as_many_updates_as_its_queue_says():
    agent, reals = FakeAgent(), [sample(i) for i in range(5)]
    agent.tables["dream"] = QueueSpec(capacity=1, updates_per_batch=2)
    learner, _, replay, _ = make({POLICY: reals, DREAM: [{"x": 1}, {"x": 2}]}, agent)
    assert [learner.step() for _ in range(5)] == [True] * 4 + [False]
    assert [dreams for _, (_, dreams) in agent.seen] == [{"x": 1}] * 2 + [{"x": 2}] * 2
    assert replay.asked[DREAM] == 3


def test_priorities_are_returned_with_the_keys_of_their_sample():
    learner, _, replay, _ = make({POLICY: [sample(30, 10, 20)], DREAM: [{}]})
    learner.step()
    [(table, keys, rows, consumer)] = replay.updated
    assert (table, consumer) == ("real", "policy") and rows.keys() == {"priority"}
    assert keys.tolist() == [30, 10, 20] and rows["priority"].tolist() == [1, 2, 3]


def test_many_bad_updates_in_a_row_end_the_run_with_one_line():
    """An agent may count its bad updates itself, in metric `fault/in_a_row`.

    For an agent without this metric, an update with a NaN loss is bad.
    """
    for skipped in (None, 0, 1):
        agent, updates = FakeAgent(), 400

        def learn(real, dreams, agent=agent, skipped=skipped):
            agent.count["policy"] += 1
            bad = agent.count["policy"] > 90
            metrics = {"loss/policy": np.float32(np.nan if bad else 1)}
            if skipped is not None:
                metrics["fault/in_a_row"] = skipped * max(0, agent.count["policy"] - 90)
            return Feedback(metrics)

        agent.learn_policy = learn
        reals, dreams = ([make_one(i) for i in range(updates)] for make_one in (sample, dict_of))
        learner, *_ = make({POLICY: reals, DREAM: dreams}, agent)
        if skipped == 0:
            assert all(learner.step() for _ in range(updates))
            continue
        with pytest.raises(
            Diverged, match=r"policy has stopped learning.*loss/policy is nan"
        ) as it:
            for _ in range(updates):
                learner.step()
        assert "\n" not in str(it.value)
        assert learner.updates <= 200


def test_a_resumed_run_counts_its_bad_updates_from_the_resume():
    agent, n = FakeAgent(), 60
    agent.learn_policy = lambda real, dreams: Feedback({"loss/policy": np.float32(np.nan)})
    offers = {POLICY: [sample(i) for i in range(n)], DREAM: [{}] * n}
    learner, *_ = make(offers, agent, updates=10_000)
    assert all(learner.step() for _ in range(n))  # fewer than end a run


def dict_of(number):
    return {"x": number}


def test_weights_with_nan_are_never_published():
    agent = FakeAgent()
    agent.weights = lambda group: {"net.bias": np.array([0.0, np.nan], np.float32)}
    learner, _, _, weights = make({POLICY: [sample(1)], DREAM: [{}]}, agent)
    with pytest.raises(Diverged, match=r"net\.bias holds NaN"):
        learner.step()
    assert weights.latest("policy", 0) is None


def test_weights_that_nobody_reads_are_published_once():
    n, agent, made = 5, FakeAgent(), []
    agent.weights = lambda group: made.append(group) or {"count": np.array(0)}
    learner, _, _, weights = make(
        {POLICY: [sample(i) for i in range(n)], DREAM: [{}] * n}, agent, store=LocalWeights(False)
    )
    assert all(learner.step() for _ in range(n))
    assert made == ["policy"]
    assert learner.version == weights.latest("policy", 0)[0] == 1


def without(*, dream=False, policy=False):
    agent = FakeAgent()
    if dream:
        del agent.tables["dream"]
    if policy:
        real = agent.tables["real"]
        consumers = {name: c for name, c in real.consumers.items() if name != "policy"}
        agent.tables["real"] = dataclasses.replace(real, consumers=consumers)
    return agent


def test_an_agent_without_dreams_learns_from_real_rows_alone():
    real = sample(1)
    learner, agent, replay, _ = make({POLICY: [real]}, without(dream=True))
    assert learner.step()
    assert agent.seen == [("learn_policy", (real, None))] and replay.asked[DREAM] == 0


def test_an_agent_that_learns_only_in_dreams_takes_no_real_rows():
    learner, agent, replay, _ = make({DREAM: [{"x": 1}]}, without(policy=True))
    assert learner.step()
    assert agent.seen == [("learn_policy", (None, {"x": 1}))]
    assert replay.asked[POLICY] == 0 and replay.updated == []


def test_it_publishes_and_logs_at_its_intervals():
    n = 5
    offers = {POLICY: [sample(i) for i in range(n)], DREAM: [{}] * n}
    learner, _, _, weights = make(offers, publish_every=2, log_every=3)
    versions = []
    for _ in range(n):
        learner.step()
        versions.append(weights.latest("policy", have=0))
    assert [(version, int(w["count"])) for version, w in versions] == [
        (1, 0), (2, 2), (2, 2), (3, 4), (3, 4),
    ]  # fmt: skip
    [event] = learner.drain()
    assert event == {"kind": "learn", "updates": 3, "loss/policy": np.float32(1 / 3)}
    assert type(event["loss/policy"]) is float
    assert learner.drain() == []


def test_the_newest_world_is_pulled_before_learning():
    learner, agent, _, weights = make({POLICY: [sample(1)], DREAM: [{}]}, pulls=("world",))
    weights.publish("world", {"count": np.array(8)})
    learner.step()
    assert agent.count["world"] == 8 and learner.versions == {"world": 1}
