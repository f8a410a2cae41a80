"""Copies and restores the weights and the training state of an agent, by weight group.

A weight group is the set of networks that one process trains: `world` or `policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dreamfleet.agents.blocks.arrays import to_array, to_tensor, without_bfloat16
from dreamfleet.agents.blocks.optimizer import Optimizer
from dreamfleet.core.memory import ALIGNMENT
from dreamfleet.core.types import Weights
from dreamfleet.core.weights import FlatWeights


def net_state(net: nn.Module) -> FlatWeights:
    """Returns copies of the parameters and buffers of a network, as arrays by name.

    The arrays are parts of one block of memory, which one copy brings from a GPU. Parameters in
    bfloat16 become float32.
    """
    state = {
        name: without_bfloat16(value.detach()).contiguous()
        for name, value in net.state_dict().items()
    }
    pieces, begins, size = [], {}, 0
    for name, value in state.items():
        padding = value.new_zeros(-value.nbytes % ALIGNMENT, dtype=torch.uint8)
        pieces += [value.view(-1).view(torch.uint8), padding]
        begins[name], size = size, size + value.nbytes + len(padding)
    memory = torch.cat(pieces).cpu().numpy() if pieces else np.empty(0, np.uint8)
    weights = {
        name: np.ndarray(tuple(value.shape), to_numpy_dtype(value), memory, begins[name])
        for name, value in state.items()
    }
    return FlatWeights(weights, (name for name, _ in net.named_parameters()))


def to_numpy_dtype(value: torch.Tensor) -> np.dtype[Any]:
    """Returns the dtype of the array to which a tensor is converted."""
    return torch.empty(0, dtype=value.dtype).numpy().dtype


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
