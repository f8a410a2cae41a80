from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import net_state


class Net(nn.Module):
    """A network with one linear layer and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("seen", torch.randn(4))


@pytest.mark.parametrize("rate", [0.0, 0.02, 1.0, torch.tensor(0.25)])
def test_parameters_of_the_slow_net_move_by_the_rate_and_buffers_are_copied(rate):
    slow, fast = Net(), Net()
    before, soft_update = net_state(slow), SoftUpdate(slow, fast)
    soft_update.step(rate)
    after, target = net_state(slow), net_state(fast)
    for name in ("linear.weight", "linear.bias"):
        expected = before[name] + float(rate) * (target[name] - before[name])
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(after["seen"], target["seen"])
    soft_update.step(rate)
    assert np.array_equal(net_state(fast)["linear.weight"], target["linear.weight"])
