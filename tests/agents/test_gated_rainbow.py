from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from agents.blocks.noisy import NoisyLinear
from agents.blocks.returns import n_step
from agents.blocks.training import generator, to_tensors
from agents.blocks.values import project, quantile_huber
from agents.gated_rainbow.agent import COLUMNS, GatedRainbow
from agents.gated_rainbow.config import CONTEXT, PRIORITY, Config
from agents.gated_rainbow.network import collapse
from core.config import TrainConfig
from core.errors import UserError
from core.types import Array, Batch, EnvSpec, Sample, Space
from replay_server.server import ReplayServer
from tests.runs import train

VECTOR, CHOICE = Space((2,), "float32"), Space((), "int64", n=3)
SMALL: dict[str, Any] = {
    "hidden": 32,
    "world_hidden": 64,
    "lr_world": 3e-3,
    "slow_world": 0.05,
    "batch": 50,
    "lr": 1e-3,
}
HEADS = ["expected", "c51", "quantile"]


class Swing:
    """A linear system with a push, x' = A x + b (a - 1), a in {0, 1, 2}, that ends beyond `edge`.

    The reward of a step is x_0 where it leads to.
    """

    A = 0.98 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    b = np.array([0.0, 0.5])

    def __init__(self, edge: float = np.inf) -> None:
        self.edge = edge
        self.rng = np.random.default_rng(0)

    def windows(self, B: int, T: int) -> Sample:
        """Windows of random play (B, C + T, …), the rows of the context lived through."""
        x, reward, last = self.rng.uniform(-1, 1, (B, 2)), np.zeros(B), np.zeros(B, bool)
        first, held_out = np.zeros(B, bool), self.rng.random(B) < 0.2
        rows: list[Batch] = []
        for t in range(CONTEXT + T):
            last = (np.abs(x[:, 0]) > self.edge) & ~first & (t > CONTEXT)
            action = self.rng.integers(0, 3, B)
            rows.append(
                {
                    "obs": x.astype(np.float32),
                    "action": action,
                    "reward": reward.astype(np.float32),
                    "first": first,
                    "last": last,
                    "terminal": last,
                    "trace": (10 * reward).astype(np.float32),
                    "held_out": held_out,
                }
            )
            x = x @ self.A.T + (action - 1)[:, None] * self.b
            x = np.where(last[:, None], self.rng.uniform(-1, 1, (B, 2)), x)
            reward, first = np.where(last, 0, x[:, 0]), last
        data = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        return Sample(data, np.arange(B), np.full(B, 1 / B), B)


def build(seed: int = 0, **options: Any) -> GatedRainbow:
    spec = EnvSpec("Swing-v0", VECTOR, CHOICE)
    return GatedRainbow(Config(**{**SMALL, **options}), spec, seed, "cpu")


@pytest.fixture(scope="module")
def swinging() -> GatedRainbow:
    """An agent whose world has seen random play of a system without an end. Not to be trained."""
    agent = build(dream_after=0, dream_horizon=6, world_window=5)
    system = Swing()
    for _ in range(300):
        agent.learn_world(system.windows(60, 5))
    return agent


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


def returns(rows: dict[str, Array], n: int, gamma: float) -> tuple[Array, Array, Array]:
    """The n-step return from row 0, step by step."""
    found = []
    for reward, last, terminal in zip(rows["reward"], rows["last"], rows["terminal"], strict=True):
        total, m = 0.0, 0
        while m < n and not last[m]:
            m += 1
            total += gamma ** (m - 1) * reward[m]
        found.append((total, m, 0.0 if terminal[m] else gamma**m))
    total, steps, discount = zip(*found, strict=True)
    return np.array(total), np.array(steps), np.array(discount)


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
    agent = build(values=values, noise=0.0, n=3, gamma=0.9)
    with torch.no_grad():
        for net, seed in ((agent.online, 1), (agent.target, 2)):
            net.unit.fill_(2.0)
            for parameter in net.parameters():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    sample = Swing(edge=0.8).windows(40, 4)
    sample.data["terminal"] = sample.data["last"] & (np.arange(40)[:, None] % 2 == 0)
    rows = {key: value[:, CONTEXT:] for key, value in sample.data.items()}
    loss, td_error, _, value = agent.losses(to_tensors(sample.data, "cpu"))
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
    sample = Sample({}, np.arange(4), prob, 20)
    for updates, beta in ((0, 0.4), (50, 0.7), (300, 1.0)):
        agent.progress.updates.fill_(updates)
        expected = (1 / (20 * prob)) ** beta
        np.testing.assert_allclose(agent.importance(sample), expected / expected.max(), rtol=1e-5)


