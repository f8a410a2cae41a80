"""Soft updates: a slow copy (target network) is a moving average of the trained network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftUpdate:
    """Moves the parameters of `slow`, a target network, towards those of the network `fast`."""

    def __init__(self, slow: nn.Module, fast: nn.Module) -> None:
        self._slow: list[Tensor] = list(slow.parameters())
        self._fast: list[Tensor] = list(fast.parameters())
        self._slow_buffers, self._fast_buffers = list(slow.buffers()), list(fast.buffers())

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        """Sets each parameter of a target network to (1 - rate) · slow + rate · fast.

        A target network in float32 may follow one of 16 bits, in which small changes would be lost.
        The target network's buffers become copies of the trained network's.
        """
        fast = [value.to(slow.dtype) for slow, value in zip(self._slow, self._fast, strict=True)]
        if isinstance(rate, Tensor):  # a rate on the device stays there
            torch._foreach_lerp_(self._slow, fast, [rate] * len(self._slow))
        else:
            torch._foreach_lerp_(self._slow, fast, rate)
        if self._slow_buffers:
            torch._foreach_copy_(self._slow_buffers, self._fast_buffers)
