from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.device import make_rng
from dreamfleet.agents.blocks.noisy import NoisyLinear
from dreamfleet.agents.gated_rainbow.agent import FORWARD_PASSES, GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.agents.gated_rainbow.losses import gate_regulariser
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EnvSpec, Space
from dreamfleet.replay_server.server import ReplayServer
from tests.agents.gated_rainbow.system import ACTION, Swing, build_agent


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_gate_depends_on_every_observation_of_a_history(kind):
    gate = build_agent(gate=kind).online.gate
    history = torch.randn(8, 4, 2, requires_grad=True)
    gate = gate(history)
    assert gate.shape == (8, 32)
    assert ((gate > 0) & (gate < 1)).all()
    weights = torch.linspace(-1, 1, 32)
    (gradient,) = torch.autograd.grad((gate * weights).sum(), history)
    assert (gradient.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_regulariser_opens_a_closed_gate(kind):
    agent = build_agent(gate=kind, gate_weight=1.0)
    with torch.no_grad():
        agent.online.gate.net.linear[-1].bias.fill_(-5)
    windows = Swing().windows(50, 4)
    means = [float(agent.learn_policy(windows, None).metrics["gate/mean"]) for _ in range(300)]
    assert means[0] < 0.71
    assert means[-1] > 0.75


def test_the_regulariser_penalises_the_mean_over_histories_only():
    differs = torch.tensor([0.01, 0.99]).repeat(10).unsqueeze(1)
    assert float(gate_regulariser(differs)) == pytest.approx(0, abs=1e-8)
    assert float(gate_regulariser(torch.full((20, 1), 0.01))) == pytest.approx(0.49**2)


def test_without_a_gate_every_gate_value_is_1():
    agent = build_agent(gate="none")
    assert agent.online(torch.randn(5, 4, 2))[1].eq(1).all()
    assert "gate/mean" not in agent.learn_policy(Swing().windows(50, 4), None).metrics


@pytest.mark.parametrize("per_row", [True, False])
def test_noisy_layers_have_the_variance_of_the_paper(per_row):
    """The variance of a noisy layer's output is σ² E f² (Σ x² E f² + 1), with E f² = sqrt(2 / π).

    It is the variance of Σ σ f(ε_i) f(ε_o) x + σ f(ε_o).
    """
    layer, rng = NoisyLinear(4, 3, sigma=0.5), make_rng(0, "cpu")
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0]]).expand(40, 4)
    with torch.no_grad():
        draws = torch.randn(1_000, 40 if per_row else 1, layer.noise_size, generator=rng)
        difference = torch.stack([layer(x, noise) - layer(x) for noise in draws])
    assert difference.mean().abs() < 0.05
    square = np.sqrt(2 / np.pi)
    expected = 0.25**2 * square * (14.25 * square + 1)
    assert float(difference.square().mean()) == pytest.approx(expected, rel=0.1)
    over_rows = difference.std(1).max()
    assert over_rows > 0.1 if per_row else over_rows < 1e-5


def test_each_update_and_each_call_of_act_draws_new_noise():
    agent, history = build_agent(noisy_sigma=3.0, epsilon_min=0.0), torch.randn(200, 4, 2)
    agent.schedules.updates.fill_(1e9)
    actions = [agent.choose(history, agent.act_rng) for _ in range(2)]
    assert not torch.equal(*actions)
    assert torch.equal(agent.choose(history, None), agent.choose(history, None))
    rows = to_tensors(Swing().windows(50, 4).data, "cpu")
    agent.update_value_unit(rows["discounted_return"], rows["reward"])
    noises = [agent.online.draw_noise(FORWARD_PASSES, agent.policy_rng) for _ in range(2)]
    losses = [agent.td_losses(rows, noise)[0] for noise in noises]
    assert not torch.allclose(*losses)


def test_noisy_layers_explore_without_epsilon():
    rows = {
        "obs": np.zeros((500, 2), np.float32),
        "reward": np.zeros(500, np.float32),
        "first": np.ones(500, bool),
    }
    for sigma, different_actions in ((0.0, 1), (3.0, 3)):
        agent = build_agent(noisy_sigma=sigma, epsilon_min=0.0)
        agent.schedules.updates.fill_(1e9)
        action = agent.act(rows, agent.initial_state(500), explore=True)[0]
        assert len(np.unique(action)) == different_actions


def test_an_actor_gets_epsilon_with_the_weights():
    learner, actor = build_agent(epsilon_half_life=10.0), build_agent(seed=1)
    for _ in range(3):
        learner.learn_policy(Swing().windows(50, 4), None)
    actor.load("policy", learner.weights("policy"))
    assert float(learner.schedules.epsilon) == pytest.approx(0.5**0.3)
    assert float(actor.schedules.updates) == 3


def test_acting_and_learning_read_the_same_histories():
    """The earlier observations that `act` remembers equal the context that the replay returns."""
    agent = build_agent(dream_share=0.0)
    rng, n = np.random.default_rng(0), 3
    state, last = agent.initial_state(n), np.ones(n, bool)
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
    gamma, expected = agent.config.gamma, np.zeros(n)
    for t in range(40):
        expected = np.where(rows["first"][:, t], 0, gamma * expected + rows["reward"][:, t])
        found = rows["discounted_return"][:, t]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    held_out, first = rows["held_out"], rows["first"]
    assert (held_out[:, 1:] == held_out[:, :-1])[~first[:, 1:]].all()


def test_observe_time_appends_the_steps_since_the_episode_began():
    agent, ages = build_agent(observe_time=True), []
    state = agent.initial_state(2)
    for first in ([True, True], [False, False], [False, True]):
        rows = {"obs": np.ones((2, 2)), "first": np.array(first), "reward": np.zeros(2)}
        _, state, extras = agent.act(rows, state, explore=False)
        assert extras["obs"].shape == (2, *agent.tables["real"].columns["obs"].shape)
        assert (extras["obs"][:, :2] == 1).all()
        ages.append(extras["obs"][:, 2].tolist())
    assert ages == [[0, 0], [1, 1], [2, 0]]
    np.testing.assert_array_equal(state.history[:, :, 2], [[0, 0, 1, 2], [0, 0, 0, 0]])


def test_observe_time_is_refused_for_frames():
    frames = EnvSpec("Frames-v0", Space((8, 8), "uint8"), ACTION)
    with pytest.raises(
        UserError, match=r"agent.observe_time needs vector.*Frames-v0 has uint8 \(8, 8\)"
    ):
        GatedRainbow(Config(observe_time=True), frames, 0, "cpu")
