"""Objectives: what the latents of the world model must tell about the observations.

An objective is a module that maps the features of the states (B, T, F), the encoded actions of the
same rows (B, T, A), the embeddings of the observations (B, T, E) and the rows to a loss (a scalar).
It is one line of `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.observations import Decoder
from dreamfleet.agents.blocks.rssm import MLP, truncated_normal
from dreamfleet.core.types import Batch, EnvSpec


class Widths(NamedTuple):
    """The sizes of what an objective reads."""

    features: int  # F, of the states of the RSSM
    action: int  # A, of an encoded action
    embed: int  # E, of an embedding


class Objective(Protocol):
    """Computes the loss that makes latents tell something about observations."""

    def __call__(self, features: Tensor, action: Tensor, embed: Tensor, rows: Batch) -> Tensor:
        """Returns the loss, a scalar. `action` (B, T, A): the encoded actions of the rows."""
        ...


def barlow_loss(x: Tensor, y: Tensor, weight: Tensor, redundancy_weight: float) -> Tensor:
    """Returns the Barlow Twins loss between two views of the same N rows, a scalar.

    x, y: (N, E); weight: (N,), the weights of the rows. Each of the E numbers is standardised over
    the rows. The loss is the squared distance of the cross-correlation matrix (E, E) from the
    identity; off-diagonal entries count `redundancy_weight`. Equal views give exactly 0 on the
    diagonal.

    Source: Zbontar et al. 2021, equation 1, summed as in R2-Dreamer, with the biased variance.
    """
    weight = weight.float()
    weight = (weight / weight.sum()).unsqueeze(-1)

    def standardised(view: Tensor) -> Tensor:
        view = view.float()
        centred = view - (weight * view).sum(0)
        # The root has an infinite derivative at 0.
        return centred / ((weight * centred.square()).sum(0) + 1e-16).sqrt()

    correlation = standardised(x).T @ (weight * standardised(y))
    on_diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - on_diagonal.square().sum()
    return (on_diagonal - 1).square().sum() + redundancy_weight * off_diagonal


class Barlow(nn.Module):
    """Correlates a linear projection of the latents with the embeddings of the same rows.

    No gradient reaches the embeddings through the target. Source: R2-Dreamer (2026).
    """

    def __init__(self, config: Config, spec: EnvSpec, widths: Widths) -> None:
        super().__init__()
        self.redundancy_weight = config.redundancy_weight
        self.projection = nn.Parameter(torch.empty(widths.features, widths.embed))
        truncated_normal(self.projection, widths.features)

    def forward(self, features: Tensor, action: Tensor, embed: Tensor, rows: Batch) -> Tensor:
        projected = (features @ self.projection).flatten(0, 1)
        target = embed.detach().flatten(0, 1)
        return barlow_loss(projected, target, torch.ones_like(target[:, 0]), self.redundancy_weight)


class BarlowNext(nn.Module):
    """Correlates a prediction from latent and action with the embedding of the next row.

    Rows that end an episode do not count. Source: NE-Dreamer (2026), with an MLP in place of its
    transformer; seed project 004.
    """

    def __init__(self, config: Config, spec: EnvSpec, widths: Widths) -> None:
        super().__init__()
        self.redundancy_weight = config.redundancy_weight
        self.predictor = MLP(widths.features + widths.action, config.sizes.units, widths.embed)

    def forward(self, features: Tensor, action: Tensor, embed: Tensor, rows: Batch) -> Tensor:
        predicted = self.predictor(torch.cat([features, action], -1)[:, :-1]).flatten(0, 1)
        target = embed.detach()[:, 1:].flatten(0, 1)
        inside = (~rows["last"][:, :-1]).float().flatten()
        return barlow_loss(predicted, target, inside + 1e-8, self.redundancy_weight)


class Reconstruction(nn.Module):
    """Reconstructs the observation from the latents, as DreamerV3 does."""

    def __init__(self, config: Config, spec: EnvSpec, widths: Widths) -> None:
        super().__init__()
        self.decoder = Decoder(config.sizes, spec, widths.features)

    def forward(self, features: Tensor, action: Tensor, embed: Tensor, rows: Batch) -> Tensor:
        return self.decoder.loss(features, rows)


class Nothing(nn.Module):
    """Leaves the latents to the losses of rewards, ends and values: the ablation."""

    def __init__(self, config: Config, spec: EnvSpec, widths: Widths) -> None:
        super().__init__()

    def forward(self, features: Tensor, action: Tensor, embed: Tensor, rows: Batch) -> Tensor:
        return features.new_zeros(())


OBJECTIVES: dict[str, Callable[[Config, EnvSpec, Widths], Objective]] = {
    "barlow": Barlow,
    "barlow-next": BarlowNext,
    "reconstruction": Reconstruction,
    "none": Nothing,
}
