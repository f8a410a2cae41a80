"""The world of vector observations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import CLIP, Normaliser
from dreamfleet.agents.gated_rainbow.world import WorldModel
from dreamfleet.core.types import Space


class VectorWorldModel(WorldModel):
    """Changes as means and deviations, each number in units of its own typical change. X = (O,).

    What a change differs by from its mean is drawn as it was in some real row, for all numbers at
    once: in units of their deviations. So numbers that move together in real rows do so in dreams.
    """

    RESIDUALS = 1024  # of the newest real rows

    normaliser: Normaliser
    residuals: Tensor

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
        size = math.prod(obs.shape)
        self.normaliser = Normaliser(obs)
        self.transition = Ensemble(
            members,
            ((context + 1) * size + action_size, hidden, hidden, 2 * size),
            zero_last=True,
        )
        self.outcome = MLP((2 * size + action_size, hidden, hidden, 2), zero_last=True)
        self.register_buffer("change_rms", torch.ones(size))  # in deviations of the observation
        # In deviations of the change, the newest last; standard normal until there are real ones.
        self.register_buffer("residuals", torch.randn(self.RESIDUALS, size))

    def mean_square_change(self, x: Tensor, square: Tensor, inside: Tensor) -> Tensor:
        return (square * inside.unsqueeze(-1)).sum((0, 1)) / inside.sum().clamp(min=1)

    def predict(self, history: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        asked = torch.cat([history.flatten(2), code], -1)
        mean, spread = self.transition(asked).chunk(2, -1)
        return mean, -3 + 4 * torch.tanh(spread / 4)

    def predict_outcome(self, before: Tensor, code: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        reward, end = self.outcome(torch.cat([before, code, after], -1)).unbind(-1)
        return reward, end

    def draw(
        self, now: Tensor, mean: Tensor, log_std: Tensor | None, noise: torch.Generator
    ) -> Tensor:
        assert log_std is not None
        drawn = torch.randint(self.RESIDUALS, mean.shape[:-1], generator=noise, device=mean.device)
        change = (mean + log_std.exp() * self.residuals[drawn]) * self.change_rms
        obs = self.normaliser.flatten(now) + change * self.normaliser.deviation
        return obs.unflatten(-1, self.shape).clamp(self.low, self.high)

    def update_residuals(
        self, change: Tensor, mean: Tensor, log_std: Tensor | None, counts: Tensor
    ) -> None:
        assert log_std is not None
        found = (
            ((change - mean) / log_std.exp()).flatten(0, 1).clamp(-CLIP, CLIP)[-self.RESIDUALS :]
        )
        oldest, kept = self.residuals.tensor_split([len(found)])
        real = counts.flatten()[-self.RESIDUALS :].unsqueeze(-1) > 0
        self.residuals.copy_(torch.cat([kept, torch.where(real, found, oldest)]))

    def replace_outliers(self, obs: Tensor) -> Tensor:
        flat = self.normaliser.replace_outliers(self.normaliser.flatten(obs))
        return flat.unflatten(-1, self.shape)

    @property
    def unit(self) -> float:
        return 1.0
