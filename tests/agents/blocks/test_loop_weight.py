from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from dreamfleet.agents.blocks.loop_weight import LoopWeight


def make_rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recurrence(of, x: Tensor, used: list[int]) -> Tensor:
    """Returns a loss on some steps of a recurrence. `of` multiplies by the recurrent weight."""
    h, loss = torch.zeros_like(x[0]), x.new_zeros(())
    for t in range(len(x)):
        h = torch.tanh(of(h) + x[t])
        if t in used:
            loss = loss + (h * (1 + t)).square().sum()
    return loss


@pytest.mark.parametrize("used", [[0, 1, 2, 3, 4], [1, 3], [0], []])
@pytest.mark.parametrize("blocks", [(), (3,)])
def test_the_gradient_of_a_loop_weight_is_that_of_a_plain_loop(blocks, used):
    rng = make_rng(0)
    weight = torch.randn(*blocks, 4, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, *blocks, 2, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(
        recurrence(LoopWeight(weight).of, x, used) + 0 * (weight.sum() + x.sum()), [weight, x]
    )
    expected = torch.autograd.grad(
        recurrence(lambda h: h @ weight, x, used) + 0 * (weight.sum() + x.sum()), [weight, x]
    )
    torch.testing.assert_close(found, expected)


def test_two_loops_with_one_weight_add_their_gradients():
    rng = make_rng(0)
    weight = torch.randn(4, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(2, 5, 2, 4, generator=rng, dtype=torch.float64)
    steps = [0, 1, 2, 3, 4]
    loss = recurrence(LoopWeight(weight).of, x, steps) * recurrence(LoopWeight(weight).of, y, steps)
    plain = recurrence(lambda h: h @ weight, x, steps) * recurrence(lambda h: h @ weight, y, steps)
    torch.testing.assert_close(*(torch.autograd.grad(value, weight) for value in (loss, plain)))


def test_a_second_pass_through_one_graph_gives_the_same_gradient():
    weight = torch.randn(4, 4, generator=make_rng(0), requires_grad=True)
    loss = recurrence(LoopWeight(weight).of, torch.ones(5, 2, 4), [2, 4])
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (again,) = torch.autograd.grad(loss, weight)
    assert torch.equal(once, again) and once.abs().max() > 0


@pytest.mark.parametrize("of_weight", [True, False])
def test_the_states_of_a_loop_are_freed_with_its_graph(of_weight):
    """Without this, each update would leave its states in memory."""
    weight = torch.randn(4, 4, generator=make_rng(0), requires_grad=True)
    start = torch.zeros(2, 4, requires_grad=True)
    states = []

    def run() -> None:
        loop, h = LoopWeight(weight), start
        for _ in range(4):
            h = torch.tanh(loop.of(h) + 1)
            states.append(weakref.ref(h))
        torch.autograd.grad(h.sum(), weight if of_weight else start)

    run()
    assert [state() for state in states] == [None] * 4


@pytest.mark.parametrize("blocks", [(), (3,)])
def test_the_gradient_of_a_bias_is_that_of_a_plain_loop(blocks):
    rng = make_rng(0)
    weight = torch.randn(*blocks, 4, 4, generator=rng, dtype=torch.float64)
    bias = torch.randn(*blocks, *([1] if blocks else []), 4, generator=rng, dtype=torch.float64)
    x = torch.randn(5, *blocks, 2, 4, generator=rng, dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    losses = [
        recurrence(of, x, [1, 4])
        for of in (LoopWeight(weight, bias).of, lambda h: h @ weight + bias)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    found, expected = (torch.autograd.grad(loss, parameters) for loss in losses)
    torch.testing.assert_close(found, expected)
