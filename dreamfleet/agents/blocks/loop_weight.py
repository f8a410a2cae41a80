"""Linear layers of a recurrent loop, whose gradients are computed after the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LoopWeight:
    """A linear layer that a loop uses at every step; its gradient is one product after the loop.

    In a plain loop, each of T steps adds a product of small matrices to the gradient of the weight,
    and a sum to that of the bias. Here the steps only keep their inputs and output gradients.

    weight: (in, out), or (G, in, out) for a layer of G blocks. bias: (out,), or (G, 1, out); None
    for a layer without.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []  # of each step: input and output gradient
        self._weight, self._bias = _CollectGradients.apply(weight, bias, self._steps)

    def of(self, x: Tensor) -> Tensor:
        """Returns the outputs for inputs `x`: (B, in) → (B, out), blocks in front."""
        found: Tensor = _LoopProduct.apply(x, self._weight, self._bias, self._steps)
        return found


class _CollectGradients(torch.autograd.Function):
    """Passes weight and bias on, and computes their gradients after the last step of the loop."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, steps: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.steps, ctx.bias_shape = steps, None if bias is None else bias.shape
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.steps:
            return None, None, None
        x, g = (torch.cat(part, -2) for part in zip(*ctx.steps, strict=True))  # ([G,] T * B, …)
        ctx.steps.clear()  # a second pass through the same graph collects anew
        of_bias = None if ctx.bias_shape is None else g.sum(-2).view(ctx.bias_shape)
        return x.transpose(-1, -2) @ g, of_bias, None


class _LoopProduct(torch.autograd.Function):
    """A step's outputs, whose backward pass leaves the gradients of the layer for later."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        steps: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        # With its graph, which leads here, `x` would never be freed.
        ctx.steps.append((x.detach(), gradient))
        return _linear(gradient, weight.transpose(-1, -2), None), None, None, None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x @ weight + bias.

    Outputs (G, B, out) of blocks lie in memory as (B, G, out), so that merging the blocks copies
    nothing.
    """
    if weight.ndim == 2:
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    blocks, rows, _ = x.shape
    out = x.new_empty(rows, blocks, weight.shape[-1]).transpose(0, 1)
    if bias is None:
        return torch.bmm(x, weight, out=out)
    return torch.baddbmm(bias, x, weight, out=out)