def test_alpha_rises_and_falls_in_agent_steps():
    agent = build(alpha_steps=(100.0, 300.0), policy_per_step=0.5)
    for updates, alpha in ((0, 0.5), (25, 0.6), (50, 0.7), (125, 0.55), (200, 0.4), (900, 0.4)):
        agent.progress.updates.fill_(updates)
        assert float(agent.progress.alpha) == pytest.approx(alpha, abs=1e-5)


@pytest.mark.parametrize("updates", [0, 100, 10_000])
def test_what_is_drawn_follows_the_alpha_of_the_day(updates):
    """Frequencies in the replay against |δ|^α of the errors found."""
    agent = build(alpha_steps=(100.0, 300.0), share=0.0, batch=32)
    real = agent.tables["real"]
    replay = ReplayServer({"real": real}, 0)
    system = Swing()
    data = system.windows(1, 35).data
    data["first"][:, 0] = True
    for name in ("reward", "trace"):
        data[name] = data[name].astype(np.float32)
    assert replay.add("real", data, np.arange(1))
    table = replay._tables["real"]  # draws without its limiter, which wants 500 steps
    view = table._views["policy"]
    slots = np.flatnonzero(view.starts.flags[:64])
    windows = view.gather(table._rows.windows(slots, CONTEXT, agent.config.n + 1))
    keys = table._ring.keys_at(slots)
    agent.progress.updates.fill_(updates)
    alpha = float(agent.progress.alpha)
    agent.match_unit(torch.tensor(windows["trace"]))
    state = agent.state("policy")
    feedback = agent.learn_policy(Sample(windows, keys, np.full(len(keys), 0.1), 10), None)
    agent.restore("policy", state)  # to ask for the errors, with the same noise
    agent.online.normaliser.update(*(torch.tensor(windows[key]) for key in ("obs", "reward")))
    td_error = agent.losses(to_tensors(windows, "cpu"))[1].detach().numpy()
    np.testing.assert_allclose(feedback.priorities, (td_error + PRIORITY) ** alpha, rtol=0.05)
    replay.update("real", keys, feedback.priorities)
    expected = feedback.priorities / feedback.priorities.sum()
    np.testing.assert_allclose(view.selector.probability(slots), expected, rtol=1e-6)


def test_without_priorities_rows_are_drawn_and_count_alike():
    agent = build(prioritized=False, share=0.0)
    feedback = agent.learn_policy(Swing().windows(50, 4), None)
    assert feedback.priorities is None
    assert agent.importance(Sample({}, np.arange(3), np.array([0.1, 0.2, 0.7]), 9)).eq(1).all()


