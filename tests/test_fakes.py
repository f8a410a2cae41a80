"""Tests that the fakes have the methods that the protocols require."""

import pickle

import numpy as np

from dreamfleet.core.types import Agent, Replay, VectorEnv
from tests.fakes import FakeAgent, FakeEnv, FakeReplay, SharingAgent, sample


def test_fakes_have_every_member_of_their_protocol():
    for fake, protocol in (
        (FakeAgent(), Agent),
        (SharingAgent(), Agent),
        (FakeReplay(), Replay),
        (FakeEnv(), VectorEnv),
    ):
        members = {name for name in vars(protocol) if not name.startswith("_")}
        members |= set(protocol.__annotations__)
        assert all(hasattr(fake, name) for name in members)


def test_fakes_can_be_pickled():
    agent = pickle.loads(pickle.dumps(FakeAgent()))
    agent.learn_policy(sample(1), {})
    assert agent.weights("policy")["count"] == 1
    replay = pickle.loads(pickle.dumps(FakeReplay({("real", "policy"): [sample(1)]})))
    assert replay.sample("real", "policy") is not None
    env = pickle.loads(pickle.dumps(FakeEnv()))
    assert env.reset()["first"].all()


def test_weights_and_state_of_the_fake_agent_are_copies():
    agent = FakeAgent()
    before = agent.weights("world"), agent.state("world")
    agent.learn_world(sample(1))
    assert before == ({"count": np.array(0)}, {"count": 0})
    agent.restore("world", before[1])
    assert agent.count["world"] == 0
