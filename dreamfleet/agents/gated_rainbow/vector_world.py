"""The world model of Gated Rainbow for vector observations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import CLIP, Normaliser
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.agents.gated_rainbow.world import WorldModel
from dreamfleet.core.types import Space


class VectorWorldModel(WorldModel):
    """Predicts reward, termination, and the mean and standard deviation of each component's change.

    A dreamed change is mean + standard deviation · residual. The residual is the model's error on a
    random real step, divided by the predicted standard deviation. All components take their
    residual from the same step.
    """

    RESIDUALS = 1024  # residuals that are kept, of the newest real rows

    normaliser: Normaliser
    residuals: Tensor

    def __init__(self, config: Config, obs: Space, action_size: int) -> None:
        super().__init__(config, obs)
        size, hidden = math.prod(obs.shape), config.world_hidden
        self.normaliser = Normaliser(obs)
        self.transition = Ensemble(
            config.members,
            ((CONTEXT + 1) * size + action_size, hidden, hidden, 2 * size),
            zero_last=True,
        )
        self.outcome = MLP((2 * size + action_size, hidden, hidden, 2), zero_last=True)
        # In standard deviations of the observation.
        self.register_buffer("change_rms", torch.ones(size))
        # In predicted standard deviations of the change, the newest last. Standard normal numbers
        # stand in for residuals that are not there yet.
        self.register_buffer("residuals", torch.randn(self.RESIDUALS, size))

    def mean_square_change(self, x: Tensor, square: Tensor, mask: Tensor) -> Tensor:
        return (square * mask.unsqueeze(-1)).sum((0, 1)) / mask.sum().clamp(min=1)

    def predict(self, history: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([history.flatten(2), action], -1)
        mean, raw_log_std = self.transition(inputs).chunk(2, -1)
        return mean, -3 + 4 * torch.tanh(raw_log_std / 4)

    def predict_outcome(
        self, before: Tensor, action: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        outcome = self.outcome(torch.cat([before, action, after], -1))
        reward, terminal_logit = outcome.unbind(-1)
        return reward, terminal_logit

    def draw_next_obs(
        self, obs: Tensor, mean: Tensor, log_std: Tensor | None, rng: torch.Generator | None
    ) -> Tensor:
        assert log_std is not None
        size = mean.shape[:-1]
        if rng is not None:
            index = torch.randint(self.RESIDUALS, size, generator=rng, device=mean.device)
            mean = mean + log_std.exp() * self.residuals[index]
        change = mean * self.change_rms
        flat = self.normaliser.flatten(obs) + change * self.normaliser.deviation
        return flat.unflatten(-1, self.shape).clamp(self.low, self.high)

    def update_residuals(
        self, change: Tensor, mean: Tensor, log_std: Tensor | None, mask: Tensor
    ) -> None:
        assert log_std is not None
        residuals = ((change - mean) / log_std.exp()).flatten(0, 1)
        newest = residuals.clamp(-CLIP, CLIP)[-self.RESIDUALS :]
        oldest, kept = self.residuals.tensor_split([len(newest)])
        valid = mask.flatten()[-self.RESIDUALS :].unsqueeze(-1) > 0
        self.residuals.copy_(torch.cat([kept, torch.where(valid, newest, oldest)]))

    def replace_outliers(self, obs: Tensor) -> Tensor:
        flat = self.normaliser.replace_outliers(self.normaliser.flatten(obs))
        return flat.unflatten(-1, self.shape)

    @property
    def obs_std(self) -> float:
        return 1.0