# ------------------------------------------------------------------------ gate, noise, acting


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_every_observation_of_a_history_moves_the_gate(kind):
    gate = build(gate=kind).online.gate
    history = torch.randn(8, 4, 2, requires_grad=True)
    openness = gate(history)
    assert openness.shape == (8, 32)
    assert ((openness > 0) & (openness < 1)).all()
    weights = torch.linspace(-1, 1, 32)
    (gradient,) = torch.autograd.grad((openness * weights).sum(), history)
    assert (gradient.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_regulariser_opens_a_gate_that_collapsed(kind):
    agent = build(gate=kind, gate_weight=1.0)
    with torch.no_grad():
        agent.online.gate.net.linear[-1].bias.fill_(-5)
    windows = Swing().windows(50, 4)
    found = [float(agent.learn_policy(windows, None).metrics["gate/mean"]) for _ in range(300)]
    assert found[0] < 0.71
    assert found[-1] > 0.75


def test_a_gate_that_tells_histories_apart_costs_nothing():
    apart = torch.tensor([0.01, 0.99]).repeat(10).unsqueeze(1)
    assert float(collapse(apart)) == pytest.approx(0, abs=1e-8)
    assert float(collapse(torch.full((20, 1), 0.01))) == pytest.approx(0.49**2)


def test_without_a_gate_every_unit_is_open():
    agent = build(gate="none")
    assert agent.online(torch.randn(5, 4, 2))[1].eq(1).all()
    assert "gate/mean" not in agent.learn_policy(Swing().windows(50, 4), None).metrics


@pytest.mark.parametrize("per_row", [True, False])
def test_noise_has_the_variance_of_the_paper(per_row):
    """Var of Σ σ f(ε_i) f(ε_o) x + σ f(ε_o) = σ² E f² (Σ x² E f² + 1), E f² = sqrt(2 / π)."""
    layer, noise = NoisyLinear(4, 3, sigma=0.5), generator(0, "cpu")
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0]]).expand(40, 4)
    with torch.no_grad():
        draws = torch.randn(1_000, 40 if per_row else 1, layer.noises, generator=noise)
        drawn = torch.stack([layer(x, draw) - layer(x) for draw in draws])
    assert drawn.mean().abs() < 0.05
    square = np.sqrt(2 / np.pi)
    expected = 0.25**2 * square * (14.25 * square + 1)
    assert float(drawn.square().mean()) == pytest.approx(expected, rel=0.1)
    among_rows = drawn.std(1).max()
    assert among_rows > 0.1 if per_row else among_rows < 1e-5


def test_every_update_and_every_act_draws_noise_of_its_own():
    agent, history = build(noise=3.0, epsilon=0.0), torch.randn(200, 4, 2)
    agent.progress.updates.fill_(1e9)
    acts = [agent.choose(history, agent.act_noise) for _ in range(2)]
    assert not torch.equal(*acts)
    assert torch.equal(agent.choose(history, None), agent.choose(history, None))
    rows = to_tensors(Swing().windows(50, 4).data, "cpu")
    agent.match_unit(rows["trace"])
    losses = [agent.losses(rows)[0] for _ in range(2)]
    assert not torch.allclose(*losses)


def test_acting_explores_by_noise_even_where_epsilon_is_gone():
    rows = {
        "obs": np.zeros((500, 2), np.float32),
        "reward": np.zeros(500, np.float32),
        "first": np.ones(500, bool),
    }
    for noise, kinds in ((0.0, 1), (3.0, 3)):
        agent = build(noise=noise, epsilon=0.0)
        agent.progress.updates.fill_(1e9)
        action = agent.act(rows, agent.initial(500), explore=True)[0]
        assert len(np.unique(action)) == kinds


def test_epsilon_travels_with_the_weights():
    learner, actor = build(epsilon_half_life=10.0), build(seed=1)
    for _ in range(3):
        learner.learn_policy(Swing().windows(50, 4), None)
    actor.load("policy", learner.weights("policy"))
    assert float(learner.progress.epsilon) == pytest.approx(0.5**0.3)
    assert float(actor.progress.updates) == 3


def test_acting_and_learning_see_the_same_histories():
    """What `act` remembers is what the replay lays before the row, from the first row on."""
    agent = build(share=0.0)
    rng, n = np.random.default_rng(0), 3
    state, last = agent.initial(n), np.ones(n, bool)
    chunk, remembered = [], {}
    for _ in range(40):
        first, last = last, ~last & (rng.random(n) < 0.2)
        rows = {
            "obs": rng.normal(size=(n, 2)).astype(np.float32),
            "reward": rng.normal(size=n).astype(np.float32),
            "first": first,
            "last": last,
            "terminal": last,
        }
        action, state, extras = agent.act(rows, state, explore=True)
        for i in range(n):
            remembered[rows["obs"][i].tobytes()] = state.history[i]
        chunk.append({**rows, "action": action, **extras})
    replay = ReplayServer({"real": agent.tables["real"]}, 0)
    rows = {key: np.stack([row[key] for row in chunk], 1) for key in chunk[0]}
    assert replay.add("real", rows, np.arange(n))
    table = replay._tables["real"]
    table._limiter.steps = 10_000
    sample = table.sample("policy")
    assert sample is not None
    for obs in sample.data["obs"]:
        np.testing.assert_array_equal(obs[: CONTEXT + 1], remembered[obs[CONTEXT].tobytes()])
    gamma, trace = agent.config.gamma, np.zeros(n)
    for t in range(40):
        trace = np.where(rows["first"][:, t], 0, gamma * trace + rows["reward"][:, t])
        np.testing.assert_allclose(rows["trace"][:, t], trace, rtol=1e-4, atol=1e-5)
    held_out, first = rows["held_out"], rows["first"]
    assert (held_out[:, 1:] == held_out[:, :-1])[~first[:, 1:]].all()


