"""A causal transformer that remembers what it has read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, heads, S, E / heads)


class Transformer(nn.Module):
    """Tokens (B, T, E) → what each one and those before it say, (B, T, E).

    Layers normalise what they read (Xiong et al. 2020); positions are learned, `length` of them.
    """

    def __init__(self, size: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(length, size))
        self.layers = nn.ModuleList(Layer(size, heads) for _ in range(layers))

    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """`past`: what the tokens before these left behind. → the output, and the past after it.

        Without a past, the tokens are the first. With one there is only one token, whose output is
        what it would be if all were read at once.
        """
        begin = past[0][0].shape[2] if past else 0
        x = tokens + self.place[begin : begin + tokens.shape[1]]
        now: Past = []
        for index, layer in enumerate(self.layers):
            x, memory = layer(x, past[index] if past else None)
            now.append(memory)
        return F.layer_norm(x, x.shape[-1:]), now


class Layer(nn.Module):
    """Attention to the tokens so far, then each by itself."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(size, 3 * size)
        self.gather = nn.Linear(size, size)
        self.widen = nn.Linear(size, 4 * size)
        self.narrow = nn.Linear(4 * size, size)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        assert past is None or x.shape[1] == 1, "one token at a time"
        asked = self.ask(F.layer_norm(x, x.shape[-1:])).unflatten(-1, (3, self.heads, -1))
        query, key, value = asked.permute(2, 0, 3, 1, 4)  # (B, heads, T, E / heads) each
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.gather(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(F.layer_norm(x, x.shape[-1:])))), (key, value)
