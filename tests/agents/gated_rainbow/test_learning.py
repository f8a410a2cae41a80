from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.quantiles import quantile_huber
from dreamfleet.agents.blocks.returns import n_step
from dreamfleet.agents.blocks.values import project
from dreamfleet.agents.gated_rainbow.agent import PASSES, GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, PRIORITY
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Sample
from dreamfleet.replay_server.server import ReplayServer
from tests.agents.gated_rainbow.system import HEADS, SMALL, Swing, build, returns
from tests.runs import train

# ----------------------------------------------------------------------------------- losses


def test_the_projection_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    support = np.linspace(-2, 3, 11)
    prob = rng.dirichlet(np.ones(11), 6)
    reward, discount = rng.normal(0, 2, 6), np.array([0.9, 0.5, 0.0, 0.99, 1.0, 0.9])
    reward[4] = 0.0  # every atom falls on itself
    expected = np.zeros_like(prob)
    for b in range(6):
        for j in range(11):
            place = (np.clip(reward[b] + discount[b] * support[j], -2, 3) + 2) / 0.5
            for i in range(11):
                expected[b, i] += prob[b, j] * max(0.0, 1 - abs(place - i))
    found = project(*map(torch.tensor, (prob, reward, discount, support)))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_quantile_loss_is_that_of_the_paper_and_so_is_its_gradient():
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
def test_n_step_returns_go_to_the_end_of_an_episode_and_no_further(n):
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
    for one, expected in zip(found, returns(rows, n, 0.9), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", HEADS)
def test_targets_are_double_and_bootstrap_where_the_return_ends(values):
    """Row by row, each history by itself, through networks that differ."""
    agent = build(value_head=values, noisy_sigma=0.0, n_step=3, gamma=0.9)
    with torch.no_grad():
        for net, seed in ((agent.online, 1), (agent.target, 2)):
            net.unit.fill_(2.0)
            for parameter in net.parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    sample = Swing(edge=0.8).windows(40, 4)
    sample.data["terminal"] = sample.data["last"] & (np.arange(40)[:, None] % 2 == 0)
    rows = {key: value[:, CONTEXT:] for key, value in sample.data.items()}
    loss, td_error, _, value = agent.losses(to_tensors(sample.data, "cpu"), None)
    total, steps, discount = returns({**rows, "reward": rows["reward"] / 2}, 3, 0.9)
    assert len(set(steps)) > 1
    assert (discount == 0).any()
    selected = []
    for b in range(40):
        obs = torch.tensor(sample.data["obs"][b])

        def at(net: Any, row: int, obs: Any = obs) -> Any:
            with torch.no_grad():
                return net(obs[row : row + 4].unsqueeze(0))[0][0]  # (A, Z)

        taken = at(agent.online, 0)[rows["action"][b, 0]]
        best = int(agent.online.mean(at(agent.online, steps[b])).argmax())
        selected.append(best == int(agent.online.mean(at(agent.target, steps[b])).argmax()))
        following = at(agent.target, steps[b])[best]
        mean = agent.online.mean
        expected = total[b] + discount[b] * float(mean(following))
        assert float(value[b]) == pytest.approx(float(mean(taken)), abs=1e-5)
        assert float(td_error[b]) == pytest.approx(abs(expected - float(mean(taken))), abs=1e-4)
        ends = (torch.tensor([float(total[b])]), torch.tensor([float(discount[b])]))
        alone = agent.online.values.loss(taken[None], following[None], *ends)
        assert float(loss[b].detach()) == pytest.approx(float(alone), abs=1e-4)
    assert not all(selected)  # the two networks would choose otherwise


# ----------------------------------------------------------------------------- prioritization


def test_importance_weights_undo_the_drawing_as_far_as_beta_goes():
    agent = build(beta_steps=100.0)
    prob = np.array([0.5, 0.25, 0.01, 0.1])
    chance = torch.tensor(20 * prob)
    for updates, beta in ((0, 0.4), (50, 0.7), (300, 1.0)):
        agent.schedules.updates.fill_(updates)
        expected = (1 / (20 * prob)) ** beta
        np.testing.assert_allclose(agent.importance(chance), expected / expected.max(), rtol=1e-5)


def test_alpha_rises_and_falls_in_agent_steps():
    agent = build(alpha_steps=(100.0, 300.0), policy_updates_per_step=0.5)
    for updates, alpha in ((0, 0.5), (25, 0.6), (50, 0.7), (125, 0.55), (200, 0.4), (900, 0.4)):
        agent.schedules.updates.fill_(updates)
        assert float(agent.schedules.alpha) == pytest.approx(alpha, abs=1e-5)


@pytest.mark.parametrize("updates", [0, 100, 10_000])
def test_what_is_drawn_follows_the_alpha_of_the_day(updates):
    """Frequencies in the replay against |δ|^α of the errors found."""
    agent = build(alpha_steps=(100.0, 300.0), dream_share=0.0, batch=32)
    real = agent.tables["real"]
    replay = ReplayServer({"real": real}, 0)
    system = Swing()
    data = system.windows(1, 35).data
    data["first"][:, 0] = True
    data["score"] = data["trace"]
    for name in ("reward", "trace", "score"):
        data[name] = data[name].astype(np.float32)
    assert replay.add("real", data, np.arange(1))
    table = replay._tables["real"]  # draws without its limiter, which wants 500 steps
    view = table._views["policy"]
    slots = np.flatnonzero(view.starts.flags[:64])
    windows = view.gather(table._rows.windows(slots, CONTEXT, agent.config.n_step + 1))
    keys = table._ring.keys_at(slots)
    agent.schedules.updates.fill_(updates)
    alpha = float(agent.schedules.alpha)
    agent.update_value_unit(torch.tensor(windows["trace"]), torch.tensor(windows["reward"]))
    state = agent.state("policy")
    feedback = agent.learn_policy(Sample(windows, keys, np.full(len(keys), 0.1), 10), None)
    agent.restore("policy", state)  # to ask for the errors, with the same noise
    noise = agent.online.draw(PASSES, agent.policy_rng)
    agent.online.normaliser.update(*(torch.tensor(windows[key]) for key in ("obs", "reward")))
    td_error = agent.losses(to_tensors(windows, "cpu"), noise)[1].detach().numpy()
    np.testing.assert_allclose(feedback.priorities, (td_error + PRIORITY) ** alpha, rtol=0.05)
    replay.update("real", keys, feedback.priorities)
    expected = feedback.priorities / feedback.priorities.sum()
    np.testing.assert_allclose(view.selector.probability(slots), expected, rtol=1e-6)


def test_without_priorities_rows_are_drawn_and_count_alike():
    agent = build(prioritized=False, dream_share=0.0)
    feedback = agent.learn_policy(Swing().windows(50, 4), None)
    assert feedback.priorities is None
    assert agent.importance(torch.tensor([0.9, 1.8, 6.3])).eq(1).all()


# ---------------------------------------------------------------------- units and the plateau


@pytest.mark.parametrize("values", ["expected", "quantile"])
def test_a_larger_return_changes_the_unit_and_not_what_is_said_of_returns(values):
    agent, history = build(value_head=values), torch.randn(6, 4, 2)
    agent.update_value_unit(torch.tensor([3.0]), torch.ones(1))
    before = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    agent.update_value_unit(torch.tensor([-60.0]), torch.ones(1))
    after = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    assert float(agent.online.unit) == pytest.approx(20)
    torch.testing.assert_close(before, after)


def test_the_learning_rate_halves_where_returns_stay_as_they_are():
    progress = build(lr_patience=10, lr_critic=1e-3).schedules
    for step in range(5):
        progress.learned(torch.tensor([100.0 + step, 10.0 * step]))
    assert float(progress.lr) == pytest.approx(1e-3)
    for _ in range(25):
        progress.learned(torch.tensor([105.0, 40.0]))
    assert float(progress.lr) == pytest.approx(2.5e-4)


def test_returns_below_nothing_can_get_better_too():
    progress = build(lr_patience=10).schedules
    progress.learned(torch.tensor([0.0, 0.0]))
    for step in range(3):
        progress.learned(torch.tensor([10.0 + step, -100.0 + 10 * step]))
    assert float(progress.stale) == 0
    assert float(progress.mean_return) == -80


def test_the_learning_rate_stays_while_too_few_episodes_were_played_to_judge():
    progress = build(lr_patience=10, lr_critic=1e-3).schedules
    for _ in range(50):
        progress.learned(torch.tensor([3.0, 7.0]))
    assert float(progress.lr) == pytest.approx(1e-3)


def test_the_plateau_is_that_of_the_episodes_played(tmp_path):
    """CartPole's episodes as metrics.jsonl has them, against what the learner went by."""
    rhythm = TrainConfig(eval_every=0, log_every=1, chunk=1)
    options = {**SMALL, "warmup": 100, "dream_share": 0.0}
    run = train(
        tmp_path / "run", "CartPole-v1", 260, options=options, agent="gated-rainbow", train=rhythm
    )
    ended: list[float] = []
    found = []
    for event in run.events:
        if event["kind"] == "episode":
            ended.append(event["return"])
        elif event["kind"] == "learn":
            found.append((event["learn/return"], np.mean(ended[-100:])))
    assert len(found) > 100
    assert np.mean([told == pytest.approx(mean) for told, mean in found]) > 0.9  # a row or so late


@pytest.mark.parametrize("outlier", [1e6, -1e20, 3e38])
def test_an_outlying_reward_leaves_the_unit_of_values_as_it_was(outlier):
    """Neither where it is in a window, nor where only the trace knows of it."""
    agent, system = build(dream_share=0.0), Swing()
    for _ in range(3):
        agent.learn_policy(system.windows(50, 4), None)
    before = float(agent.online.unit)
    for column in ("reward", "trace"):
        windows = system.windows(50, 4)
        windows.data[column][7, CONTEXT + 1] = outlier
        metrics = agent.learn_policy(windows, None).metrics
        assert all(np.isfinite(float(value)) for value in metrics.values())
    assert float(agent.online.unit) == pytest.approx(before, rel=0.2)
    rows = {"obs": np.zeros((1, 2), np.float32), "first": np.array([False])}
    rows["reward"] = np.array([outlier], np.float32)
    extras = agent.act(rows, agent.initial_state(1), explore=True)[2]
    bound = 10 * float(agent.online.normaliser.reward_rms)
    assert abs(extras["score"][0]) == pytest.approx(bound, rel=1e-5)
    assert abs(extras["trace"][0]) == pytest.approx(bound, rel=1e-5)


# ------------------------------------------------------------------------------- probe runs


PROBE = {
    **SMALL,
    "warmup": 40,
    "dream_after": 40,
    "dream_horizon": 2,
    "epsilon_half_life": 100.0,
    "world_updates_per_step": 1.0,
    "max_model_error": 1.0,
}


def values_of(agent: GatedRainbow, obs: list[float]) -> list[float]:
    """The best action's value at the start of episodes that open with these observations."""
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
    assert values_of(run.agent(), obs) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("values", "share"), [("expected", 0.3), ("c51", 0.3), ("quantile", 0.0)])