# ---------------------------------------------------------------------------- world model


def test_the_world_learns_a_linear_system(swinging):
    """On fresh windows, each step with its reward; compared with the guess of no change."""
    rows = to_tensors(Swing().windows(60, 5).data, "cpu")
    world, share = swinging.slow_world, (swinging.config.members, -1)
    x = world.normaliser(rows["obs"])
    history, code = x[:, : CONTEXT + 1], swinging.actions.code(rows["action"][:, CONTEXT])
    with torch.no_grad():
        mean, _, _ = world.compare(history.unflatten(0, share), code.unflatten(0, share))
        following = history[:, -1] + mean.flatten(0, 1) * world.change_rms
        reward, _ = world._outcome(history[:, -1], code, x[:, CONTEXT + 1])
    changed = x[:, CONTEXT + 1] - x[:, CONTEXT]
    wrong = (following - x[:, CONTEXT + 1]).square().mean().sqrt() / changed.square().mean().sqrt()
    assert wrong < 0.15
    reward = reward * world.normaliser.reward_rms
    real = rows["reward"][:, CONTEXT + 1]
    assert (reward - real).square().mean().sqrt() < 0.15 * real.std()


def test_held_out_windows_are_measured_and_never_learned():
    agent, sample = build(world_window=5), Swing().windows(60, 5)
    other = copy.deepcopy(sample)
    other.data["obs"][other.data["held_out"][:, 0], CONTEXT + 1 :] += 5
    learned = [
        agent.world.loss(rows, agent.actions.code(rows["action"]))[0]
        for rows in (to_tensors(sample.data, "cpu"), to_tensors(other.data, "cpu"))
    ]
    torch.testing.assert_close(learned[0], learned[1])
    measured = []
    for one in (sample, other):
        rows, clean = to_tensors(one.data, "cpu"), build(world_window=5)
        clean.world.measure(clean.slow_world, rows, clean.actions.code(rows["action"]))
        measured.append(clean.world.error)
    assert (measured[1] > measured[0] + 1).all()


def test_the_held_out_error_is_that_of_an_open_loop_step_by_step(swinging):
    agent, sample = copy.deepcopy(swinging), Swing(edge=0.7).windows(60, 5)
    rows = to_tensors(sample.data, "cpu")
    agent.world.seen.zero_()
    agent.world.measure(agent.slow_world, rows, agent.actions.code(rows["action"]))
    world, x = agent.slow_world, agent.slow_world.normaliser(rows["obs"])
    errors: list[list[float]] = [[] for _ in range(4)]
    for b in np.flatnonzero(sample.data["held_out"][:, 0]):
        member, history = b // 12, x[b, : CONTEXT + 1]
        for step in range(4):
            if rows["last"][b, CONTEXT : CONTEXT + step + 1].any():
                break
            code = agent.actions.code(rows["action"][b, CONTEXT + step])
            asked = torch.cat([history.flatten(), code]).expand(5, 1, -1)
            with torch.no_grad():
                mean = world._predict(asked)[0][member, 0]
            history = torch.cat([history[1:], (history[-1] + mean * world.change_rms)[None]])
            errors[step].append(float((history[-1] - x[b, CONTEXT + step + 1]).square().mean()))
    expected = [np.mean(step) for step in errors]
    np.testing.assert_allclose(agent.world.error, expected, rtol=1e-3)


