"""Weights and training state of an agent, by weight group, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dreamfleet.agents.blocks.arrays import to_array, to_tensor
from dreamfleet.agents.blocks.optimizer import Optimizer
from dreamfleet.core.types import Weights


def net_state(net: nn.Module) -> Weights:
    """Returns copies of the parameters and buffers of a network, by name."""
    return {name: to_array(value) for name, value in net.state_dict().items()}


def load_net(net: nn.Module, weights: Weights) -> None:
    """Copies weights into the parameters and buffers of a network.

    A buffer that `weights` lacks keeps its value. Raises RuntimeError for a missing parameter.
    """
    present = net.state_dict()
    buffers = {name: present[name] for name, _ in net.named_buffers() if name in present}
    net.load_state_dict({**buffers, **{name: to_tensor(value) for name, value in weights.items()}})


@dataclass(frozen=True)
class GroupState:
    """The networks, optimizers and generators of one weight group.

    Training of the group continues from their state. `published` names the network whose weights
    the other processes pull.
    """

    nets: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    rngs: Mapping[str, torch.Generator]
    published: str

    def state(self) -> dict[str, Any]:
        """Returns copies of all parameters, buffers, moments and generator states."""
        return {
            "nets": {name: net_state(net) for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state() for name, optimizer in self.optimizers.items()},
            "rngs": {name: to_array(rng.get_state()) for name, rng in self.rngs.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Copies a result of `state` back into the networks, optimizers and generators.

        A generator keeps its own state if the saved state is of another kind of device: a CPU
        cannot continue the random numbers of a GPU.
        """
        for name, net in self.nets.items():
            load_net(net, state["nets"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.restore(state["optimizers"][name])
        for name, rng in self.rngs.items():
            saved = state["rngs"][name]
            if saved.shape == rng.get_state().shape:
                rng.set_state(to_tensor(saved))


class WeightGroups:
    """Base class of agents that implements `weights`, `load`, `state` and `restore`.

    The agent lists its weight groups in `groups`.
    """

    groups: Mapping[str, GroupState]

    def weights(self, group: str) -> Weights:
        """Returns copies of the published weights of a group."""
        found = self.groups[group]
        return net_state(found.nets[found.published])

    def load(self, group: str, weights: Weights) -> None:
        """Copies published weights of a group into this agent."""
        found = self.groups[group]
        load_net(found.nets[found.published], weights)

    def state(self, group: str) -> dict[str, Any]:
        """Returns a copy of the whole training state of a group."""
        return self.groups[group].state()

    def restore(self, group: str, state: dict[str, Any]) -> None:
        """Copies a training state of a group back into this agent."""
        self.groups[group].restore(state)
