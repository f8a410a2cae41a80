"""A gate: from the last few observations, how open each hidden unit is."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.blocks.nets import MLP

HIDDEN = 64  # of the mlp; seed 000
EMBEDDING, HEADS = 32, 4  # of the transformer


class Gate(nn.Module):
    """Histories (B, S, O) → the openness (B, F) of every unit, within (0, 1).

    `mlp` reads all rows at once, `transformer` attends from the newest to each of them with
    several heads, and `none` leaves every unit open.
    """

    def __init__(
        self, kind: Literal["mlp", "transformer", "none"], rows: int, size: int, units: int
    ) -> None:
        super().__init__()
        self.kind, self.units = kind, units
        if kind == "mlp":
            self.net = MLP((rows * size, HIDDEN, units))
        elif kind == "transformer":
            self.embed = nn.Linear(size, EMBEDDING)
            self.place = nn.Parameter(0.1 * torch.randn(rows, EMBEDDING))
            self.query = nn.Linear(EMBEDDING, EMBEDDING)
            self.key_value = nn.Linear(EMBEDDING, 2 * EMBEDDING)
            self.net = MLP((EMBEDDING, HIDDEN, units))

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
