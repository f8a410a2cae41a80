from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from dreamfleet import agents
from dreamfleet.agents.blocks.captured import WARM_UP_CALLS, CapturedFunction
from dreamfleet.contracts import ACTIONS, OBSERVATIONS, Case, Experience, assert_equal, full_state
from dreamfleet.core.types import EnvSpec
from tests.agents.fake_graph import FakeGraph

METHODS = ("update_world", "roll_out", "update_policy")
CASES = [
    Case(name, EnvSpec("Synthetic-v0", OBSERVATIONS["vector"], ACTIONS[action]))
    for name, action in (
        ("dreamer-lite", "discrete"),
        ("dreamer-lite", "continuous"),
        ("gated-rainbow", "discrete"),
        ("dreamwalker", "continuous"),
    )
]


def plain_method(agent: Any, name: str) -> Any:
    """Returns a method of an agent without the decorator `captured`."""
    return partial(getattr(type(agent), name).__wrapped__, agent)


def updates(agent: Any, steps: int) -> list[Any]:
    """Returns the results of all updates and dreams of `steps` steps of training."""
    experience, found = Experience(agent), []
    for _ in range(steps):
        world = agent.learn_world(experience.sample("world"))
        dreams = agent.dream(experience.sample("start"))
        policy = agent.learn_policy(experience.sample("policy"), dreams)
        found += [vars(world), dreams, vars(policy)]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.spec.action}")
def test_replayed_updates_and_dreams_equal_plain_ones(case: Case) -> None:
    """Replays from fixed memory: all numbers and the whole state must be bit-identical."""
    plain, replayed = case.build(), case.build()
    graphs: dict[str, FakeGraph] = {}
    for name in METHODS:
        graphs[name] = FakeGraph()
        function = plain_method(replayed, name)
        setattr(replayed, name, CapturedFunction(function, lambda graph=graphs[name]: graph))
    steps = WARM_UP_CALLS + 3
    for found, expected in zip(updates(replayed, steps), updates(plain, steps), strict=True):
        assert_equal(found, expected)
    assert_equal(full_state(replayed), full_state(plain))
    assert all(graph.replays == 3 for graph in graphs.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", agents.REGISTRY)
def test_on_a_gpu_captured_updates_and_dreams_equal_plain_ones(name: str) -> None:
    entry = agents.find(name)
    for observation in entry.observations:
        for action in entry.actions:
            spec = EnvSpec("Synthetic-v0", OBSERVATIONS[observation], ACTIONS[action])
            case = Case(name, spec, "cuda")
            plain, replayed = case.build(), case.build()
            for method in METHODS:
                setattr(plain, method, plain_method(plain, method))
            steps = WARM_UP_CALLS + 3
            pairs = zip(updates(replayed, steps), updates(plain, steps), strict=True)
            for found, expected in pairs:
                assert_equal(found, expected)
            assert_equal(full_state(replayed), full_state(plain))
            assert replayed.recorded.keys() == set(METHODS)
