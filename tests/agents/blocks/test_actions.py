from __future__ import annotations

import pytest
import torch

from dreamfleet.agents.blocks.actions import FactoredActions, action_kind
from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.core.types import Space

DISCRETE = Space((), "int64", n=3)
CONTINUOUS = Space((2,), "float32")
B, T, LATENT = 4, 6, 5


def build(space: Space):
    """Returns a critic with random weights, latents, actions taken, and a policy at the latents."""
    kind, rng = action_kind(space), make_rng(0, "cpu")
    critic = kind.critic(LATENT, hidden=8)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(generator=rng)
    z = torch.randn(B, T, LATENT, generator=rng)
    stats = torch.randn(B, T, kind.policy_outputs, generator=rng).requires_grad_()
    policy = kind.policy(stats, rng)
    return kind, critic, z, policy.sampled[0].detach(), stats, policy


def test_discrete_actions_are_encoded_as_one_hot_vectors():
    one_hot = action_kind(DISCRETE).encode(torch.tensor([[0, 2], [1, 1]]))
    assert one_hot.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 1, 0]]]
    assert one_hot.dtype == torch.float32


def test_a_discrete_critic_returns_the_lower_value_of_every_action():
    _, critic, z, action, _, policy = build(DISCRETE)
    q_taken, q_candidates = critic(z, action, policy)
    assert q_taken.shape == (2, B, T)
    assert q_candidates.shape == (B, T, 3)
    for b in range(B):
        for t in range(T):
            values = critic.net(z[b, t].expand(2, 1, -1))[:, 0]  # (2, A)
            torch.testing.assert_close(q_candidates[b, t], values.min(0).values)
            torch.testing.assert_close(q_taken[:, b, t], values[:, action[b, t]])


def test_a_continuous_critic_returns_the_lower_value_of_the_sample():
    _, critic, z, action, _, policy = build(CONTINUOUS)
    q_taken, q_candidates = critic(z, action * 0.5, policy)
    assert q_taken.shape == (2, B, T)
    assert q_candidates.shape == (B, T, 1)

    def values(b: int, t: int, a: torch.Tensor) -> torch.Tensor:
        return critic.net(torch.cat([z[b, t], a]).expand(2, 1, -1))[:, 0, 0]  # (2,)

    for b in range(B):
        for t in range(T):
            torch.testing.assert_close(
                q_candidates[b, t, 0], values(b, t, policy.sampled[0][b, t]).min()
            )
            torch.testing.assert_close(q_taken[:, b, t], values(b, t, action[b, t] * 0.5))


FACTORED = Space((3,), "int64", choices=(3, 2, 4))


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
def test_a_factored_action_is_encoded_as_one_one_hot_vector_per_factor(lead):
    kind, rng = FactoredActions(FACTORED), make_rng(0, "cpu")
    action = torch.stack(
        [torch.randint(n, lead, generator=rng) for n in FACTORED.choices], -1
    )  # (*lead, 3)
    factors = [
        torch.nn.functional.one_hot(action[..., i], n) for i, n in enumerate(FACTORED.choices)
    ]
    assert kind.size == 9
    encoded = kind.encode(action)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, torch.cat(factors, -1).float())


def test_the_last_choices_of_all_factors_are_encoded_in_place():
    encoded = FactoredActions(FACTORED).encode(torch.tensor([2, 1, 3]))
    assert encoded.tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1]


def test_encoding_a_factored_action_reads_no_value_on_the_host():
    """Tensors of the device `meta` have no values, so that any use of a value would fail."""
    action = torch.zeros(4, 5, 3, dtype=torch.int64, device="meta")
    encoded = FactoredActions(FACTORED).encode(action)
    assert encoded.shape == (4, 5, 9) and encoded.device == action.device


@pytest.mark.parametrize("space", [DISCRETE, CONTINUOUS])
def test_the_policy_loss_has_no_gradient_to_the_critic(space):
    _, critic, z, action, stats, policy = build(space)
    q_taken, q_candidates = critic(z, action, policy)
    policy.policy_loss(q_candidates, 0.1).sum().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert stats.grad is not None and stats.grad.any()
    q_taken.sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
