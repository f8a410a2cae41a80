"""Convolutional layers for image observations (frames)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space

Layer = tuple[int, int, int]  # output channels, kernel, stride
NATURE: tuple[Layer, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # Mnih et al. 2015


class Convolutions(nn.Module):
    """Convolutional layers with ReLU: maps stacks of frames to feature vectors.

    Maps (B, `frames` · C, H, W) to (B, F), where the attribute `size` is F. Raises UserError unless
    the frames of the observation space `obs` are bytes (uint8) and large enough for the layers.
    """

    def __init__(self, obs: Space, frames: int, layers: Sequence[Layer]) -> None:
        super().__init__()
        height, width, channels = obs.shape
        smallest = 1
        for _, kernel, stride in reversed(layers):
            smallest = (smallest - 1) * stride + kernel
        if obs.dtype != "uint8" or min(height, width) < smallest:
            raise UserError(
                f"frames must be uint8 and at least {smallest} × {smallest}; "
                f"found {obs.dtype} {height} × {width}."
            )
        for _, kernel, stride in layers:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        outputs = [out for out, _, _ in layers]
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, out, kernel, stride)
            for (inputs, out), (_, kernel, stride) in zip(
                pairwise([frames * channels, *outputs]), layers, strict=True
            )
        )
        self.size = outputs[-1] * height * width

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.flatten(1)
