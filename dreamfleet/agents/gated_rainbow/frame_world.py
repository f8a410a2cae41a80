"""The world of frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.conv import Convolutions
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP
from dreamfleet.agents.blocks.normaliser import Pixels
from dreamfleet.agents.gated_rainbow.world import WorldModel
from dreamfleet.core.types import Space

CELL = 4  # rows and columns of pixels that are predicted from one place
PAIR = ((16, 8, 4), (32, 4, 2))  # layers that see what happened between two frames


class FrameWorldModel(WorldModel):
    """Changes of all pixels, in one unit and without a spread. X = (C, H, W), within [0, 1].

    A spread of single pixels would be a blur or a flicker; that members disagree is what is drawn
    from. The error is in the mean deviation of a pixel from its own mean.
    """

    normaliser: Pixels
    mean_frame: Tensor
    variance: Tensor

    def __init__(
        self,
        obs: Space,
        action_size: int,
        *,
        context: int,
        members: int,
        hidden: int,
        horizon: int,
    ) -> None:
        super().__init__(obs, context=context, members=members, horizon=horizon)
        height, width, channels = obs.shape
        self.normaliser = Pixels()
        # One after the other: on CPUs that is faster than grouped convolutions.
        self.transition = nn.ModuleList(
            Motion((context + 1) * channels, channels, action_size, hidden // CELL)
            for _ in range(members)
        )
        self.pair = Convolutions(obs, 2, PAIR)
        self.outcome = MLP((self.pair.size + action_size, hidden, 2), zero_last=True)
        self.register_buffer("change_rms", torch.ones(()))
        self.register_buffer("mean_frame", torch.zeros(channels, height, width))
        self.register_buffer("variance", torch.ones(()))

    def mean_square_change(self, x: Tensor, square: Tensor, inside: Tensor) -> Tensor:
        rate = self.normaliser.rate
        self.mean_frame.lerp_(x.mean((0, 1)), rate)
        self.variance.lerp_((x - self.mean_frame).square().mean(), rate)
        return masked_mean(self._each(square), inside)

    def predict(self, history: Tensor, code: Tensor) -> tuple[Tensor, None]:
        seen = torch.cat(
            [
                history[:, :, -1:] / self.unit,
                history.diff(dim=2) / self.change_rms,
            ],
            2,
        ).flatten(2, 3)
        asked = zip(self.transition, seen, code, strict=True)
        return torch.stack([member(frames, mine) for member, frames, mine in asked]), None

    def predict_outcome(self, before: Tensor, code: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        lead = code.shape[:-1]
        pair = torch.cat([before, after], -3).flatten(0, len(lead) - 1)
        seen = torch.cat([self.pair(pair), code.flatten(0, -2)], -1)
        reward, end = self.outcome(seen).unflatten(0, lead).unbind(-1)
        return reward, end

    def draw(
        self, now: Tensor, mean: Tensor, log_std: Tensor | None, noise: torch.Generator
    ) -> Tensor:
        frame = self.normaliser.back(self.normaliser(now) + mean * self.change_rms)
        return frame.clamp(self.low, self.high).to(now.dtype)

    @property
    def unit(self) -> Tensor:
        """The root mean square deviation of a pixel from its own mean."""
        return (self.variance + 1e-6).sqrt()


class Motion(nn.Module):
    """Stacked frames (B, C, H, W) and codes (B, A) → the change of the next one (B, C', H, W).

    Cells of pixels become channels and back, so that nothing is blurred on the way; in between each
    cell looks two cells around. It starts with no change.
    """

    def __init__(self, entering: int, leaving: int, action_size: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(entering * CELL**2, width, 1)
        self.act = nn.Linear(action_size, width)
        self.around = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.leave = nn.Conv2d(width, leaving * CELL**2, 1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, frames: Tensor, code: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        filled = F.pad(frames, (0, -width % CELL, 0, -height % CELL))
        cells = F.pixel_unshuffle(filled, CELL).contiguous(memory_format=torch.channels_last)
        x = F.silu(normal(self.enter(cells) + self.act(code)[:, :, None, None]))
        for layer in self.around:
            x = x + F.silu(normal(layer(x)))
        return F.pixel_shuffle(self.leave(x), CELL)[..., :height, :width]


def normal(x: Tensor) -> Tensor:
    """Each place's channels brought to mean 0 and variance 1: (B, C, H, W)."""
    last = x.movedim(1, -1)
    return F.layer_norm(last, last.shape[-1:], eps=1e-2).movedim(-1, 1)
