from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamfleet import agents
from dreamfleet.agents.blocks.captured import WARM_UP_CALLS, CapturedFunction, map_tensors
from dreamfleet.contracts import Case, Experience, assert_equal, full_state, specification
from dreamfleet.runtime.trial import STREAMS, Synthetic
from tests.agents.fake_graph import FakeGraph

METHODS = ("respond", "update_world", "roll_out", "update_policy")
CASES = [
    Case(name, specification("vector", action))
    for name, action in (
        ("dreamer-lite", "discrete"),
        ("dreamer-lite", "continuous"),
        ("gated-rainbow", "discrete"),
        ("dreamwalker", "continuous"),
        ("barlow-dreamer", "discrete"),
        ("barlow-dreamer", "continuous"),
    )
]

IMAGES = [
    Case(name, specification("image", "discrete")) for name in ("gated-rainbow", "barlow-dreamer")
]


def plain_method(agent: Any, name: str) -> Any:
    """Returns a method of an agent without the decorator `captured`."""
    return partial(getattr(type(agent), name).__wrapped__, agent)


def updates(agent: Any, steps: int) -> list[Any]:
    """Returns the results of all updates and dreams of `steps` steps of training, and of acting."""
    experience, found = Experience(agent), []
    env = Synthetic(agent.spec, STREAMS)
    states = {explore: agent.initial_state(env.n) for explore in (True, False)}
    for _ in range(steps):
        rows = env.rows()
        for explore in states:
            action, states[explore], extras = agent.act(rows, states[explore], explore)
            found.append({"action": action, **extras})
        env.act(action)
        world = agent.learn_world(experience.sample("world"))
        dreams = agent.dream(experience.sample("start"))
        policy = agent.learn_policy(experience.sample("policy"), dreams)
        found += [vars(world), dreams, vars(policy)]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.spec.action}")
def test_replayed_updates_and_dreams_equal_plain_ones(case: Case) -> None:
    """Replays from fixed memory: all numbers and the whole state must be bit-identical."""
    plain, replayed = case.build(), case.build()
    graphs: dict[str, list[FakeGraph]] = {name: [] for name in METHODS}

    def graph(name: str) -> FakeGraph:
        graphs[name].append(FakeGraph())
        return graphs[name][-1]

    for name in METHODS:
        function = plain_method(replayed, name)
        setattr(replayed, name, CapturedFunction(function, partial(graph, name)))
    steps = WARM_UP_CALLS + 3
    for found, expected in zip(updates(replayed, steps), updates(plain, steps), strict=True):
        assert_equal(found, expected)
    assert_equal(full_state(replayed), full_state(plain))
    acting, greedy = graphs.pop("respond")  # one graph to explore, and one for greedy actions
    assert acting.replays > greedy.replays == 3
    assert all([graph.replays for graph in made] == [3] for made in graphs.values())


class OnlyOneDevice(TorchDispatchMode):
    """Checks that all operations have tensors of the device "meta" only. Counts the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.operations += 1
        result = operation(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"meta"}, operation
        return result


class NoHostData(TorchFunctionMode):
    """Refuses the functions that make tensors from Python numbers, or that may wait for a GPU."""

    REFUSED = ("tensor", "as_tensor", "from_numpy", "new_tensor", "multinomial", "nonzero")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        assert getattr(function, "__name__", "") not in self.REFUSED, function
        return function(*args, **(kwargs or {}))


class NoGenerator:
    """Stands in for `torch.Generator`: makes None, with which random functions accept "meta"."""

    def __init__(self, device: str) -> None:
        assert device == "meta"

    def manual_seed(self, seed: int) -> None:
        pass


@pytest.mark.parametrize(
    "case",
    [*CASES, *IMAGES],
    ids=lambda case: f"{case.name}-{case.spec.obs}-{case.spec.action}",
)
def test_captured_methods_neither_wait_for_the_device_nor_copy_from_the_host(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the methods with tensors that have shapes but no numbers, so nothing can be read.

    Functions of PyTorch that do not work without numbers are replaced: generators, one of the
    initialisers, and the fused optimizer.
    """
    agent_class = agents.load(case.name)
    config = agent_class.Config()
    experience = Experience(case.build())
    monkeypatch.setattr(torch, "Generator", NoGenerator)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    monkeypatch.setattr(
        "dreamfleet.agents.blocks.optimizer.adamw", lambda p, g, *_, **__: p[0].add_(g[0])
    )
    if hasattr(config, "prioritized"):  # priorities are copied to the host after the update
        config = replace(config, prioritized=False)
    agent = agent_class(config, case.spec, 0, "meta")
    watch, on_host = OnlyOneDevice(), partial(torch.zeros_like, device="cpu")

    def watched(name: str) -> Any:
        def call(*inputs: Any) -> Any:
            with NoHostData(), watch:
                found = plain_method(agent, name)(*inputs)
            # What acting returns is copied to the host afterwards.
            return map_tensors(on_host, found) if name == "respond" else found

        return call

    for name in METHODS:
        setattr(agent, name, watched(name))
    env = Synthetic(case.spec, STREAMS)
    for explore in (True, False):
        agent.act(env.rows(), agent.initial_state(env.n), explore)
    agent.learn_world(experience.sample("world"))
    dreams = agent.dream(experience.sample("start"))
    real = experience.sample("policy")
    for given in (dreams,) if real is None else (dreams, None):
        agent.learn_policy(real, given)
    assert watch.operations > 1000


def test_reading_a_number_or_making_a_tensor_from_numbers_would_be_noticed() -> None:
    x = torch.ones(2, device="meta")
    with NoHostData(), OnlyOneDevice():
        with pytest.raises(RuntimeError, match="meta"):
            x.sum().item()
        with pytest.raises(RuntimeError, match="meta"):
            bool(x.any())
        with pytest.raises(AssertionError):
            x * torch.ones(2)
        with pytest.raises(AssertionError):
            torch.tensor([1.0, 2.0], device="meta")
        with pytest.raises(AssertionError):
            x.new_tensor([1.0, 2.0])


@pytest.mark.cuda
@pytest.mark.parametrize("name", agents.REGISTRY)
def test_on_a_gpu_captured_updates_and_dreams_equal_plain_ones(name: str) -> None:
    entry = agents.find(name)
    for observation in entry.observations:
        for action in entry.actions:
            case = Case(name, specification(observation, action), "cuda")
            plain, replayed = case.build(), case.build()
            for method in METHODS:
                setattr(plain, method, plain_method(plain, method))
            steps = WARM_UP_CALLS + 3
            pairs = zip(updates(replayed, steps), updates(plain, steps), strict=True)
            for found, expected in pairs:
                assert_equal(found, expected)
            assert_equal(full_state(replayed), full_state(plain))
            assert replayed.recorded.keys() == set(METHODS)
