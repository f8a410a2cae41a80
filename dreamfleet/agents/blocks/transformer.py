"""A causal transformer with a cache of attention keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (B, heads, S, E / heads)


class Transformer(nn.Module):
    """A causal transformer: maps B sequences of T tokens (B, T, E) to outputs (B, T, E).

    An output depends on its own and on earlier tokens only. Layers normalise their input (pre-norm,
    Xiong et al. 2020). A sequence has at most `length` tokens.
    """

    def __init__(self, size: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(length, size))
        self.layers = nn.ModuleList(Layer(size, heads) for _ in range(layers))

    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Returns the outputs for `tokens`, and the attention keys and values of all tokens so far.

        past: the keys and values that an earlier call returned for the first S tokens; None if
        `tokens` begin the sequences. With a past, `tokens` must be (B, 1, E), one token per
        sequence.
        """
        begin = past[0][0].shape[2] if past else 0
        x = tokens + self.position[begin : begin + tokens.shape[1]]
        present: Past = []
        for index, layer in enumerate(self.layers):
            x, keys_values = layer(x, past[index] if past else None)
            present.append(keys_values)
        return F.layer_norm(x, x.shape[-1:]), present


class Layer(nn.Module):
    """A transformer layer: causal self-attention, then a feed-forward network, with residuals."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.feed_forward_in = nn.Linear(size, 4 * size)
        self.feed_forward_out = nn.Linear(4 * size, size)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        assert past is None or x.shape[1] == 1, "with a past, one token at a time"
        projected = self.query_key_value(F.layer_norm(x, x.shape[-1:]))
        projected = projected.unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B, heads, T, E / heads) each
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.attention_output(attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.feed_forward_in(F.layer_norm(x, x.shape[-1:])))
        return x + self.feed_forward_out(hidden), (key, value)
