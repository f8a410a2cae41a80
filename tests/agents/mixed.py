"""A small agent for images beside vectors, and for factored actions.

It is Q-learning with one linear layer over all parts of the observation. The value of an action is
the mean of one value per factor of the action.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from dreamfleet.agents.blocks.actions import DiscreteActions, FactoredActions
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.optimizer import Optimizer
from dreamfleet.agents.blocks.rows import columns
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.core.types import Array, Batch, Consumer, EnvSpec, Feedback, Sample, TableSpec

PIXELS: Final = 997  # of so many pixels of an image, the agent sees one


@dataclass(frozen=True)
class Config:
    lr: float = 1e-2  # learning rate of Adam
    gamma: float = 0.9  # discount factor
    epsilon: float = 0.5  # probability of a random action


class MixedAgent(WeightGroups):
    """A linear Q-learning agent for all kinds of observations, and for whole-number actions."""

    Config = Config
    actions = ("discrete", "multi-discrete")
    observations = ("vector", "image", "mixed")
    act_groups = ("policy",)

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        self.config, self.spec, self.device = config, spec, resolve_device(device)
        real = {"policy": Consumer(16, window=2, samples_per_step=0.5, min_steps=20)}
        self.tables = {"real": TableSpec(2_000, columns(spec), real)}
        factored = bool(spec.action.choices)
        self.choices = spec.action.choices or (spec.action.n,)
        self.encoded = FactoredActions(spec.action) if factored else DiscreteActions(spec.action)
        size = sum(
            len(range(0, math.prod(space.shape), PIXELS if space.image else 1))
            for space in spec.observations.values()
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.values = nn.Linear(size, self.encoded.size).to(self.device)
        self.slow_values = copy.deepcopy(self.values).requires_grad_(False)
        self.optimizer = Optimizer(self.values, config.lr, max_grad_norm=10.0)
        self.act_rng = make_rng(seed, self.device)
        nets = {"values": self.values, "slow_values": self.slow_values}
        optimizers, rngs = {"values": self.optimizer}, {"act": self.act_rng}
        self.groups = {"policy": GroupState(nets, optimizers, rngs, published="values")}

    def initial_state(self, n: int) -> None:
        return None

    def inputs(self, rows: Batch) -> Tensor:
        """Returns vectors (…, size): numbers of observations, and some pixels of images."""
        parts = []
        for name, space in self.spec.observations.items():
            flat = torch.as_tensor(rows[name], device=self.device).flatten(-len(space.shape))
            parts.append(flat[..., ::PIXELS] / 127.5 - 1 if space.image else flat)
        return torch.cat(parts, -1)

    def best(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the best action and its value. values: (…, sum of all choices)."""
        factors = [part.max(-1) for part in values.split(self.choices, -1)]
        action = torch.stack([found.indices for found in factors], -1)
        value = torch.stack([found.values for found in factors], -1).mean(-1)
        return (action if self.spec.action.choices else action.squeeze(-1)), value

    @torch.no_grad()
    def act(self, rows: Batch, state: None, explore: bool) -> tuple[Array, None, Batch]:
        action, _ = self.best(self.values(self.inputs(rows)))
        if explore:
            draw = torch.rand(2, *action.shape, generator=self.act_rng, device=self.device)
            number = torch.tensor(self.choices, device=self.device)
            number = number if self.spec.action.choices else number[0]
            action = torch.where(draw[1] < self.config.epsilon, (draw[0] * number).long(), action)
        return to_array(action), state, {}

    def learn_policy(self, real: Sample, dreams: None) -> Feedback:
        rows = to_tensors(real.data, self.device)
        x = self.inputs(rows)  # (B, 2, size)
        with torch.no_grad():
            _, value = self.best(self.slow_values(x[:, 1]))
            target = rows["reward"][:, 1]
            target = target + self.config.gamma * (~rows["terminal"][:, 1]).float() * value
        taken = self.encoded.encode(rows["action"][:, 0])
        value = (self.values(x[:, 0]) * taken).sum(-1) / len(self.choices)
        loss = (value - target).square().mean()
        norm = self.optimizer.step(loss)
        return Feedback({"loss/value": loss.detach(), "grad_norm/value": norm})