def test_beyond_what_was_measured_the_error_grows_with_the_steps():
    world = build(world_window=5).world
    assert world.expected_error(3).isinf().all()
    world.seen.fill_(1)
    world.error.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]) ** 2)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    np.testing.assert_allclose(world.expected_error(8), expected, rtol=1e-5)


# --------------------------------------------------------------------------------- dreams


def test_dreams_go_as_far_as_the_held_out_error_lets_them(swinging):
    starts = Swing().windows(5, 1)
    world = swinging.slow_world
    for growth, steps in ((0.01, 6), (0.1, 3), (1.0, 0)):
        agent = copy.deepcopy(swinging)
        agent.slow_world.error.copy_((growth * torch.arange(1, 5)) ** 2)
        dreams = agent.dream(starts)
        assert dreams["obs"].shape[:2] == (5, CONTEXT + max(steps, 1) + 1)
        assert dreams["weight"].sum() <= 5 * steps
        assert (dreams["weight"].sum() > 0) == (steps > 0)
    assert world.error.max().sqrt() < swinging.config.tolerance


def test_dreams_wait_for_their_time(swinging):
    agent = copy.deepcopy(swinging)
    agent.config = Config(**{**SMALL, "dream_after": 100, "world_window": 5})
    starts = Swing().windows(5, 1)
    assert agent.dream(starts)["weight"].sum() == 0
    agent.progress.updates.fill_(100)
    assert agent.dream(starts)["weight"].sum() > 0


def test_dreams_begin_with_real_histories_and_stay_where_observations_were(swinging):
    starts = Swing().windows(5, 1)
    dreams = swinging.dream(starts)
    np.testing.assert_array_equal(dreams["obs"][:, : CONTEXT + 1], starts.data["obs"])
    low, high = swinging.slow_world.low, swinging.slow_world.high
    assert ((dreams["obs"] >= low) & (dreams["obs"] <= high)).all()
    assert not dreams["weight"][:, :CONTEXT].any()
    assert (dreams["weight"][:, -1] == 0).all()
    assert dreams["last"][:, -1].all()


def test_members_disagree_and_curiosity_wakes_where_the_data_never_was(swinging):
    inside, outside = (Swing().windows(60, 3) for _ in range(2))
    outside.data["obs"] = outside.data["obs"] * 4
    found = [swinging.surprise(to_tensors(s.data, "cpu")).sum(1).mean() for s in (inside, outside)]
    assert found[1] > 3 * found[0]
    weight = [swinging.dream(starts)["weight"].sum() for starts in (inside, outside)]
    assert weight[1] < 0.5 * weight[0]


def test_curiosity_adds_to_rewards():
    windows = Swing().windows(50, 4)
    found = []
    for curiosity in (0.0, 0.5):
        agent = build(curiosity=curiosity, share=0.0, noise=0.0)
        agent.learn_world(Swing().windows(60, 9))  # without one the members still agree
        assert ("world" in agent.tables["real"].consumers) == (curiosity > 0)
        found.append(float(agent.learn_policy(windows, None).metrics["loss/value"]))
    assert found[0] != found[1]


def test_values_along_dreams_are_those_along_real_rows(swinging):
    """Played by the same policy from the same starts. Values that sink or rise would be learned."""
    agent, system = copy.deepcopy(swinging), Swing()
    for _ in range(200):
        agent.learn_policy(system.windows(35, 4), agent.dream(system.windows(5, 1)))
    agent.slow_world.error.zero_()  # to go all the way
    starts, horizon = system.windows(400, 1), agent.config.dream_horizon
    dreamed = agent.dream(starts)["obs"]
    lived = list(np.moveaxis(starts.data["obs"], 1, 0))
    for _ in range(horizon):
        action = agent.choose(torch.tensor(np.stack(lived[-4:], 1)), agent.act_noise).numpy()
        push = (action - 1)[:, None] * system.b
        lived.append((lived[-1] @ system.A.T + push).astype(np.float32))

    def values(obs: Any) -> Array:  # (B, C + 1 + H, O) → (B, H + 1)
        histories = obs.unfold(1, 4, 1).transpose(2, 3).flatten(0, 1)
        with torch.no_grad():
            found = agent.online.mean(agent.online(histories)[0]).max(-1).values
        return found.view(len(obs), -1).numpy()

    real, imagined = values(torch.tensor(np.stack(lived, 1))), values(dreamed)
    assert real.shape == imagined.shape == (400, horizon + 1)
    assert np.abs(real.mean(0) - imagined.mean(0)).max() < 0.1 * real.std()


