"""The value network of Gated Rainbow: gated features, and noisy dueling streams."""

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
from dreamfleet.agents.gated_rainbow.config import CONTEXT, VALUE_RANGE, Config
from dreamfleet.core.types import EnvSpec, Space

GATE_HIDDEN = 64  # hidden units of the gate; seed project 000
GATE_PIXELS = 12  # the gate reads frames of GATE_PIXELS × GATE_PIXELS pixels
EMBEDDING, HEADS = 32, 4  # embedding size and attention heads of a transformer gate


class ValueNetwork(nn.Module):
    """Maps B histories to the values of all A actions, (B, A, Z), and to gate values, (B, F).

    A history is the last four observations, (B, 4, *O). Z numbers describe the return of an action:
    its mean, the logits of its atoms, or its quantiles. Returns are predicted in units of `unit`.
    The gate multiplies each of F features by a factor from 0.7 to 1.
    """

    unit: Tensor

    def __init__(self, config: Config, spec: EnvSpec) -> None:
        super().__init__()
        hidden, actions = config.hidden, spec.action.n
        self.head = value_head(config)
        self.noisy = config.noisy_sigma > 0
        self.normaliser = FrameNormaliser() if spec.obs.image else Normaliser(spec.obs)
        self.body = (FrameBody if spec.obs.image else VectorBody)(spec.obs, hidden)
        self.gate = Gate(config.gate, CONTEXT + 1, self.body.gate_size, hidden)
        self.trunk = MLP((hidden, hidden))
        self.streams = NoisyLinear(hidden, hidden, config.noisy_sigma)
        self.value = NoisyLinear(hidden // 2, self.head.size, config.noisy_sigma)
        self.advantage = NoisyLinear(hidden // 2, actions * self.head.size, config.noisy_sigma)
        self.register_buffer("unit", torch.zeros(()))  # 0 before the first update

    def forward(self, history: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns action values (B, A, Z) and gate values (B, F) for B histories.

        A is the number of actions, Z the number of outputs per action, F the number of features.
        history: (B, 4, *O). noise: standard normal numbers for the noisy layers; None means no
        noise.
        """
        layers = (self.streams, self.value, self.advantage)
        sizes = [layer.noise_size for layer in layers]
        streams_noise, value_noise, advantage_noise = (
            (None, None, None) if noise is None else noise.split(sizes, -1)
        )
        x = self.normaliser(history)  # (B, 4, O); frames: (B, 4, C, H, W)
        gate = self.gate(self.body.gate_input(x))
        features = activate(self.body(x)) * (0.7 + 0.3 * gate)
        features = activate(self.trunk(features))
        streams = F.silu(self.streams(features, streams_noise)).chunk(2, -1)
        value = self.value(streams[0], value_noise).unsqueeze(1)  # (B, 1, Z)
        advantage = self.advantage(streams[1], advantage_noise)
        advantage = advantage.unflatten(-1, (-1, self.head.size))  # (B, A, Z)
        return value + advantage - advantage.mean(1, keepdim=True), gate

    def draw_noise(self, rows: int, rng: torch.Generator) -> Tensor | None:
        """Returns standard normal numbers for all noisy layers; None if no layer is noisy.

        rows: the number of independent draws. One draw gives all inputs of a batch the same noise.
        """
        if not self.noisy:
            return None
        size = sum(layer.noise_size for layer in (self.streams, self.value, self.advantage))
        return torch.randn(rows, size, generator=rng, device=self.unit.device)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean return of each action.

        values: the network's Z outputs per action, along the last axis, which the result lacks.
        """
        return self.head.mean(values)

    @torch.no_grad()
    def set_unit(self, unit: Tensor) -> None:
        """Sets the unit of values: the network predicts returns divided by this unit.

        The last layers are rescaled, so that the predicted returns stay the same, except with the
        value head `c51`.
        """
        if self.head.in_return_units:
            factor = torch.where(self.unit > 0, self.unit / unit, 1.0)
            for layer in (self.value, self.advantage):
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)
        self.unit.copy_(unit)

    @property
    def mean_sigma(self) -> Tensor:
        """Returns the mean noise scale |σ| of the noisy layer that outputs advantages, a scalar."""
        return self.advantage.weight_sigma.detach().abs().mean()


def value_head(config: Config) -> ValueHead:
    """Returns a new value head of the kind `config.value_head`: expected, quantile or c51."""
    if config.value_head == "c51":
        return CategoricalHead(config.atoms, -VALUE_RANGE, VALUE_RANGE)
    return QuantileHead(config.quantiles) if config.value_head == "quantile" else MeanHead()


def activate(x: Tensor) -> Tensor:
    return F.silu(F.layer_norm(x, x.shape[-1:]))


class VectorBody(nn.Linear):
    """A linear layer that maps histories of vectors, (B, 4, O), to features, (B, F).

    A history is the last four normalised observations of O numbers; B is the batch size.
    """

    def __init__(self, obs: Space, units: int) -> None:
        size = math.prod(obs.shape)
        super().__init__((CONTEXT + 1) * size, units)
        self.gate_size = size

    def forward(self, history: Tensor) -> Tensor:
        return super().forward(history.flatten(1))

    def gate_input(self, history: Tensor) -> Tensor:
        """Returns what the gate reads: the normalised history itself, (B, 4, O).

        The history is the last four observations of O numbers, for a batch of B.
        """
        return history


class FrameBody(nn.Module):
    """Convolutions that map histories of frames, (B, 4, C, H, W), to features, (B, F).

    The last four frames are stacked as channels of one image.
    """

    def __init__(self, obs: Space, units: int) -> None:
        super().__init__()
        self.gate_size = GATE_PIXELS**2 * obs.shape[-1]
        self.convolutions = Convolutions(obs, CONTEXT + 1, NATURE)
        self.features = nn.Linear(self.convolutions.size, units)

    def forward(self, history: Tensor) -> Tensor:
        return self.features(self.convolutions(history.flatten(1, 2)))

    def gate_input(self, history: Tensor) -> Tensor:
        """Returns what the gate reads: the last four frames, each reduced to fewer pixels.

        history: (B, 4, C, H, W). The result has shape (B, 4, `gate_size`).
        """
        small = F.adaptive_avg_pool2d(history.flatten(1, 2), GATE_PIXELS)
        return small.unflatten(1, history.shape[1:3]).flatten(2)


class Gate(nn.Module):
    """Maps histories (B, S, O) to a gate value from 0 to 1 for each of F features, (B, F).

    A history is S observations of O numbers. kind: "mlp" reads all observations at once;
    "transformer" attends from the newest observation to all S; "none" returns 1 for each feature.
    """

    def __init__(self, kind: str, rows: int, size: int, units: int) -> None:
        super().__init__()
        self.kind, self.units = kind, units
        if kind == "mlp":
            self.net = MLP((rows * size, GATE_HIDDEN, units))
        elif kind == "transformer":
            self.embed = nn.Linear(size, EMBEDDING)
            self.position = nn.Parameter(0.1 * torch.randn(rows, EMBEDDING))
            self.query = nn.Linear(EMBEDDING, EMBEDDING)
            self.key_value = nn.Linear(EMBEDDING, 2 * EMBEDDING)
            self.net = MLP((EMBEDDING, GATE_HIDDEN, units))

    def forward(self, history: Tensor) -> Tensor:
        if self.kind == "none":
            return torch.ones(history.shape[0], self.units, device=history.device)
        x = history.flatten(1) if self.kind == "mlp" else self._attend(history)
        return torch.sigmoid(self.net(x))

    def _attend(self, history: Tensor) -> Tensor:
        """Returns the embedding (B, E) of the newest observation, after attention with a residual.

        history: (B, S, O). The newest observation attends to all S observations.
        """
        rows = self.embed(history) + self.position  # (B, S, E)
        normed = F.layer_norm(rows, rows.shape[-1:])

        def split_heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, S, E) → (B, heads, S, E')

        key, value = (split_heads(x) for x in self.key_value(normed).chunk(2, -1))
        query = split_heads(self.query(normed[:, -1:]))
        attended = F.scaled_dot_product_attention(query, key, value)
        return rows[:, -1] + attended.transpose(1, 2).flatten(1)


def gate_metrics(gate: Tensor) -> dict[str, Tensor]:
    """Returns metrics of gate values (B, F): F features for a batch of B histories.

    `gate/mean` and the two standard deviations describe the factors 0.7 + 0.3 · gate value.
    `gate/saturated` is the fraction of gate values below 0.05 or above 0.95.
    """
    return {
        "gate/mean": 0.7 + 0.3 * gate.mean(),
        "gate/std_over_histories": 0.3 * gate.std(0).mean(),
        "gate/std_over_units": 0.3 * gate.mean(0).std(),
        "gate/saturated": ((gate - 0.5).abs() > 0.45).float().mean(),
    }
