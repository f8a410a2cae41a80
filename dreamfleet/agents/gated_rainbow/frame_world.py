"""The world model of Gated Rainbow for image observations (frames)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.conv import Convolutions
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP
from dreamfleet.agents.blocks.normaliser import FrameNormaliser
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.agents.gated_rainbow.world import WorldModel
from dreamfleet.core.types import Space

PATCH = 4  # the pixels of a PATCH × PATCH square become channels of one position
OUTCOME_LAYERS = ((16, 8, 4), (32, 4, 2))  # channels, kernel and stride of each convolution


class FrameWorldModel(WorldModel):
    """Predicts the mean change of each pixel of a frame, the reward and the termination.

    No standard deviation is predicted. Networks read frames as (C, H, W) in [0, 1]. The error on
    held-out episodes is measured in units of the root mean square deviation of pixels from their
    mean over time.
    """

    normaliser: FrameNormaliser
    mean_frame: Tensor
    variance: Tensor

    def __init__(self, config: Config, obs: Space, action_size: int) -> None:
        super().__init__(config, obs)
        (height, width, channels), hidden = obs.shape, config.world_hidden
        self.normaliser = FrameNormaliser()
        # Members run one after the other, which on CPUs is faster than grouped convolutions.
        self.transition = nn.ModuleList(
            FrameTransition((CONTEXT + 1) * channels, channels, action_size, hidden // PATCH)
            for _ in range(config.members)
        )
        self.outcome_convolutions = Convolutions(obs, 2, OUTCOME_LAYERS)
        self.outcome = MLP(
            (self.outcome_convolutions.size + action_size, hidden, 2), zero_last=True
        )
        self.register_buffer("change_rms", torch.ones(()))
        self.register_buffer("mean_frame", torch.zeros(channels, height, width))
        self.register_buffer("variance", torch.ones(()))

    def mean_square_change(self, x: Tensor, square: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean squared change of pixels; also updates their running mean and variance.

        - x (B, C + T, *X): frames scaled to [0, 1], of B windows, each with C rows of context and T
          further rows.
        - square (B, T-1, *X): squared changes of pixels in the T-1 steps.
        - mask (B, T-1): 1 for steps whose change is averaged, else 0.
        """
        rate = self.normaliser.rate
        self.mean_frame.lerp_(x.mean((0, 1)), rate)
        self.variance.lerp_((x - self.mean_frame).square().mean(), rate)
        return masked_mean(self._mean_over_obs(square), mask)

    def predict(self, history: Tensor, action: Tensor) -> tuple[Tensor, None]:
        inputs = torch.cat(
            [
                history[:, :, -1:] / self.obs_std,
                history.diff(dim=2) / self.change_rms,
            ],
            2,
        ).flatten(2, 3)
        by_member = zip(self.transition, inputs, action, strict=True)
        return torch.stack([member(*own_inputs) for member, *own_inputs in by_member]), None

    def predict_outcome(
        self, before: Tensor, action: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        lead = action.shape[:-1]
        frames = torch.cat([before, after], -3).flatten(0, len(lead) - 1)
        inputs = torch.cat([self.outcome_convolutions(frames), action.flatten(0, -2)], -1)
        reward, terminal_logit = self.outcome(inputs).unflatten(0, lead).unbind(-1)
        return reward, terminal_logit

    def draw_next_obs(
        self, obs: Tensor, mean: Tensor, log_std: Tensor | None, rng: torch.Generator | None
    ) -> Tensor:
        """Returns the predicted next frames in whole bytes; nothing is drawn at random.

        obs: the newest frames. mean: the predicted mean changes, in units of `change_rms`. log_std
        and rng are not used; world models of vectors need them.
        """
        frame = self.normaliser.denormalise(self.normaliser(obs) + mean * self.change_rms)
        return frame.clamp(self.low, self.high).to(obs.dtype)

    @property
    def obs_std(self) -> Tensor:
        """Returns the root mean square deviation of pixels from their mean over time, a scalar."""
        return (self.variance + 1e-6).sqrt()


class FrameTransition(nn.Module):
    """A convolutional network that predicts the change of a frame.

    Maps stacked frames (B, in_channels, H, W) and encoded actions (B, A) to changes (B,
    out_channels, H, W). The network works on a grid of patches: the pixels of a patch are the
    channels of one position of the grid.
    """

    def __init__(self, in_channels: int, out_channels: int, action_size: int, width: int) -> None:
        super().__init__()
        self.embed_patches = nn.Conv2d(in_channels * PATCH**2, width, 1)
        self.embed_action = nn.Linear(action_size, width)
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.predict_patches = nn.Conv2d(width, out_channels * PATCH**2, 1)
        nn.init.zeros_(self.predict_patches.weight)
        assert self.predict_patches.bias is not None
        nn.init.zeros_(self.predict_patches.bias)

    def forward(self, frames: Tensor, action: Tensor) -> Tensor:
        height, width = frames.shape[-2:]
        padded = F.pad(frames, (0, -width % PATCH, 0, -height % PATCH))
        patches = F.pixel_unshuffle(padded, PATCH).contiguous(memory_format=torch.channels_last)
        embedded = self.embed_patches(patches) + self.embed_action(action)[:, :, None, None]
        x = F.silu(channel_norm(embedded))
        for layer in self.convolutions:
            x = x + F.silu(channel_norm(layer(x)))
        return F.pixel_shuffle(self.predict_patches(x), PATCH)[..., :height, :width]


def channel_norm(x: Tensor) -> Tensor:
    """Normalises the channels at each position of images (B, C, H, W) to mean 0 and variance 1."""
    last = x.movedim(1, -1)
    return F.layer_norm(last, last.shape[-1:], eps=1e-2).movedim(-1, 1)
