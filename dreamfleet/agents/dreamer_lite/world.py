"""The world model of Dreamer-Lite, which predicts the latents of the next observations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import Normaliser
from dreamfleet.core.types import Space


class LatentWorldModel(nn.Module):
    """The networks of the world model: encoder, transition ensemble, reward, continue, decoder."""

    real_disagreement: Tensor  # running mean of the disagreement on real rows

    def __init__(
        self, obs: Space, action_size: int, *, latent: int, hidden: int, members: int
    ) -> None:
        super().__init__()
        size = math.prod(obs.shape)
        self.normaliser = Normaliser(obs)
        self.encoder = MLP((size, hidden, hidden, latent))  # seed project 003
        self.transition = Ensemble(
            members, (latent + action_size, hidden, hidden, 2 * latent), zero_last=True
        )
        self.reward = MLP((latent + action_size, hidden, 1), zero_last=True)
        self.cont = MLP((latent, hidden, 1), zero_last=True)
        self.decoder = MLP((latent, hidden, size))
        self.register_buffer("real_disagreement", torch.zeros(()))

    def encode(self, obs: Tensor) -> Tensor:
        """Returns the latents of observations `obs`, with L numbers along the last axis."""
        return self.encode_normalised(self.normaliser(obs))

    def encode_normalised(self, x: Tensor) -> Tensor:
        """Returns the latents of normalised observations `x`, L numbers along the last axis."""
        return unit_variance(self.encoder(x))

    def reencode(self, z: Tensor) -> Tensor:
        """Decodes latents `z` to observations, and returns the latents of these observations."""
        return self.encode_normalised(self.decoder(z))

    def predict(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation of the next latents, (M, B, L), for M members."""
        change, log_std = self.transition(torch.cat([z, action], -1)).chunk(2, -1)
        return unit_variance(z + change), -4 + 3 * torch.tanh(log_std / 3)

    def predict_with_disagreement(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the results of `predict`, and the disagreement of ensemble members, (M, B).

        The disagreement is half the mean squared difference between the means that two members
        predict for a step.
        """
        # Member m also predicts for the inputs of member m - 1.
        other_z, other_action = z.roll(1, 0), action.roll(1, 0)
        mean, log_std = self.predict(
            torch.cat([z, other_z], 1), torch.cat([action, other_action], 1)
        )
        (own, other), log_std = mean.chunk(2, 1), log_std.chunk(2, 1)[0]
        return own, log_std, 0.5 * (own - other.roll(-1, 0)).square().mean(-1)


def unit_variance(z: Tensor) -> Tensor:
    """Returns `z` with the numbers along the last axis scaled to mean 0 and variance 1."""
    return F.layer_norm(z, z.shape[-1:])


def continue_loss(logit: Tensor, continues: Tensor) -> Tensor:
    """Returns the cross-entropy of the continue head's logits with 1 (continues) or 0 (ends)."""
    return F.binary_cross_entropy_with_logits(logit.squeeze(-1), continues, reduction="none")
