from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.quantiles import quantile_huber
from dreamfleet.agents.blocks.returns import n_step
from dreamfleet.agents.blocks.value_heads import project
from dreamfleet.agents.gated_rainbow.agent import FORWARD_PASSES, GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, PRIORITY_OFFSET
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Sample
from dreamfleet.replay_server.server import ReplayServer
from tests.agents.gated_rainbow.system import HEADS, SMALL, Swing, build_agent, n_step_returns
from tests.runs import train

# ----------------------------------------------------------------------------------- losses


def test_the_categorical_projection_matches_the_paper():
    rng = np.random.default_rng(0)
    support = np.linspace(-2, 3, 11)
    prob = rng.dirichlet(np.ones(11), 6)
    reward, discount = rng.normal(0, 2, 6), np.array([0.9, 0.5, 0.0, 0.99, 1.0, 0.9])
    reward[4] = 0.0  # each atom is projected onto itself
    expected = np.zeros_like(prob)
    for b in range(6):
        for j in range(11):
            place = (np.clip(reward[b] + discount[b] * support[j], -2, 3) + 2) / 0.5
            for i in range(11):
                expected[b, i] += prob[b, j] * max(0.0, 1 - abs(place - i))
    found = project(*map(torch.tensor, (prob, reward, discount, support)))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_quantile_loss_and_its_gradient_match_the_paper():
    rng = np.random.default_rng(0)
    theta, target = rng.normal(0, 2, (4, 5)), rng.normal(0, 2, (4, 7))

    def loss(theta: Array) -> Array:
        total = np.zeros(4)
        for b in range(4):
            for i in range(5):
                for j in range(7):
                    u = target[b, j] - theta[b, i]
                    huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                    total[b] += abs((i + 0.5) / 5 - (u < 0)) * huber / 7
        return total

    given = torch.tensor(theta, requires_grad=True)
    found = quantile_huber(given, torch.tensor(target))
    np.testing.assert_allclose(found.detach(), loss(theta))
    (gradient,) = torch.autograd.grad(found.sum(), given)
    for i in range(5):
        moved = np.eye(5)[i] * 1e-6
        slope = (loss(theta + moved) - loss(theta - moved)) / 2e-6
        np.testing.assert_allclose(gradient[:, i], slope, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_n_step_returns_stop_at_the_end_of_an_episode(n):
    rng = np.random.default_rng(0)
    last = rng.random((200, n + 1)) < 0.25
    last[:, 0] = False
    terminal = last & (rng.random(last.shape) < 0.5)
    rows = {
        "reward": rng.normal(size=last.shape).astype(np.float32),
        "last": last,
        "terminal": terminal,
    }
    found = n_step(*(torch.tensor(rows[key]) for key in ("reward", "last", "terminal")), 0.9)
    for one, expected in zip(found, n_step_returns(rows, n, 0.9), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_td_losses_use_double_q_targets_that_bootstrap_where_the_return_ends(head):
    """Compares the losses with the results of a plain loop over windows.

    The online and the target network have different weights.
    """
    agent = build_agent(value_head=head, noisy_sigma=0.0, n_step=3, gamma=0.9)
    with torch.no_grad():
        for net, seed in ((agent.online, 1), (agent.target, 2)):
            net.unit.fill_(2.0)
            for parameter in net.parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    sample = Swing(edge=0.8).windows(40, 4)
    sample.data["terminal"] = sample.data["last"] & (np.arange(40)[:, None] % 2 == 0)
    rows = {key: value[:, CONTEXT:] for key, value in sample.data.items()}
    loss, td_error, _, value = agent.td_losses(to_tensors(sample.data, "cpu"), None)
    total, steps, discount = n_step_returns({**rows, "reward": rows["reward"] / 2}, 3, 0.9)
    assert len(set(steps)) > 1
    assert (discount == 0).any()
    same_selection = []
    for b in range(40):
        obs = torch.tensor(sample.data["obs"][b])

        def output(net: Any, row: int, obs: Any = obs) -> Any:
            with torch.no_grad():
                return net(obs[row : row + 4].unsqueeze(0))[0][0]  # (A, Z)

        taken = output(agent.online, 0)[rows["action"][b, 0]]
        best = int(agent.online.mean(output(agent.online, steps[b])).argmax())
        same_selection.append(
            best == int(agent.online.mean(output(agent.target, steps[b])).argmax())
        )
        following = output(agent.target, steps[b])[best]
        mean = agent.online.mean
        expected = total[b] + discount[b] * float(mean(following))
        assert float(value[b]) == pytest.approx(float(mean(taken)), abs=1e-5)
        assert float(td_error[b]) == pytest.approx(abs(expected - float(mean(taken))), abs=1e-4)
        target = (torch.tensor([float(total[b])]), torch.tensor([float(discount[b])]))
        expected_loss = agent.online.head.loss(taken[None], following[None], *target)
        assert float(loss[b].detach()) == pytest.approx(float(expected_loss), abs=1e-4)
    assert not all(same_selection)  # else the test would not notice a single Q-learning target


# ----------------------------------------------------------------------------- prioritization


def test_importance_weights_are_inverse_probabilities_to_the_power_beta():
    agent = build_agent(beta_steps=100.0)
    prob = np.array([0.5, 0.25, 0.01, 0.1])
    relative_prob = torch.tensor(20 * prob)
    for updates, beta in ((0, 0.4), (50, 0.7), (300, 1.0)):
        agent.schedules.updates.fill_(updates)
        expected = (1 / (20 * prob)) ** beta
        found = agent.importance_weights(relative_prob)
        np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-5)


def test_alpha_rises_and_falls_in_agent_steps():
    agent = build_agent(alpha_steps=(100.0, 300.0), policy_updates_per_step=0.5)
    for updates, alpha in ((0, 0.5), (25, 0.6), (50, 0.7), (125, 0.55), (200, 0.4), (900, 0.4)):
        agent.schedules.updates.fill_(updates)
        assert float(agent.schedules.alpha) == pytest.approx(alpha, abs=1e-5)


@pytest.mark.parametrize("updates", [0, 100, 10_000])
def test_sampling_probabilities_follow_the_alpha_of_the_update(updates):
    """The sampling probabilities in the replay are proportional to |δ|^α, with the TD error δ."""
    agent = build_agent(alpha_steps=(100.0, 300.0), dream_share=0.0, batch=32)
    real = agent.tables["real"]
    replay = ReplayServer({"real": real}, 0)
    system = Swing()
    data = system.windows(1, 35).data
    data["first"][:, 0] = True
    data["episode_return"] = data["discounted_return"]
    for name in ("reward", "discounted_return", "episode_return"):
        data[name] = data[name].astype(np.float32)
    assert replay.add("real", data, np.arange(1))
    table = replay._tables["real"]  # sampled without its limiter, which waits for 500 steps
    view = table._views["policy"]
    slots = np.flatnonzero(view.starts.flags[:64])
    windows = view.gather(table._rows.windows(slots, CONTEXT, agent.config.n_step + 1))
    keys = table._ring.keys_at(slots)
    agent.schedules.updates.fill_(updates)
    alpha = float(agent.schedules.alpha)
    agent.update_value_unit(
        torch.tensor(windows["discounted_return"]), torch.tensor(windows["reward"])
    )
    state = agent.state("policy")
    feedback = agent.learn_policy(Sample(windows, keys, np.full(len(keys), 0.1), 10), None)
    agent.restore("policy", state)  # to compute the errors with the same noise
    noise = agent.online.draw_noise(FORWARD_PASSES, agent.policy_rng)
    agent.online.normaliser.update(*(torch.tensor(windows[key]) for key in ("obs", "reward")))
    td_error = agent.td_losses(to_tensors(windows, "cpu"), noise)[1].detach().numpy()
    np.testing.assert_allclose(
        feedback.rows["priority"], (td_error + PRIORITY_OFFSET) ** alpha, rtol=0.05
    )
    replay.update("real", keys, feedback.rows)
    expected = feedback.rows["priority"] / feedback.rows["priority"].sum()
    np.testing.assert_allclose(view.selector.probability(slots), expected, rtol=1e-6)


def test_without_prioritized_replay_all_weights_are_1_and_no_priorities_are_returned():
    agent = build_agent(prioritized=False, dream_share=0.0)
    feedback = agent.learn_policy(Swing().windows(50, 4), None)
    assert feedback.rows == {}
    assert agent.importance_weights(torch.tensor([0.9, 1.8, 6.3])).eq(1).all()


# ------------------------------------------------------- unit of values and learning rate


@pytest.mark.parametrize("head", ["expected", "quantile"])
def test_a_larger_return_changes_the_unit_and_not_the_predicted_returns(head):
    agent, history = build_agent(value_head=head), torch.randn(6, 4, 2)
    agent.update_value_unit(torch.tensor([3.0]), torch.ones(1))
    before = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    agent.update_value_unit(torch.tensor([-60.0]), torch.ones(1))
    after = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    assert float(agent.online.unit) == pytest.approx(20)
    torch.testing.assert_close(before, after)


def test_the_learning_rate_is_halved_when_returns_stop_improving():
    schedules = build_agent(lr_patience=10, lr_critic=1e-3).schedules
    for step in range(5):
        schedules.count_update(torch.tensor([100.0 + step, 10.0 * step]))
    assert float(schedules.lr) == pytest.approx(1e-3)
    for _ in range(25):
        schedules.count_update(torch.tensor([105.0, 40.0]))
    assert float(schedules.lr) == pytest.approx(2.5e-4)


def test_negative_returns_can_improve():
    schedules = build_agent(lr_patience=10).schedules
    schedules.count_update(torch.tensor([0.0, 0.0]))
    for step in range(3):
        schedules.count_update(torch.tensor([10.0 + step, -100.0 + 10 * step]))
    assert float(schedules.updates_since_best) == 0
    assert float(schedules.mean_return) == -80


def test_the_learning_rate_is_not_halved_with_few_episodes():
    schedules = build_agent(lr_patience=10, lr_critic=1e-3).schedules
    for _ in range(50):
        schedules.count_update(torch.tensor([3.0, 7.0]))
    assert float(schedules.lr) == pytest.approx(1e-3)


def test_the_mean_return_is_that_of_the_last_100_episodes(tmp_path):
    """Compares the metric `learn/mean_return` with the episodes in metrics.jsonl."""
    train_config = TrainConfig(eval_every=0, log_every=1, chunk=1)
    options = {**SMALL, "warmup": 100, "dream_share": 0.0}
    run = train(
        tmp_path / "run",
        "CartPole-v1",
        260,
        options=options,
        agent="gated-rainbow",
        train=train_config,
    )
    returns: list[float] = []
    pairs = []
    for event in run.events:
        if event["kind"] == "episode":
            returns.append(event["return"])
        elif event["kind"] == "learn":
            pairs.append((event["learn/mean_return"], np.mean(returns[-100:])))
    assert len(pairs) > 100
    # The metric may be a few rows behind.
    assert np.mean([found == pytest.approx(expected) for found, expected in pairs]) > 0.9


@pytest.mark.parametrize("outlier", [1e6, -1e20, 3e38])
def test_an_outlying_reward_does_not_change_the_unit_of_values(outlier):
    """One update gets an outlier as a reward, another update as a discounted return."""
    agent, system = build_agent(dream_share=0.0), Swing()
    for _ in range(3):
        agent.learn_policy(system.windows(50, 4), None)
    before = float(agent.online.unit)
    for column in ("reward", "discounted_return"):
        windows = system.windows(50, 4)
        windows.data[column][7, CONTEXT + 1] = outlier
        metrics = agent.learn_policy(windows, None).metrics
        assert all(np.isfinite(float(value)) for value in metrics.values())
    assert float(agent.online.unit) == pytest.approx(before, rel=0.2)
    rows = {"obs": np.zeros((1, 2), np.float32), "first": np.array([False])}
    rows["reward"] = np.array([outlier], np.float32)
    extras = agent.act(rows, agent.initial_state(1), explore=True)[2]
    bound = 10 * float(agent.online.normaliser.reward_rms)
    assert abs(extras["episode_return"][0]) == pytest.approx(bound, rel=1e-5)
    assert abs(extras["discounted_return"][0]) == pytest.approx(bound, rel=1e-5)


# ------------------------------------------------------------------- probe environments


PROBE = {
    **SMALL,
    "warmup": 40,
    "dream_after": 40,
    "dream_horizon": 2,
    "epsilon_half_life": 100.0,
    "world_updates_per_step": 1.0,
    "max_model_error": 1.0,
}


def first_values(agent: GatedRainbow, obs: list[float]) -> list[float]:
    """Returns the value of the best action at the first row of an episode, for each observation."""
    history = torch.tensor(obs).view(-1, 1, 1).expand(-1, 4, 1)
    with torch.no_grad():
        values = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    return values.max(-1).values.tolist()


@pytest.mark.parametrize(
    ("env", "obs", "expected"),
    [
        ("Constant", [0.0], [1.0]),
        ("ObsReward", [-1.0, 1.0], [-1.0, 1.0]),
        ("Delayed", [0.0], [0.5]),
    ],
)
def test_it_learns_the_discounted_value(tmp_path, env, obs, expected):
    options = {**PROBE, "gamma": 0.5, "slow_critic": 0.05, "dream_share": 0.0}
    run = train(
        tmp_path / "run",
        f"dreamfleet.envs.probe:{env}-v0",
        300,
        options=options,
        agent="gated-rainbow",
    )
    assert first_values(run.agent(), obs) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("head", "share"), [("expected", 0.3), ("c51", 0.3), ("quantile", 0.0)])
