from __future__ import annotations

import torch

from dreamfleet.agents.blocks.transformer import Transformer


def build() -> Transformer:
    torch.manual_seed(0)
    return Transformer(size=16, layers=2, heads=4, length=9)


def test_outputs_do_not_depend_on_later_tokens():
    net, tokens = build(), torch.randn(3, 9, 16)
    before, _ = net(tokens)
    changed = tokens.clone()
    changed[:, 5] = torch.randn(3, 16)
    after, _ = net(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.isclose(after[:, 5:], before[:, 5:]).all(-1).any()


def test_outputs_with_a_cache_equal_outputs_of_one_call():
    net, tokens = build(), torch.randn(3, 9, 16)
    at_once, _ = net(tokens)
    out, past = net(tokens[:, :4])
    found = [out]
    for t in range(4, 9):
        out, past = net(tokens[:, t : t + 1], past)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), at_once, atol=1e-5, rtol=0)


def test_outputs_depend_on_the_order_of_tokens():
    net, tokens = build(), torch.randn(3, 9, 16)
    swapped = tokens[:, [1, 0, *range(2, 9)]]
    assert not torch.allclose(net(tokens)[0][:, -1], net(swapped)[0][:, -1], atol=1e-3)