def test_it_learns_which_action_pays_where(tmp_path, values, share):
    options = {**PROBE, "value_head": values, "dream_share": share, "slow_critic": 0.05}
    env = "dreamfleet.envs.probe:ObsActionReward-v0"
    rhythm = TrainConfig(chunk=4, eval_every=0, log_every=50)
    run = train(tmp_path / "run", env, 240, options=options, agent="gated-rainbow", train=rhythm)
    agent = run.agent()
    rows = {
        "obs": np.array([[-1.0], [1.0]], np.float32),
        "reward": np.zeros(2, np.float32),
        "first": np.ones(2, bool),
    }
    assert agent.act(rows, agent.initial_state(2), explore=False)[0].tolist() == [0, 1]
    found = [event.get("dream/share", 0.0) for event in run.events if event["kind"] == "learn"]
    assert (found[-1] > 0) == (share > 0)


@pytest.mark.slow
@pytest.mark.timeout(300)  # the compiler takes half a minute on an idle core
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_update_is_the_update():
    plain, fast = (
        build(gate="none", dream_share=0.0, compile=compiled) for compiled in (False, True)
    )
    swing = Swing()
    for _ in range(3):
        windows = swing.windows(50, 4)
        found = [agent.learn_policy(windows, None).metrics for agent in (plain, fast)]
        for name in found[0]:
            assert float(found[1][name]) == pytest.approx(float(found[0][name]), rel=1e-3, abs=1e-5)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"agent.compile needs a C\+\+ compiler"):
        build(compile=True)