def test_it_learns_the_best_action_for_each_observation(tmp_path, head, share):
    options = {**PROBE, "value_head": head, "dream_share": share, "slow_critic": 0.05}
    env = "dreamfleet.envs.probe:ObsActionReward-v0"
    train_config = TrainConfig(chunk=4, eval_every=0, log_every=50)
    run = train(
        tmp_path / "run", env, 240, options=options, agent="gated-rainbow", train=train_config
    )
    agent = run.agent()
    rows = {
        "obs": np.array([[-1.0], [1.0]], np.float32),
        "reward": np.zeros(2, np.float32),
        "first": np.ones(2, bool),
    }
    assert agent.act(rows, agent.initial_state(2), explore=False)[0].tolist() == [0, 1]
    shares = [event.get("dream/share", 0.0) for event in run.events if event["kind"] == "learn"]
    assert (shares[-1] > 0) == (share > 0)


@pytest.mark.costly
@pytest.mark.timeout(300)  # the compiler takes half a minute on an idle core
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_update_equals_an_eager_update():
    eager, compiled = (
        build_agent(gate="none", dream_share=0.0, compile=compile) for compile in (False, True)
    )
    system = Swing()
    for _ in range(3):
        windows = system.windows(50, 4)
        expected, found = (agent.learn_policy(windows, None).metrics for agent in (eager, compiled))
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"agent.compile needs a C\+\+ compiler"):
        build_agent(compile=True)
