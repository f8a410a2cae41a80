"""AdamW with gradient clipping, which skips steps whose loss or gradient is not finite."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from dreamfleet.agents.blocks.arrays import to_array, to_tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


class Optimizer:
    """Trains the parameters of one network by AdamW with gradient clipping.

    A step whose loss or gradient is not finite is skipped: parameters and moments keep their
    values. `skipped_step_metrics` reports the number of skipped steps.
    """

    def __init__(
        self, net: nn.Module, lr: float, max_grad_norm: float, weight_decay: float = 0.0
    ) -> None:
        """Makes an AdamW optimizer for those parameters of `net` that need gradients.

        max_grad_norm: a gradient of larger norm is scaled down to this norm. weight_decay: 0 gives
        plain Adam.
        """
        parameters = [each for each in net.parameters() if each.requires_grad]
        working = torch.cat([parameter.detach().flatten() for parameter in parameters])
        pieces = working.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data = piece.view_as(parameter)
        self._parameters = parameters
        # Parameters of 16 bits would lose small steps. The steps are taken on a copy in float32.
        self._working, flat = working, working.float()
        self._flat, self._gradient = flat, torch.zeros_like(flat)
        self._lr, self._max_grad_norm, self._weight_decay = lr, max_grad_norm, weight_decay
        self._moments = {
            "step": flat.new_zeros(()),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
        self.skipped = flat.new_zeros(())  # steps
        self.skipped_in_a_row = flat.new_zeros(())

    def step(self, loss: Tensor | Iterable[Tensor], lr: Tensor | None = None) -> Tensor:
        """Takes one gradient step on `loss`; returns the gradient norm before clipping.

        loss: a scalar, or several whose gradients are added up. An iterator of losses may compute
        each when it is asked for it, so that only one needs memory at a time. lr: a learning rate
        for this step alone, as a scalar tensor; None means the learning rate of the constructor.
        """
        keep_freed_memory()
        losses = iter([loss] if isinstance(loss, Tensor) else loss)
        total = self._add_gradient(next(losses), first=True)
        for more in losses:
            total = total + self._add_gradient(more, first=False)
        norm = (self._gradient @ self._gradient).sqrt()
        not_finite = (~(norm.isfinite() & total.isfinite())).to(norm.dtype)
        self._gradient.mul_((self._max_grad_norm / (norm + 1e-6)).clamp(max=1))
        self._update(self._lr if lr is None else lr, not_finite)
        if self._working is not self._flat:
            self._working.copy_(self._flat)
        self.skipped += not_finite
        self.skipped_in_a_row.add_(1).mul_(not_finite)
        return norm

    def _add_gradient(self, loss: Tensor, first: bool) -> Tensor:
        """Adds the gradient of `loss` to the step's gradient. Returns the loss without a graph."""
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        flat = [gradient.flatten() for gradient in gradients]
        if not first:
            self._gradient += torch.cat(flat)
        elif self._working is self._flat:
            torch.cat(flat, out=self._gradient)
        else:
            self._gradient.copy_(torch.cat(flat))  # one conversion from 16 bits for all
        return loss.detach()

    @torch.no_grad()
    def _update(self, lr: float | Tensor, not_finite: Tensor) -> None:
        """Updates the parameters as `torch.optim.AdamW` does, unless `not_finite` is 1.

        not_finite: 1 if the loss or the gradient is not finite, else 0.
        """
        with no_subnormals():
            adamw(
                [self._flat],
                [self._gradient],
                [self._moments["exp_avg"]],
                [self._moments["exp_avg_sq"]],
                [],
                [self._moments["step"]],
                lr=lr,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=self._weight_decay,
                amsgrad=False,
                maximize=False,
                fused=True,
                found_inf=not_finite,
            )

    def state(self) -> dict[str, Any]:
        """Returns copies of Adam's moments and of the number of skipped steps."""
        return {name: to_array(value) for name, value in self._saved().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores Adam's moments and the number of skipped steps from a saved copy, `state`.

        An entry that is missing from `state` becomes 0, but the parameters stay as they are: the
        network has been restored before.
        """
        self._flat.copy_(self._working)
        for name, value in self._saved().items():
            if name != "parameters" or name in state:
                value.copy_(to_tensor(state.get(name, 0)))

    def _saved(self) -> dict[str, Tensor]:
        precise = {} if self._working is self._flat else {"parameters": self._flat}
        return {**self._moments, **precise, "skipped": self.skipped}


def skipped_step_metrics(part: str, *optimizers: Optimizer) -> dict[str, Tensor]:
    """Returns metrics that count the gradient steps skipped by the given optimizers.

    part: "world" or "policy", the part of the agent that the optimizers train. `fault/skipped_PART`
    is the total number of skipped steps. `fault/in_a_row` is the largest number of steps that one
    optimizer has skipped since its last good step.
    """
    return {
        f"fault/skipped_{part}": torch.stack([optimizer.skipped for optimizer in optimizers]).sum(),
        "fault/in_a_row": torch.stack(
            [optimizer.skipped_in_a_row for optimizer in optimizers]
        ).max(),
    }


@cache
def keep_freed_memory() -> None:
    """Makes the C library (glibc) keep freed memory for the next update.

    By default glibc returns freed memory to the system, and each update has to fetch it again.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # bytes; larger blocks are still returned
        mallopt(_TRIM_THRESHOLD, 256 << 20)  # bytes at the end of the heap


@contextmanager
def no_subnormals() -> Iterator[None]:
    """Makes the current thread round numbers below 1e-38 to 0 inside a `with` block.

    Such tiny numbers are called subnormal; arithmetic with them is up to a hundred times slower.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
