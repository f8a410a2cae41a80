"""The value network: a gated body and noisy, dueling streams."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.conv import NATURE, Convolutions
from dreamfleet.agents.blocks.nets import MLP
from dreamfleet.agents.blocks.noisy import NoisyLinear
from dreamfleet.agents.blocks.normaliser import FrameNormaliser, Normaliser
from dreamfleet.agents.blocks.value_heads import CategoricalHead, MeanHead, QuantileHead, ValueHead
from dreamfleet.agents.gated_rainbow.config import CONTEXT, RANGE, Config
from dreamfleet.core.types import EnvSpec, Space

GATE_HIDDEN = 64  # units in the gate; seed 000
GATE_PIXELS = 12  # rows and columns of a frame as the gate sees it
EMBEDDING, HEADS = 32, 4  # of a transformer gate


class ValueNetwork(nn.Module):
    """Histories (B, 4, *O) → values (B, A, Z) in units of `unit`, and the gate's openness (B, F).

    The gate moves each feature of the body by a factor within [0.7, 1] (seed 000, which has one
    factor for all of them).
    """

    unit: Tensor

    def __init__(self, config: Config, spec: EnvSpec) -> None:
        super().__init__()
        hidden, actions = config.hidden, spec.action.n
        self.values = kind_of_values(config)
        self.noisy = config.noisy_sigma > 0
        self.normaliser = FrameNormaliser() if spec.obs.image else Normaliser(spec.obs)
        self.body = (FrameBody if spec.obs.image else VectorBody)(spec.obs, hidden)
        self.gate = Gate(config.gate, CONTEXT + 1, self.body.gate_size, hidden)
        self.trunk = MLP((hidden, hidden))
        self.streams = NoisyLinear(hidden, hidden, config.noisy_sigma)
        self.value = NoisyLinear(hidden // 2, self.values.size, config.noisy_sigma)
        self.advantage = NoisyLinear(hidden // 2, actions * self.values.size, config.noisy_sigma)
        self.register_buffer("unit", torch.zeros(()))  # 0: no return was seen yet

    def forward(self, history: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`noise`: what `draw` gave."""
        layers = (self.streams, self.value, self.advantage)
        sizes = [layer.noise_size for layer in layers]
        to_streams, to_value, to_advantage = (
            (None, None, None) if noise is None else noise.split(sizes, -1)
        )
        x = self.normaliser(history)  # (B, 4, O), of frames (B, 4, C, H, W)
        openness = self.gate(self.body.gate_input(x))
        features = activate(self.body(x)) * (0.7 + 0.3 * openness)
        features = activate(self.trunk(features))
        streams = F.silu(self.streams(features, to_streams)).chunk(2, -1)
        value = self.value(streams[0], to_value).unsqueeze(1)  # (B, 1, Z)
        advantage = self.advantage(streams[1], to_advantage)
        advantage = advantage.unflatten(-1, (-1, self.values.size))  # (B, A, Z)
        return value + advantage - advantage.mean(1, keepdim=True), openness

    def draw(self, rows: int, noise: torch.Generator) -> Tensor | None:
        """Noise for a pass, all layers' in one draw: the same for a batch (1) or for each row."""
        if not self.noisy:
            return None
        size = sum(layer.noise_size for layer in (self.streams, self.value, self.advantage))
        return torch.randn(rows, size, generator=noise, device=self.unit.device)

    def mean(self, values: Tensor) -> Tensor:
        """(…, Z) → expected values (…)."""
        return self.values.mean(values)

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """Multiply what is said of returns, the noise in it left out."""
        if self.values.in_return_units:
            for layer in (self.value, self.advantage):
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)

    @property
    def noisiness(self) -> Tensor:
        """The mean size of σ in the layer that tells actions apart."""
        return self.advantage.weight_sigma.detach().abs().mean()


def kind_of_values(config: Config) -> ValueHead:
    if config.value_head == "c51":
        return CategoricalHead(config.atoms, -RANGE, RANGE)
    return QuantileHead(config.quantiles) if config.value_head == "quantile" else MeanHead()


