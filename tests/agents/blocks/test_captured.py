from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dreamfleet.agents.blocks.captured import (
    MOST_GRAPHS,
    WARM_UP_CALLS,
    CapturedFunction,
    CudaGraph,
    captured,
    captured_methods,
)
from dreamfleet.agents.blocks.device import make_rng
from tests.agents.fake_graph import FakeGraph


class Counter:
    """A function of tensors with state: adds its input to a running total."""

    def __init__(self) -> None:
        self.total = torch.zeros(2)

    def __call__(self, inputs: dict[str, Any], factor: float = 1.0) -> dict[str, Any]:
        self.total += inputs["x"] * factor
        parts = {"total": self.total, "large": inputs["x"] > 1, "none": None}
        return {**parts, "nested": (inputs["x"].double().sum(), 7)}


def test_results_equal_those_of_plain_calls_and_state_changes_once_per_call():
    plain, counter = Counter(), Counter()
    recorded = CapturedFunction(counter, FakeGraph)
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for step in range(2 * WARM_UP_CALLS + 2):
        x = torch.tensor([float(step), 1.0])
        expected, found = plain({"x": x.clone()}), recorded({"x": x})
        x.fill_(-100)  # the caller may use the memory of its inputs again
        expected = {**expected, "total": expected["total"].clone()}
        if step < WARM_UP_CALLS:  # results of plain calls are the function's own tensors
            found = {**found, "total": found["total"].clone()}
        kept.append((expected, found))
        assert torch.equal(counter.total, plain.total)
    for expected, found in kept:  # no call has overwritten the results of an earlier one
        assert found.keys() == expected.keys()
        assert torch.equal(found["total"], expected["total"])
        assert torch.equal(found["large"], expected["large"])
        assert found["none"] is None
        assert found["nested"] == expected["nested"]
        assert found["nested"][0].dtype == torch.float64


def test_the_first_calls_are_warm_ups_and_one_capture_serves_all_others():
    graphs: list[FakeGraph] = []

    def graph() -> FakeGraph:
        graphs.append(FakeGraph())
        return graphs[-1]

    recorded = CapturedFunction(Counter(), graph)
    for _ in range(WARM_UP_CALLS + 5):
        recorded({"x": torch.ones(2)})
    (made,) = graphs
    assert (made.warm_ups, made.captures, made.replays) == (WARM_UP_CALLS, 1, 5)


def test_each_structure_of_inputs_has_its_own_graph_up_to_a_limit():
    graphs: list[FakeGraph] = []

    def graph() -> FakeGraph:
        graphs.append(FakeGraph())
        return graphs[-1]

    def function(x: Tensor, y: Tensor | None, factor: float) -> Tensor:
        return x * factor if y is None else x * factor + y

    recorded = CapturedFunction(function, graph)
    cases = [
        (torch.ones(2), None, 2.0),
        (torch.ones(2), torch.ones(2), 2.0),
        (torch.ones(3), None, 2.0),
        (torch.ones(2), None, 3.0),
        (torch.ones(2, dtype=torch.float64), None, 2.0),
        (torch.ones(5), torch.ones(1), 2.0),
    ]
    for _ in range(WARM_UP_CALLS + 2):
        for x, y, factor in cases:
            found = recorded(x, y, factor)
            assert torch.equal(found, function(x, y, factor))
            assert found.dtype == x.dtype
    assert [made.replays for made in graphs] == [2] * MOST_GRAPHS


def test_a_function_that_cannot_be_captured_is_called_with_one_warning():
    class Refusing(FakeGraph):
        def capture(self, run: Callable[[], list[Tensor]]) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with …")

    counter = Counter()
    recorded = CapturedFunction(counter, Refusing)
    for _ in range(WARM_UP_CALLS):
        recorded({"x": torch.ones(2)})
    with pytest.warns(RuntimeWarning, match=r"cannot be captured .* is capturing$") as warned:
        for _ in range(3):
            recorded({"x": torch.ones(2)})
    assert len(warned) == 1
    assert counter.total.tolist() == [WARM_UP_CALLS + 3] * 2


class Group(NamedTuple):
    rngs: dict[str, torch.Generator]


class Doubler:
    """An agent with one captured method, on any device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.groups = {"policy": Group({"act": make_rng(0, device), "policy": make_rng(1, device)})}
        self.total = torch.zeros(3, device=device)

    @captured
    def double(self, x: Tensor) -> Tensor:
        """Returns x, doubled."""
        noise = torch.randn(3, generator=self.groups["policy"].rngs["policy"], device=self.device)
        self.total += noise
        return 2 * x + noise


def test_on_a_cpu_a_captured_method_is_called_as_it_is():
    agent = Doubler("cpu")
    assert agent.double.__doc__ == "Returns x, doubled."
    for _ in range(WARM_UP_CALLS + 2):
        agent.double(torch.ones(3))
    assert "recorded" not in vars(agent)
    assert captured_methods(agent) == ["double"]


def test_a_copy_of_a_captured_function_has_its_own_state():
    counter = Counter()
    recorded = CapturedFunction(counter, FakeGraph)
    for _ in range(WARM_UP_CALLS + 2):
        recorded({"x": torch.ones(2)})
    copied = copy.deepcopy(recorded)
    copied({"x": torch.ones(2)})
    assert counter.total.tolist() == [WARM_UP_CALLS + 2] * 2
    assert copied.function.total.tolist() == [WARM_UP_CALLS + 3] * 2


# ---------------------------------------------------------------------------- on a GPU


@pytest.mark.cuda
def test_a_gpu_replays_the_same_random_numbers_as_plain_calls():
    agent, plain = Doubler("cuda"), Doubler("cuda")
    for step in range(2 * WARM_UP_CALLS + 2):
        x = torch.full((3,), float(step), device="cuda")
        expected = Doubler.double.__wrapped__(plain, x)  # type: ignore[attr-defined]
        assert torch.equal(agent.double(x), expected)
        assert torch.equal(agent.total, plain.total)
    assert torch.equal(
        agent.groups["policy"].rngs["policy"].get_state(),
        plain.groups["policy"].rngs["policy"].get_state(),
    )


@pytest.mark.cuda
def test_training_goes_on_if_a_gpu_cannot_capture_a_function():
    rng = make_rng(0, "cuda")

    def waits(x: Tensor) -> Tensor:
        noise = torch.rand(3, generator=rng, device="cuda")
        return x + noise if float(x.sum()) > 0 else x

    recorded = CapturedFunction(waits, lambda: CudaGraph([rng]))
    x = torch.ones(3, device="cuda")
    for _ in range(WARM_UP_CALLS):
        recorded(x)
    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        recorded(x)
    assert recorded(x).shape == (3,)