def test_windows_of_dreams_end_with_them():
    """What is drawn from a dream, against the dream; a dream of one step discounts by γ."""
    agent = build(n=3, gamma=0.9)
    rng, steps = np.random.default_rng(0), 5
    last = np.zeros((4, CONTEXT + steps + 1), bool)
    ends = np.array([5, 1, 3, 4])  # the first believed for all 5 steps
    weight = np.zeros(last.shape, np.float32)
    for b, end in enumerate(ends):
        last[b, CONTEXT + end :] = True
        weight[b, CONTEXT : CONTEXT + end] = 1
    dreams = {
        "obs": rng.normal(size=(*last.shape, 2)).astype(np.float32),
        "action": rng.integers(0, 3, last.shape),
        "reward": rng.normal(size=last.shape).astype(np.float32),
        "last": last,
        "terminal": np.zeros(last.shape, bool),
        "weight": weight,
    }
    windows, found_weight = agent.pick(to_tensors(dreams, "cpu"))
    assert len(found_weight) == agent.config.dreamed == 15
    np.testing.assert_allclose(found_weight, 13 / 15)  # 13 believed rows for 15 windows
    assert windows.keys() == set(COLUMNS)
    kept = {key: value.numpy() for key, value in windows.items()}
    rows = {key: value[:, CONTEXT:] for key, value in kept.items()}
    total, taken, discount = returns(rows, 3, 0.9)
    for b in range(15):
        where = np.argwhere((dreams["obs"] == kept["obs"][b, CONTEXT]).all(-1))
        ((dream, row),) = where
        assert taken[b] == min(3, ends[dream] + CONTEXT - row)
        assert discount[b] == pytest.approx(0.9 ** taken[b])
        rewards = dreams["reward"][dream, row + 1 : row + 1 + taken[b]]
        assert total[b] == pytest.approx(sum(0.9**k * r for k, r in enumerate(rewards)), abs=1e-5)
        np.testing.assert_array_equal(
            kept["obs"][b, : CONTEXT + 1], dreams["obs"][dream, row - CONTEXT : row + 1]
        )


def test_dreams_nobody_believes_leave_an_update_to_the_real_rows(swinging):
    real, dreams = Swing().windows(35, 4), swinging.dream(Swing().windows(5, 1))
    dreams["weight"] = torch.zeros_like(dreams["weight"])
    alone, beside = build(noise=0.0), build(noise=0.0)
    one, other = alone.learn_policy(real, None), beside.learn_policy(real, dreams)
    assert float(other.metrics["dream/share"]) == 0
    assert float(one.metrics["loss/value"]) == pytest.approx(float(other.metrics["loss/value"]))
    np.testing.assert_allclose(one.priorities, other.priorities, rtol=1e-4)


def test_believed_dreams_are_their_share_of_the_update(swinging):
    dreams = swinging.dream(Swing().windows(60, 1))
    assert dreams["weight"].sum() > 15
    metrics = build().learn_policy(Swing().windows(35, 4), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "consumers"),
    [
        ({}, {"policy", "world", "start"}),
        ({"share": 0.0}, {"policy"}),
        ({"share": 0.0, "curiosity": 0.1}, {"policy", "world"}),
    ],
)
def test_without_dreams_or_curiosity_there_is_no_world(options, consumers):
    agent = build(**options)
    assert agent.tables["real"].consumers.keys() == consumers
    assert ("dream" in agent.tables) == ("start" in consumers)