def activate(x: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x, x.shape[-1:]))


class VectorBody(nn.Linear):
    """Normalised histories (B, 4, O) → (B, F)."""

    def __init__(self, obs: Space, units: int) -> None:
        size = math.prod(obs.shape)
        super().__init__((CONTEXT + 1) * size, units)
        self.gate_size = size

    def forward(self, history: Tensor) -> Tensor:
        return super().forward(history.flatten(1))

    def gate_input(self, history: Tensor) -> Tensor:
        """What the gate reads: (B, 4, `gate_size`)."""
        return history


class FrameBody(nn.Module):
    """Histories of frames (B, 4, C, H, W) → (B, F), the four as channels of one image."""

    def __init__(self, obs: Space, units: int) -> None:
        super().__init__()
        self.gate_size = GATE_PIXELS**2 * obs.shape[-1]
        self.convolutions = Convolutions(obs, CONTEXT + 1, NATURE)
        self.features = nn.Linear(self.convolutions.size, units)

    def forward(self, history: Tensor) -> Tensor:
        return self.features(self.convolutions(history.flatten(1, 2)))

    def gate_input(self, history: Tensor) -> Tensor:
        """What the gate reads, each frame averaged to a few pixels: (B, 4, `gate_size`).

        A reading of its own, so that what opens a feature is not that feature.
        """
        small = F.adaptive_avg_pool2d(history.flatten(1, 2), GATE_PIXELS)
        return small.unflatten(1, history.shape[1:3]).flatten(2)


class Gate(nn.Module):
    """Histories (B, S, O) → the openness (B, F) of every unit, within (0, 1).

    `mlp` reads all rows at once, `transformer` attends from the newest to each of them with
    several heads, and `none` leaves every unit open.
    """

    def __init__(self, kind: str, rows: int, size: int, units: int) -> None:
        super().__init__()
        self.kind, self.units = kind, units
        if kind == "mlp":
            self.net = MLP((rows * size, GATE_HIDDEN, units))
        elif kind == "transformer":
            self.embed = nn.Linear(size, EMBEDDING)
            self.place = nn.Parameter(0.1 * torch.randn(rows, EMBEDDING))
            self.query = nn.Linear(EMBEDDING, EMBEDDING)
            self.key_value = nn.Linear(EMBEDDING, 2 * EMBEDDING)
            self.net = MLP((EMBEDDING, GATE_HIDDEN, units))

    def forward(self, history: Tensor) -> Tensor:
        if self.kind == "none":
            return torch.ones(history.shape[0], self.units, device=history.device)
        read = history.flatten(1) if self.kind == "mlp" else self._attend(history)
        return torch.sigmoid(self.net(read))

    def _attend(self, history: Tensor) -> Tensor:
        """What the newest row gathers from all of them: (B, S, O) → (B, E)."""
        rows = self.embed(history) + self.place  # (B, S, E)
        normal = F.layer_norm(rows, rows.shape[-1:])

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, S, E) → (B, heads, S, E')

        key, value = self.key_value(normal).chunk(2, -1)
        query = self.query(normal[:, -1:])
        gathered = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
        return rows[:, -1] + gathered.transpose(1, 2).flatten(1)


def gate_regulariser(openness: Tensor) -> Tensor:
    """How far units are from being half open over a batch (B, F) → scalar.

    Each unit's mean is held, not each of its values as in seed 000: a gate that tells histories
    apart costs nothing, one that is always shut, or open, does.
    """
    return (openness.mean(0) - 0.5).square().mean()


def gate_metrics(openness: Tensor) -> dict[str, Tensor]:
    """How a gate acts on a batch (B, F), in factors but for the share of saturated ones."""
    return {
        "gate/mean": 0.7 + 0.3 * openness.mean(),
        "gate/over_histories": 0.3 * openness.std(0).mean(),  # does it tell them apart?
        "gate/over_units": 0.3 * openness.mean(0).std(),
        "gate/saturated": ((openness - 0.5).abs() > 0.45).float().mean(),
    }
