"""Taking gradient steps, and taking networks, optimisers and generators to and from arrays."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, Weights

F = TypeVar("F", bound=Callable[..., Any])

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


class Optimizer:
    """A network and its AdamW: clips the gradient norm to `clip` and steps.

    `decay` of weights a step is in units of the learning rate; 0 is plain Adam. Parameters and
    gradients lie in one piece each, so that a step is a few operations however many there are.
    What a loss does not depend on has a gradient of 0. A step whose loss or gradient is not finite
    is skipped: parameters and moments stay what they were. Skipped steps are counted on the
    device, so that nobody waits to know; `faults` reports them.
    """

    def __init__(self, net: nn.Module, lr: float, clip: float, decay: float = 0.0) -> None:
        parameters = list(net.parameters())
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self._flat, self._gradient = flat, torch.zeros_like(flat)
        pieces = flat.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data = piece.view_as(parameter)
        self._parameters = parameters
        self._lr, self._clip, self._decay = lr, clip, decay
        self._moments = {
            "step": flat.new_zeros(()),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
        self.skipped = flat.new_zeros(())  # steps
        self.skipped_in_a_row = flat.new_zeros(())

    def step(self, loss: Tensor, lr: Tensor | None = None) -> Tensor:
        """One step down `loss` → the gradient norm before clipping, not finite where it is skipped.

        lr: another rate, ().
        """
        keep_freed_memory()
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        torch.cat([gradient.flatten() for gradient in gradients], out=self._gradient)
        norm = (self._gradient @ self._gradient).sqrt()
        bad = (~(norm.isfinite() & loss.detach().isfinite())).to(norm.dtype)
        self._gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1))
        self._descend(self._lr if lr is None else lr, bad)
        self.skipped += bad
        self.skipped_in_a_row.add_(1).mul_(bad)
        return norm

    @torch.no_grad()
    def _descend(self, lr: float | Tensor, bad: Tensor) -> None:
        """As `torch.optim.AdamW` does, which imports torch's compiler: a second of a start.

        bad: 1. where the step is to be skipped, else 0.
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
                weight_decay=self._decay,
                amsgrad=False,
                maximize=False,
                fused=True,
                found_inf=bad,
            )

    def state(self) -> dict[str, Any]:
        return {name: to_array(value) for name, value in self._saved().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in self._saved().items():
            value.copy_(to_tensor(state.get(name, 0)))  # none yet, in an older checkpoint

    def _saved(self) -> dict[str, Tensor]:
        return {**self._moments, "skipped": self.skipped}


def faults(part: str, *optimizers: Optimizer) -> dict[str, Tensor]:
    """Metrics of the steps that were skipped: of all optimizers of a `part`, "world" or "policy".

    `fault/in_a_row` is the longest present row of skipped steps; `core.finite` reads it.
    """
    return {
        f"fault/skipped_{part}": torch.stack([optimizer.skipped for optimizer in optimizers]).sum(),
        "fault/in_a_row": torch.stack(
            [optimizer.skipped_in_a_row for optimizer in optimizers]
        ).max(),
    }


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what an update frees: the next one needs as much.

    glibc gives memory back to the system, and has to fetch it anew, page by page, in each update;
    that took Dreamwalker 5 to 10 % of its time.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # bytes; larger pieces are given back
        mallopt(_TRIM_THRESHOLD, 256 << 20)  # bytes at the end of the heap


@contextmanager
def no_subnormals() -> Iterator[None]:
    """Numbers below 1e-38 are 0 for this thread.

    The moments of a weight whose gradient stays 0, as a dead unit's does, fade through them, and a
    processor takes up to a hundred times as long for each.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class SoftUpdate:
    """Keeps a slow copy of a network behind it."""

    def __init__(self, slow: nn.Module, fast: nn.Module) -> None:
        self._slow: list[Tensor] = list(slow.parameters())
        self._fast: list[Tensor] = list(fast.parameters())
        self._copies, self._buffers = list(slow.buffers()), list(fast.buffers())

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Move the parameters of the slow one by `rate`, and copy the buffers."""
        if isinstance(rate, Tensor):  # stays on its device
            torch._foreach_lerp_(self._slow, self._fast, [rate] * len(self._slow))
        else:
            torch._foreach_lerp_(self._slow, self._fast, rate)
        if self._copies:
            torch._foreach_copy_(self._copies, self._buffers)


def compiled(function: F, device: str) -> F:
    """`function` of tensors, compiled by the first call: arguments keep their shapes from then on.

    Raises UserError where that cannot be.
    """
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "agent.compile needs a C++ compiler on a CPU; install g++, or leave it off."
        )

    @cache  # made when first needed, as Adam is
    def made() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return cast(F, lambda *args: made()(*args))


def masked_mean(value: Tensor, mask: Tensor) -> Tensor:
    """The mean of `value` weighted by `mask`, same shapes → scalar."""
    return (value * mask).sum() / mask.sum().clamp(min=1e-6)


def resolve(device: str) -> str:
    """`auto` is the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def make_rng(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def to_array(tensor: Tensor) -> Array:
    """A copy on the host."""
    return np.array(tensor.detach().cpu().numpy())


def to_tensor(array: Array, device: str | torch.device = "cpu") -> Tensor:
    """A tensor of its own memory."""
    return torch.tensor(np.asarray(array), device=device)


def to_tensors(batch: Batch, device: str | torch.device) -> Batch:
    """Arrays → tensors on `device`, sharing memory where they can; tensors already there stay."""
    return {name: torch.as_tensor(value, device=device) for name, value in batch.items()}


def net_state(net: nn.Module) -> Weights:
    return {name: to_array(value) for name, value in net.state_dict().items()}


def load_net(net: nn.Module, weights: Weights) -> None:
    """Take weights over. A buffer that they lack, as those of an older checkpoint do, stays."""
    present = net.state_dict()
    buffers = {name: present[name] for name, _ in net.named_buffers() if name in present}
    net.load_state_dict({**buffers, **{name: to_tensor(value) for name, value in weights.items()}})


@dataclass(frozen=True)
class GroupState:
    """All of a weight group that learning continues from; of its nets, others pull `published`."""

    nets: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    rngs: Mapping[str, torch.Generator]
    published: str

    def state(self) -> dict[str, Any]:
        return {
            "nets": {name: net_state(net) for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state() for name, optimizer in self.optimizers.items()},
            "rngs": {name: to_array(rng.get_state()) for name, rng in self.rngs.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, on another kind of device with random numbers of its own."""
        for name, net in self.nets.items():
            load_net(net, state["nets"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.restore(state["optimizers"][name])
        for name, noise in self.rngs.items():
            saved = state["rngs"][name]
            if saved.shape == noise.get_state().shape:  # else of another kind of device
                noise.set_state(to_tensor(saved))


class WeightGroups:
    """What others ask of an agent's weight groups, answered from `learning`, by group."""

    groups: Mapping[str, GroupState]

    def weights(self, group: str) -> Weights:
        of = self.groups[group]
        return net_state(of.nets[of.published])

    def load(self, group: str, weights: Weights) -> None:
        of = self.groups[group]
        load_net(of.nets[of.published], weights)

    def state(self, group: str) -> dict[str, Any]:
        return self.groups[group].state()

    def restore(self, group: str, state: dict[str, Any]) -> None:
        self.groups[group].restore(state)
