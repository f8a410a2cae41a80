"""Tests of the losses of actor and critic against DreamerV3's recursions, number by number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dreamfleet.agents.barlow_dreamer.agent import BarlowDreamer
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Batch
from tests.agents.barlow_dreamer.system import CONTINUOUS, VECTOR, build_agent, draw_rows, dream

SPECS = pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])


def lambda_returns(
    reward: list[float],
    live: list[float],
    last: list[bool],
    boot: list[float],
    gamma: float,
    lam: float,
) -> list[float]:
    """Returns DreamerV3's λ-returns of all rows but the last, by its recursion.

    live: the probability that the episode continues at a row. boot: the values to bootstrap from.
    """
    found = [boot[-1]]
    for t in reversed(range(len(reward) - 1)):
        trace = lam * (1 - last[t + 1])
        following = (1 - trace) * boot[t + 1] + trace * found[0]
        found.insert(0, reward[t + 1] + gamma * live[t + 1] * following)
    return found[:-1]


FLAGS = ("reward", "last", "terminal")


def perturb(agent: BarlowDreamer) -> None:
    """Makes all outputs of the networks differ from 0 and from their initial values."""
    rng = torch.Generator().manual_seed(7)
    for net in (agent.behaviour, agent.slow_critic, agent.world):
        for parameter in net.parameters():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=rng)


def draw_dreams(agent: BarlowDreamer) -> Batch:
    rows = draw_rows(agent)
    _, latents, _ = agent.update_world(rows)
    return dream(agent, rows, latents)


@pytest.mark.parametrize("seed", range(3))
def test_returns_of_real_rows_are_dreamerv3s(seed):
    """The loss at logits that are all equal but one shows the target itself: compare the loss."""
    agent = build_agent(gamma=0.9, lam=0.7, slow_critic_weight=0.4)
    rng = torch.Generator().manual_seed(seed)
    B, T, bins = 5, 8, agent.config.sizes.bins
    logits = torch.randn(B, T, bins, generator=rng)
    slow, boot, reward = torch.randn(3, B, T, generator=rng)
    last = torch.rand(B, T, generator=rng) < 0.3
    terminal = last & (torch.rand(B, T, generator=rng) < 0.5)
    rows = {"reward": reward, "last": last, "cont": (~terminal).float()}
    found = agent.replay_value_loss(logits, slow, boot, rows)
    losses, number = [], agent.critic.number
    for b in range(B):
        returns = lambda_returns(
            reward[b].tolist(),
            rows["cont"][b].tolist(),
            last[b].tolist(),
            boot[b].tolist(),
            0.9,
            0.7,
        )
        for t in range(T - 1):
            loss = number.loss(logits[b, t], torch.tensor(returns[t]))
            loss = loss + 0.4 * number.loss(logits[b, t], slow[b, t])
            losses.append(0.0 if last[b, t] else loss.item())
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@SPECS
def test_losses_on_dreams_are_dreamerv3s(spec):
    agent = build_agent(spec, gamma=0.9, lam=0.7, entropy_weight=0.02, dream_horizon=4, lr=0.0)
    perturb(agent)
    dreams = draw_dreams(agent)
    n, config, number = len(dreams["reward"]), agent.config, agent.critic.number
    dreams["reward"] += 3 * torch.randn(dreams["reward"].shape)
    features = agent.restored(dreams).features
    with torch.no_grad():
        logits, slow = agent.critic(features), agent.slow_critic.mean(features)
        value = number.mean(logits)
        policy = agent.actions.policy(agent.actor(features), None)
        log_prob, entropy = policy.log_prob(dreams["action"]), policy.entropy()
    horizon = config.dream_horizon
    assert value.abs().max() > 0.01 and (slow - value).abs().max() > 0.01
    returns = [
        lambda_returns(
            dreams["reward"][i].tolist(),
            dreams["cont"][i].tolist(),
            [False] * (horizon + 1),
            value[i].tolist(),
            0.9,
            0.7,
        )
        for i in range(n)
    ]
    weights = []
    for i in range(n):
        reached, row = 1.0, []
        for t in range(horizon):
            reached *= dreams["cont"][i, t].item() * (0.9 if t else 1.0)
            row.append(reached)
        weights.append(row)
    policy_loss, critic_loss = [], []
    metrics = agent.update_policy(dreams)
    unit = max(1.0, metrics["value/range"].item())
    for i in range(n):
        for t in range(horizon):
            advantage = (returns[i][t] - value[i, t].item()) / unit
            gain = log_prob[i, t].item() * advantage + 0.02 * entropy[i, t].item()
            policy_loss.append(-weights[i][t] * gain)
            loss = number.loss(logits[i, t], torch.tensor(returns[i][t]))
            loss = loss + number.loss(logits[i, t], slow[i, t])
            critic_loss.append(weights[i][t] * loss.item())
    mean = lambda x: sum(x) / len(x)  # noqa: E731
    assert metrics["loss/policy"].item() == pytest.approx(mean(policy_loss), rel=1e-3, abs=1e-5)
    assert metrics["loss/critic"].item() == pytest.approx(mean(critic_loss), rel=1e-3)
    replayed = []
    T = config.window
    for b in range(config.batch):
        row = range(b * T, (b + 1) * T)
        real = {
            name: [dreams[name][i, 0].item() for i in row] for name in ("reward", "cont", "last")
        }
        boot = [returns[i][0] for i in row]
        targets = lambda_returns(real["reward"], real["cont"], real["last"], boot, 0.9, 0.7)
        for t, i in enumerate(row[:-1]):
            loss = number.loss(logits[i, 0], torch.tensor(targets[t]))
            loss = loss + number.loss(logits[i, 0], slow[i, 0])
            replayed.append(0.0 if real["last"][t] else 0.3 * loss.item())
    assert metrics["loss/critic_replay"].item() == pytest.approx(mean(replayed), rel=1e-3)


@SPECS
def test_a_dream_has_the_predictions_of_its_states(spec):
    """Row t has the reward that arrives with state t; state t + 1 follows the action of row t."""
    agent = build_agent(spec)
    perturb(agent)
    rows = draw_rows(agent)
    _, latents, _ = agent.update_world(rows)
    starts = {name: value[:, 1:].flatten(0, 1) for name, value in rows.items() if name in FLAGS}
    dreams = dream(agent, rows, latents)
    for name in ("reward", "last"):
        assert torch.equal(dreams[name][:, 0], starts[name])
    assert torch.equal(dreams["cont"][:, 0], (~starts["terminal"]).float())
    assert not dreams["last"][:, 1:].any()
    assert torch.equal(dreams["stoch"][:, 0], latents["stoch"].flatten(0, 1))
    with torch.no_grad():
        states = agent.restored(dreams)
        features = states.features
        close = {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(
            dreams["reward"][:, 1:], agent.world.rewards(features)[:, 1:], **close
        )
        torch.testing.assert_close(
            dreams["cont"][:, 1:], agent.world.continues(features)[:, 1:], **close
        )
        noise = agent.noise(len(features), 1, None)[:, 0]
        for t in range(agent.config.dream_horizon):
            state = type(states)(states.deter[:, t], states.stoch[:, t])
            following = agent.world.rssm.imagine(state, agent.encode(dreams["action"][:, t]), noise)
            torch.testing.assert_close(following.deter, states.deter[:, t + 1], **close)


@pytest.mark.parametrize("starts", [2, 3, 6])
def test_dreams_start_from_the_last_rows_of_each_window(starts):
    agent = build_agent(dream_starts=starts)
    rows = draw_rows(agent)
    _, latents, _ = agent.update_world(rows)
    dreams = dream(agent, rows, latents)
    assert len(dreams["reward"]) == 4 * starts
    for i, (b, t) in enumerate((b, t) for b in range(4) for t in range(6 - starts, 6)):
        assert dreams["reward"][i, 0] == rows["reward"][b, 1 + t]
        assert torch.equal(dreams["deter"][i, 0].half(), latents["deter"][b, t])
    agent.update_policy(dreams)


def test_losses_at_initialisation():
    """Heads without knowledge: log(bins) for each number, the policy's entropy for the actor."""
    agent = build_agent(batch=8, window=16)
    rows = draw_rows(agent)
    metrics, latents, _ = agent.update_world(rows)
    bins = math.log(agent.config.sizes.bins)
    window = {name: rows[name][:, 1:] for name in ("last", "terminal")}
    inside = (~window["last"][:, :-1]).float().mean().item()
    assert metrics["loss/reward"].item() == pytest.approx(bins, rel=1e-5)
    # The logits of an untrained head are random numbers around 0.
    assert metrics["loss/continue"].item() == pytest.approx(0.69, abs=0.3)
    assert metrics["loss/replay_value"].item() == pytest.approx(0.3 * 2 * bins * inside, rel=1e-5)
    agent = build_agent(batch=8, window=16)
    dreams = dream(agent, rows, latents)
    weight = (0.997 * dreams["cont"]).cumprod(1)[:, :-1] / 0.997
    metrics = agent.update_policy(dreams)
    assert metrics["loss/critic"].item() == pytest.approx(2 * bins * weight.mean().item(), rel=1e-4)
    assert metrics["loss/critic_replay"].item() == pytest.approx(0.6 * bins * inside, rel=1e-5)
    expected = -3e-4 * math.log(VECTOR.action.n) * weight.mean().item()
    assert metrics["policy/entropy"].item() == pytest.approx(math.log(VECTOR.action.n), rel=1e-3)
    assert metrics["loss/policy"].item() == pytest.approx(expected, rel=0.02)
    assert metrics["value/mean"].item() == 0


