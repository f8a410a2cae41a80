from __future__ import annotations

import pytest
import torch

from dreamfleet.agents.blocks.actions import action_kind
from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.core.types import Space

DISCRETE = Space((), "int64", n=3)
CONTINUOUS = Space((2,), "float32")
B, T, LATENT = 4, 6, 5


def given(space: Space):
    """A critic with weights that say something, latents, actions taken and a policy."""
    kind, noise = action_kind(space), make_rng(0, "cpu")
    critic = kind.critic(LATENT, hidden=8)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(generator=noise)
    z = torch.randn(B, T, LATENT, generator=noise)
    stats = torch.randn(B, T, kind.policy_outputs, generator=noise).requires_grad_()
    policy = kind.policy(stats, noise)
    return kind, critic, z, policy.sampled[0].detach(), stats, policy


def test_discrete_actions_enter_a_network_as_one_of_n():
    code = action_kind(DISCRETE).encode(torch.tensor([[0, 2], [1, 1]]))
    assert code.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 1, 0]]]
    assert code.dtype == torch.float32


def test_a_discrete_critic_values_every_choice_by_its_lower_network():
    _, critic, z, action, _, policy = given(DISCRETE)
    taken, options = critic(z, action, policy)
    assert taken.shape == (2, B, T)
    assert options.shape == (B, T, 3)
    for b in range(B):
        for t in range(T):
            each = critic.net(z[b, t].expand(2, 1, -1))[:, 0]  # (2, A)
            torch.testing.assert_close(options[b, t], each.min(0).values)
            torch.testing.assert_close(taken[:, b, t], each[:, action[b, t]])


def test_a_continuous_critic_values_the_draw_by_its_lower_network():
    _, critic, z, action, _, policy = given(CONTINUOUS)
    taken, options = critic(z, action * 0.5, policy)
    assert taken.shape == (2, B, T)
    assert options.shape == (B, T, 1)

    def each(b: int, t: int, choice: torch.Tensor) -> torch.Tensor:
        return critic.net(torch.cat([z[b, t], choice]).expand(2, 1, -1))[:, 0, 0]  # (2,)

    for b in range(B):
        for t in range(T):
            torch.testing.assert_close(options[b, t, 0], each(b, t, policy.sampled[0][b, t]).min())
            torch.testing.assert_close(taken[:, b, t], each(b, t, action[b, t] * 0.5))


@pytest.mark.parametrize("space", [DISCRETE, CONTINUOUS])
def test_improving_the_policy_does_not_flatter_the_critic(space):
    _, critic, z, action, stats, policy = given(space)
    taken, options = critic(z, action, policy)
    policy.policy_loss(options, 0.1).sum().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert stats.grad is not None and stats.grad.any()
    taken.sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
