"""Encodes observations of one or several parts, and decodes them from latents.

Images pass through convolutions, the vector part through an MLP. An embedding is the results of all
parts, concatenated: (…, E). Source: DreamerV3 and the public code of R2-Dreamer.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamfleet.agents.barlow_dreamer.config import Config, Size
from dreamfleet.agents.blocks.rssm import MLP, Linear, Norm, NormedLinear, truncated_normal
from dreamfleet.agents.blocks.two_hot import symexp, symlog
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Batch, EnvSpec, Space

MULTIPLES = (2, 3, 4, 4)  # channels of the convolutions, in units of `depth`
KERNEL = 5
HALVINGS = len(MULTIPLES)
MAX_BYTE = 255.0


class Encoder(nn.Module):
    """Embeds observations: maps the columns of the observation (…, *O) to (…, E).

    The attribute `size` is E.
    """

    def __init__(self, config: Config, spec: EnvSpec) -> None:
        super().__init__()
        sizes, self.recompute = config.sizes, config.checkpoint
        self.parts = nn.ModuleDict()
        self.size = 0
        for name, space in parts(spec).items():
            if space.image:
                part: nn.Module = ImageEncoder(sizes.depth, space, config.halving == "stride")
                self.size += _cells(space) * MULTIPLES[-1] * sizes.depth
            else:
                widths = [math.prod(space.shape), *[sizes.units] * sizes.layers]
                part = nn.Sequential(*(NormedLinear(a, b) for a, b in pairwise(widths)))
                self.size += sizes.units
            self.parts[_key(name)] = part

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the columns of the observation."""
        return tuple(map(_name, self.parts))

    def forward(self, rows: Batch) -> Tensor:
        embeddings = []
        dtype = next(self.parameters()).dtype
        for key, part in self.parts.items():
            x = rows[_name(key)]
            if isinstance(part, ImageEncoder):
                lead, flat = x.shape[:-3], x.flatten(0, -4)
                if self.recompute and torch.is_grad_enabled():
                    flat = checkpoint(part, flat, use_reentrant=False)
                else:
                    flat = part(flat)
                embeddings.append(flat.unflatten(0, lead))
            else:
                embeddings.append(part(symlog(x.float()).to(dtype)))
        return torch.cat(embeddings, -1)


class ImageEncoder(nn.Module):
    """Four convolutions that halve the image: maps frames (N, H, W, C) to (N, E).

    strided: whether the convolutions halve it themselves. Otherwise max-pooling follows each.
    """

    def __init__(self, depth: int, space: Space, strided: bool) -> None:
        super().__init__()
        self.strided = strided
        channels = [space.shape[-1], *(depth * multiple for multiple in MULTIPLES)]
        stride = 2 if strided else 1
        self.convolutions = nn.ModuleList(_convolution(a, b, stride) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(map(Norm, channels[1:]))

    def forward(self, frames: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        x = (frames.float() / MAX_BYTE - 0.5).to(dtype).permute(0, 3, 1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            x = x if self.strided else F.max_pool2d(x, 2)
            x = F.silu(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)  # channels stay innermost
        return x.permute(0, 2, 3, 1).flatten(1)


class Decoder(nn.Module):
    """Decodes features of latents (…, F) to the columns of the observation."""

    def __init__(self, sizes: Size, spec: EnvSpec, features: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict()
        for name, space in parts(spec).items():
            if space.image:
                part: nn.Module = ImageDecoder(sizes.depth, space, features)
            else:
                hidden = [sizes.units] * sizes.layers
                part = MLP(features, *hidden, math.prod(space.shape))
            self.parts[_key(name)] = part

    def forward(self, features: Tensor) -> Batch:
        """Returns the decoded columns: images as bytes (float32), vectors in their own unit."""
        out: Batch = {}
        for key, part in self.parts.items():
            x = part(features).float()
            image = isinstance(part, ImageDecoder)
            out[_name(key)] = (x * MAX_BYTE).clamp(0, MAX_BYTE) if image else symexp(x)
        return out

    def loss(self, features: Tensor, rows: Batch) -> Tensor:
        """Returns the squared error per row, a scalar, with pixels in [0, 1] and vectors in symlog.

        The error is summed over the numbers of an observation, and is the mean over rows.
        """
        losses = []
        for key, part in self.parts.items():
            x, target = part(features).float(), rows[_name(key)].float()
            target = target / MAX_BYTE if isinstance(part, ImageDecoder) else symlog(target)
            lead = features.ndim - 1
            losses.append((x - target).square().flatten(lead).sum(-1).mean())
        return torch.stack(losses).sum()


class ImageDecoder(nn.Module):
    """Maps features (…, F) to frames (…, H, W, C) in [0, 1], by convolutions and upsampling."""

    def __init__(self, depth: int, space: Space, features: int) -> None:
        super().__init__()
        height, width, channels = space.shape
        self.cells = (height >> HALVINGS, width >> HALVINGS)
        first = MULTIPLES[-1] * depth
        self.dense = Linear(features, math.prod(self.cells) * first)
        sizes = [first, *(depth * multiple for multiple in reversed(MULTIPLES[:-1])), channels]
        self.norms = nn.ModuleList(map(Norm, sizes[:-1]))
        self.convolutions = nn.ModuleList(_convolution(a, b) for a, b in pairwise(sizes))

    def forward(self, features: Tensor) -> Tensor:
        x = self.dense(features.flatten(0, -2)).unflatten(-1, (*self.cells, -1))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(x)).permute(0, 3, 1, 2)
            x = convolution(F.interpolate(x, scale_factor=2.0)).permute(0, 2, 3, 1)
        return torch.sigmoid(x.float()).unflatten(0, features.shape[:-1])


def parts(spec: EnvSpec) -> dict[str, Space]:
    """Returns the columns of an observation. Raises UserError for images that cannot be halved.

    The sides of an image must be multiples of 16, and its pixels bytes.
    """
    found = dict(spec.observations)
    for space in found.values():
        if space.image and (
            space.dtype != "uint8" or any(side % 2**HALVINGS for side in space.shape[:2])
        ):
            raise UserError(
                f"barlow-dreamer needs images of uint8 whose sides are multiples of "
                f"{2**HALVINGS}; {spec.env_id} has {space}. Set env.size=64 for an Atari game, or "
                "wrap the environment in gymnasium's ResizeObservation."
            )
    return found


def _cells(space: Space) -> int:
    return (space.shape[0] >> HALVINGS) * (space.shape[1] >> HALVINGS)


def _key(name: str) -> str:
    return name.replace(".", ":")  # names of modules have no dots


def _name(key: str) -> str:
    return key.replace(":", ".")


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, KERNEL, stride, padding=KERNEL // 2)
    truncated_normal(layer.weight, inputs * KERNEL**2)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