@pytest.mark.parametrize(
    "options",
    [
        *({"values": values} for values in HEADS),
        *({"gate": gate} for gate in ("mlp", "transformer", "none")),
        {"prioritized": False},
        {"n": 1},
        {"noise": 0.0},
        {"curiosity": 0.1},
    ],
    ids=str,
)
def test_each_part_can_be_left_out_or_exchanged(options):
    agent, system = build(dream_after=0, tolerance=9.0, **options), Swing()
    consumers = agent.tables["real"].consumers
    for _ in range(3):
        agent.learn_world(system.windows(60, consumers["world"].window))
        dreams = agent.dream(system.windows(consumers["start"].batch, 1))
        real = system.windows(consumers["policy"].batch, consumers["policy"].window)
        metrics = agent.learn_policy(real, dreams).metrics
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert float(metrics["dream/share"]) > 0


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"world_batch must be a multiple of agent.members \(7\)"):
        Config(members=7)
    with pytest.raises(UserError, match=r"share must be from 0 to below 1; found 1"):
        Config(share=1.0)
    with pytest.raises(UserError, match="n must be at least 1; found 0"):
        Config(n=0)


# ---------------------------------------------------------------------- units and the plateau


@pytest.mark.parametrize("values", ["expected", "quantile"])
def test_a_larger_return_changes_the_unit_and_not_what_is_said_of_returns(values):
    agent, history = build(values=values), torch.randn(6, 4, 2)
    agent.match_unit(torch.tensor([3.0]))
    before = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    agent.match_unit(torch.tensor([-60.0]))
    after = agent.online.mean(agent.online(history)[0]) * agent.online.unit
    assert float(agent.online.unit) == pytest.approx(20)
    torch.testing.assert_close(before, after)


def test_the_learning_rate_halves_where_returns_stay_as_they_are():
    progress = build(patience=10, lr=1e-3).progress
    last = torch.ones(1, 1, dtype=torch.bool)
    for step in range(5):
        progress.learned(torch.full((1, 1), 10.0 * step), last)
    assert float(progress.lr) == pytest.approx(1e-3)
    for _ in range(25):
        progress.learned(torch.zeros(1, 1), last)
    assert float(progress.lr) == pytest.approx(2.5e-4)


def test_returns_below_nothing_can_get_better_too():
    progress = build(patience=10).progress
    nothing, end = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    progress.learned(torch.zeros(1, 1), nothing)
    for step in range(3):
        progress.learned(torch.full((1, 1), -100.0 + 10 * step), end)
    assert float(progress.stale) == 0
    assert -100 < float(progress.mean_return) < -80


# ------------------------------------------------------------------------------- probe runs


PROBE = {
    **SMALL,
    "warmup": 40,
    "dream_after": 40,
    "dream_horizon": 2,
    "epsilon_half_life": 100.0,
    "world_per_step": 1.0,
    "tolerance": 1.0,
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
    options = {**PROBE, "gamma": 0.5, "slow": 0.05, "share": 0.0}
    run = train(
        tmp_path / "run", f"envs.probe:{env}-v0", 300, options=options, agent="gated-rainbow"
    )
    assert values_of(run.agent(), obs) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("values", "share"), [("expected", 0.3), ("c51", 0.3), ("quantile", 0.0)])
def test_it_learns_which_action_pays_where(tmp_path, values, share):
    options = {**PROBE, "values": values, "share": share, "slow": 0.05}
    env = "envs.probe:ObsActionReward-v0"
    rhythm = TrainConfig(chunk=4, eval_every=0, log_every=50)
    run = train(tmp_path / "run", env, 240, options=options, agent="gated-rainbow", train=rhythm)
    agent = run.agent()
    rows = {
        "obs": np.array([[-1.0], [1.0]], np.float32),
        "reward": np.zeros(2, np.float32),
        "first": np.ones(2, bool),
    }
    assert agent.act(rows, agent.initial(2), explore=False)[0].tolist() == [0, 1]
    found = [event.get("dream/share", 0.0) for event in run.events if event["kind"] == "learn"]
    assert (found[-1] > 0) == (share > 0)
