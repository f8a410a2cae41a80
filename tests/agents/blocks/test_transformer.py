from __future__ import annotations

import torch

from dreamfleet.agents.blocks.transformer import Transformer


def build() -> Transformer:
    torch.manual_seed(0)
    return Transformer(size=16, layers=2, heads=4, length=9)


def test_nothing_is_told_of_what_comes_later():
    net, tokens = build(), torch.randn(3, 9, 16)
    before, _ = net(tokens)
    changed = tokens.clone()
    changed[:, 5] = torch.randn(3, 16)
    after, _ = net(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.isclose(after[:, 5:], before[:, 5:]).all(-1).any()


def test_what_it_remembers_stands_for_what_it_read():
    net, tokens = build(), torch.randn(3, 9, 16)
    at_once, _ = net(tokens)
    read, past = net(tokens[:, :4])
    found = [read]
    for t in range(4, 9):
        read, past = net(tokens[:, t : t + 1], past)
        found.append(read)
    torch.testing.assert_close(torch.cat(found, 1), at_once, atol=1e-5, rtol=0)


def test_the_order_of_tokens_counts():
    net, tokens = build(), torch.randn(3, 9, 16)
    swapped = tokens[:, [1, 0, *range(2, 9)]]
    assert not torch.allclose(net(tokens)[0][:, -1], net(swapped)[0][:, -1], atol=1e-3)
