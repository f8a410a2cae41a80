"""The world model: encoder, RSSM, objective, and the heads of rewards and continues."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.objectives import OBJECTIVES, Widths
from dreamfleet.agents.barlow_dreamer.observations import Encoder
from dreamfleet.agents.blocks.rssm import MLP, PLAIN, RSSM, Cell, RSSMState
from dreamfleet.agents.blocks.two_hot import NUMBER_HEADS, NumberHead
from dreamfleet.core.types import Batch, EnvSpec


class WorldLoss(NamedTuple):
    """The loss of the world model on B windows of T rows."""

    terms: dict[str, Tensor]  # weighted terms by name, scalars
    priority: Tensor  # (B,) the part of the loss that belongs to each window
    states: RSSMState  # (B, T, …) sampled from the posterior
    metrics: dict[str, Tensor]

    def detached(self) -> WorldLoss:
        """Returns the same numbers without a graph."""
        terms = {name: term.detach() for name, term in self.terms.items()}
        return WorldLoss(terms, self.priority, self.states.detached(), self.metrics)


def joined(losses: Sequence[WorldLoss]) -> WorldLoss:
    """Returns the losses on parts of a batch as the loss on the whole batch."""
    if len(losses) == 1:
        return losses[0]
    first = losses[0]
    states = zip(*(loss.states for loss in losses), strict=True)
    return WorldLoss(
        {name: torch.stack([loss.terms[name] for loss in losses]).mean() for name in first.terms},
        torch.cat([loss.priority for loss in losses]),
        RSSMState(*map(torch.cat, states)),
        {k: torch.stack([loss.metrics[k] for loss in losses]).mean() for k in first.metrics},
    )


class WorldModel(nn.Module):
    """The networks of the world model.

    Rows are columns (B, T, …), and T rows follow the row to which the state before them belongs.
    """

    number: NumberHead  # the representation of rewards

    def __init__(self, config: Config, spec: EnvSpec, action_size: int) -> None:
        super().__init__()
        self.config, sizes = config, config.sizes
        self.encoder = Encoder(config, spec)
        self.rssm = RSSM(
            sizes.deter, sizes.hidden, sizes.groups, sizes.classes, action_size, self.encoder.size
        )
        barlow = config.objective.startswith("barlow")
        self.target_encoder = (
            copy.deepcopy(self.encoder).requires_grad_(False)
            if barlow and config.target_encoder == "initial"
            else None
        )
        features = self.rssm.features
        self.number = NUMBER_HEADS[config.value_head](sizes.bins)
        self.reward = MLP(features, sizes.units, sizes.bins, scale=0.0)
        self.cont = MLP(features, sizes.units, 1)
        objective = OBJECTIVES[config.objective]
        widths = Widths(features, action_size, self.encoder.size)
        self.objective = objective(config, spec, widths)
        self.cell = PLAIN  # of the updates and dreams

    def observe(
        self,
        rows: Batch,
        previous_action: Tensor,
        state: RSSMState,
        noise: Tensor,
        cell: Cell = PLAIN,
    ) -> tuple[RSSMState, Tensor, Tensor]:
        """Returns the posterior states (B, T, …) of rows, their logits, and the embeddings.

        previous_action (B, T, A): the encoded actions of the rows before. state (B, …): the state
        of the row before the first. noise (B, T, S, K): numbers from the exponential distribution.
        cell: the functions of a step of the RSSM.
        """
        embed = self.encoder(rows)
        first = rows["first"].to(embed.dtype)
        states, logits = self.rssm.observe(embed, previous_action, first, state, noise, cell)
        return states, logits, embed

    def loss(
        self,
        rows: Batch,
        action: Tensor,
        state: RSSMState,
        noise: Tensor,
    ) -> WorldLoss:
        """Returns the loss of the world model on B windows of T rows.

        action (B, 1 + T, A): the encoded actions of the row before and of the rows. The other
        arguments are as in `observe`.
        """
        config = self.config
        states, posterior, embed = self.observe(rows, action[:, :-1], state, noise, self.cell)
        features = states.features
        prior = self.rssm.prior_logits(states.deter)
        kl_prior = self.rssm.kl(posterior.detach(), prior)
        kl_posterior = self.rssm.kl(posterior, prior.detach())
        continues = (~rows["terminal"]).float()
        reward = self.number.loss(self.reward(features), rows["reward"])
        cont = F.binary_cross_entropy_with_logits(
            self.cont(features).float().squeeze(-1), continues, reduction="none"
        )
        per_row = {
            "loss/prior": config.prior_weight * kl_prior.clamp(min=config.free_nats),
            "loss/posterior": config.posterior_weight * kl_posterior.clamp(min=config.free_nats),
            "loss/reward": reward,
            "loss/continue": cont,
        }
        target = embed if self.target_encoder is None else self.target_encoder(rows)
        objective = config.objective_weight * self.objective(features, action[:, 1:], target, rows)
        terms = {name: value.mean() for name, value in per_row.items()}
        terms["loss/objective"] = objective
        metrics = {
            "model/kl": kl_prior.detach().mean(),
            "model/posterior_entropy": self.rssm.entropy(posterior.detach()).mean(),
        }
        per_window = torch.stack(list(per_row.values())).detach().sum(0).mean(1)
        return WorldLoss(terms, per_window, states, metrics)

    def rewards(self, features: Tensor) -> Tensor:
        """Returns the predicted rewards (…) that arrive with rows of features (…, F)."""
        return self.number.mean(self.reward(features))

    def continues(self, features: Tensor) -> Tensor:
        """Returns the predicted probabilities (…) that the episode goes on at rows (…, F)."""
        return torch.sigmoid(self.cont(features).float()).squeeze(-1)