def test_the_actors_gradient_is_reinforce_towards_better_actions():
    """In a dream where one action is followed by rewards, that action becomes more probable."""
    agent = build_agent(lr=1e-3)
    dreams = draw_dreams(agent)
    features = agent.restored(dreams).features[:, 0]

    def chance() -> Tensor:
        return agent.actions.policy(agent.actor(features), None).probs[:, 2].mean()

    before = chance()
    for _ in range(20):
        dreams["reward"][:, 1:] = (dreams["action"][:, :-1] == 2).float()
        agent.update_policy(dreams)
    assert chance() > before + 0.1


@pytest.mark.parametrize("value_head", ["two-hot", "hl-gauss"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_numbers_whose_sum_float32_cannot_hold_skip_no_step(value_head, precision):
    agent = build_agent(value_head=value_head, precision=precision)
    rows = draw_rows(agent)
    rows["reward"][:, 2:5], rows["reward"][0] = 3e38, -3e38
    rows["obs"][:, 3] = 3.4e38
    metrics, latents, _ = agent.update_world(rows)
    assert metrics["fault/skipped_world"] == 0
    metrics = agent.update_policy(dream(agent, rows, latents))
    assert metrics["fault/skipped_policy"] == 0
    assert all(value.isfinite() for value in metrics.values())


def test_dreams_from_one_row_per_window_are_refused():
    """The critic's loss on real rows needs a row and the next one."""
    with pytest.raises(UserError, match=r"from 2 to agent.window \(6\); found 1"):
        build_agent(dream_starts=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_slow_critic_arrives_at_a_critic_that_rests(precision):
    """Each step is too small for 16 bits."""
    agent = build_agent(precision=precision, slow_critic=0.02)
    for parameter in agent.critic.parameters():
        parameter.data *= 1.05
    for _ in range(300):
        agent.critic_soft_update.step(agent.config.slow_critic)
    for slow, fast in zip(agent.slow_critic.parameters(), agent.critic.parameters(), strict=True):
        torch.testing.assert_close(slow, fast.float(), rtol=1e-3, atol=1e-5)


@SPECS
def test_log_probabilities_have_32_bits_in_networks_of_16(spec):
    agent = build_agent(spec, precision="bfloat16")
    outputs = torch.randn(5, agent.actions.policy_outputs).bfloat16()
    low, high = (agent.actions.policy(x, None) for x in (outputs, outputs.float()))
    action = high.mode
    assert torch.equal(low.log_prob(action), high.log_prob(action))
    assert torch.equal(low.entropy(), high.entropy())


def test_the_slow_critic_follows_the_critic_after_each_update():
    agent = build_agent(slow_critic=0.25, lr=1e-2)
    before = [parameter.clone() for parameter in agent.slow_critic.parameters()]
    agent.update_policy(draw_dreams(agent))
    parts = zip(agent.slow_critic.parameters(), before, agent.critic.parameters(), strict=True)
    for slow, old, fast in parts:
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * fast)


@SPECS
def test_all_losses_are_finite_in_16_bits_and_near_those_of_32(spec):
    found = {}
    for precision in ("float32", "bfloat16"):
        agent = build_agent(spec, precision=precision)
        rows = draw_rows(agent)
        metrics, latents, _ = agent.update_world(rows)
        dreams = dream(agent, rows, latents)
        found[precision] = {**metrics, **agent.update_policy(dreams)}
    for name in ("loss/reward", "loss/continue", "loss/prior", "loss/objective", "loss/critic"):
        low, high = (found[precision][name].item() for precision in ("bfloat16", "float32"))
        assert low == pytest.approx(high, rel=0.1), name
