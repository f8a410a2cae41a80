"""Copies and restores the weights and the training state of an agent, by weight group.

A weight group is the set of networks that one process trains: `world` or `policy`.
"""

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
    """Returns copies of the parameters and buffers of a network, as arrays by name."""
    return {name: to_array(value) for name, value in net.state_dict().items()}


def load_net(net: nn.Module, weights: Weights) -> None:
    """Copies `weights`, arrays by name, into the parameters and buffers of a network.

    A buffer that is missing from `weights` keeps its value. A missing parameter raises
    RuntimeError.
    """
    present = net.state_dict()
    buffers = {name: present[name] for name, _ in net.named_buffers() if name in present}
    net.load_state_dict({**buffers, **{name: to_tensor(value) for name, value in weights.items()}})


@dataclass(frozen=True)
class GroupState:
    """Holds the networks, optimizers and random generators of one weight group.

    A weight group is the set of networks that one process trains: `world` or `policy`. `published`
    names the network whose weights other processes need.
    """

    nets: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    rngs: Mapping[str, torch.Generator]
    published: str

    def state(self) -> dict[str, Any]:
        """Returns copies of all weights, optimizer moments and generator states of a weight group.

        A weight group is the set of networks that one process trains: `world` or `policy`.
        """
        return {
            "nets": {name: net_state(net) for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state() for name, optimizer in self.optimizers.items()},
            "rngs": {name: to_array(rng.get_state()) for name, rng in self.rngs.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores networks, optimizers and random generators from a saved copy, `state`.

        A generator keeps its own state if the saved one is from a GPU and the generator is on a
        CPU, or the reverse.
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
    """Base class of agents, with the methods that copy and restore weights and training state.

    A subclass sets `groups`, the networks, optimizers and generators of each weight group (`world`
    or `policy`, the networks that one process trains).
    """

    groups: Mapping[str, GroupState]

    def weights(self, group: str) -> Weights:
        """Returns copies of the weights that other processes need for acting or dreaming.

        group: the weight group, `world` or `policy`: the networks that one process trains.
        """
        found = self.groups[group]
        return net_state(found.nets[found.published])

    def load(self, group: str, weights: Weights) -> None:
        """Copies `weights` into this agent's networks.

        weights: what another agent's method `weights` returned for the same group. group: the
        weight group, `world` or `policy`: the networks that one process trains.
        """
        found = self.groups[group]
        load_net(found.nets[found.published], weights)

    def state(self, group: str) -> dict[str, Any]:
        """Returns copies of all networks, optimizer moments and generator states of a weight group.

        group: the weight group, `world` or `policy`: the networks that one process trains.
        """
        return self.groups[group].state()

    def restore(self, group: str, state: dict[str, Any]) -> None:
        """Restores a weight group (networks, optimizers, generators) from a saved copy, `state`.

        group: `world` or `policy`, the networks that one process trains.
        """
        self.groups[group].restore(state)
