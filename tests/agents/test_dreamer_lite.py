from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.dreamer_lite.agent import Config, DreamerLite
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, EnvSpec, Sample, Space
from dreamfleet.replay_server.server import ReplayServer
from tests.runs import train

VECTOR = Space((2,), "float32")
ACTION = Space((1,), "float32")
SMALL: dict[str, Any] = {"hidden": 64, "latent": 16, "world_batch": 60, "batch": 40}


class Swing:
    """A linear system x' = A x + b a with state x and action a, as an environment for tests.

    Episodes end where |x_0| > `edge`. The reward of a step from x is x_0 + a / 2.
    """

    A = 0.98 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    b = np.array([0.0, 0.5])

    def __init__(self, edge: float = np.inf) -> None:
        self.edge = edge
        self.rng = np.random.default_rng(0)

    def starts(self, n: int) -> Array:
        return self.rng.uniform(-1, 1, (n, 2)) * min(self.edge, 1)

    def windows(self, B: int, T: int) -> Sample:
        """Returns B windows of T rows of random play."""
        x, reward = self.starts(B), np.zeros(B)
        first = last = np.zeros(B, bool)
        rows: list[Batch] = []
        for t in range(T):
            last = (np.abs(x[:, 0]) > self.edge) & (t > 0)
            action = self.rng.uniform(-1, 1, (B, 1))
            rows.append(
                {
                    "obs": x.astype(np.float32),
                    "action": action.astype(np.float32),
                    "reward": reward.astype(np.float32),
                    "first": first,
                    "last": last,
                    "terminal": last,
                    "log_prob": np.full(B, -np.log(2), np.float32),
                }
            )
            reward = np.where(last, 0, x[:, 0] + action[:, 0] / 2)
            x = np.where(last[:, None], self.starts(B), x @ self.A.T + action * self.b)
            first = last
        data = {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}
        return Sample(data, np.arange(B), np.full(B, 1 / B), B)


def build(action: Space = ACTION, seed: int = 0, **settings: Any) -> DreamerLite:
    spec = EnvSpec("Swing-v0", VECTOR, action)
    return DreamerLite(Config(**{**SMALL, **settings}), spec, seed, "cpu")


@pytest.fixture(scope="module")
def trained() -> DreamerLite:
    """Returns an agent whose world model was trained on random play without ends of episodes.

    Tests must not train the agent, because they share it.
    """
    agent, system = build(), Swing()
    for _ in range(300):
        agent.learn_world(system.windows(60, 5))
    return agent


# ---------------------------------------------------------------------------- world model


def test_the_world_model_learns_a_linear_system():
    """On new windows the errors are small, compared with predicting no change."""
    agent, system = build(), Swing()
    errors = []
    for _ in range(150):
        windows = system.windows(60, 5)
        metrics = agent.learn_world(windows).metrics
        obs = windows.data["obs"] / windows.data["obs"].std((0, 1))
        row = []
        for step in (1, 4):
            no_change = np.sqrt(np.square(obs[:, step] - obs[:, 0]).mean())
            row.append(float(metrics[f"model/error_{step}"]) / no_change)
        errors.append([*row, float(metrics["loss/reward"])])
    one, four, reward = np.mean(errors[-10:], 0)
    assert one < 0.2
    assert four < 0.2
    assert reward < 0.1  # mean squared error, in units of the mean squared reward


def test_the_continue_head_learns_where_episodes_end():
    agent, system = build(slow_world=0.05), Swing(edge=0.7)
    for _ in range(300):
        agent.learn_world(system.windows(60, 5))
    obs = system.rng.uniform(-1.2, 1.2, (2_000, 2)).astype(np.float32)
    world = agent.slow_world
    with torch.no_grad():
        cont = torch.sigmoid(world.cont(world.encode(torch.tensor(obs)))).squeeze(-1).numpy()
    inside = np.abs(obs[:, 0]) < system.edge
    off_edge = np.abs(np.abs(obs[:, 0]) - system.edge) > 0.1
    assert np.mean((cont > 0.5) == inside, where=off_edge) > 0.9


def test_the_world_loss_ignores_rows_after_the_end_of_an_episode():
    agent, system, end = build(), Swing(), 2
    windows = system.windows(60, 5)
    windows.data["last"][:, end], windows.data["first"][:, end + 1] = True, True
    changed = copy.deepcopy(windows)
    for name, value in system.windows(60, 5).data.items():
        if name in ("obs", "action", "reward"):
            changed.data[name][:, end + 1 :] = value[:, end + 1 :] + 1
    changed.data["action"][:, end] = 0.0  # the action of a last row is unused
    terms = [agent.world_loss(to_tensors(rows.data, "cpu"))[1] for rows in (windows, changed)]
    for name in ("loss/transition", "loss/prediction", "loss/reward"):
        torch.testing.assert_close(terms[0][name], terms[1][name])


def test_disagreement_is_half_the_squared_distance_to_the_next_member(trained):
    world, members = trained.slow_world, trained.config.members
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(members, 7, trained.config.latent, generator=rng)
    action = torch.randn(members, 7, 1, generator=rng)
    with torch.no_grad():
        found, _, disagreement = world.predict_with_disagreement(z, action)
        for m in range(members):
            inputs = z[m].expand(members, -1, -1), action[m].expand(members, -1, -1)
            mean, _ = world.predict(*inputs)
            torch.testing.assert_close(found[m], mean[m])
            expected = 0.5 * (mean[m] - mean[(m + 1) % members]).square().mean(-1)
            torch.testing.assert_close(disagreement[m], expected)


def test_dreams_far_from_the_training_data_are_not_trusted(trained):
    system = Swing()
    inside, outside = system.windows(60, 1), system.windows(60, 1)
    outside.data["obs"] = outside.data["obs"] * 5
    trusted = [trained.dream(starts)["trusted"][:, 1:].mean() for starts in (inside, outside)]
    assert trusted[0] > 0.7
    assert trusted[1] < 0.5 * trusted[0]


def test_trust_starts_at_1_and_never_rises_and_cont_is_a_probability(trained):
    dreams = trained.dream(Swing().windows(60, 3))
    assert (dreams["trusted"].diff(dim=1) <= 0).all()
    assert (dreams["trusted"][:, 0] == 1).all()
    assert (dreams["cont"][:, 0] == 1).all()
    assert ((dreams["cont"] >= 0) & (dreams["cont"] <= 1)).all()


def test_dreams_begin_at_the_last_row_of_each_start(trained):
    starts = Swing().windows(60, 3)
    dreams = trained.dream(starts)
    latent = trained.slow_world.encode(torch.tensor(starts.data["obs"][:, -1]))
    torch.testing.assert_close(dreams["latent"][:, 0], latent)


def test_reencoding_keeps_dreamed_latents_close_to_latents_of_observations(trained):
    """Policy and critic learn on latents of observations only."""
    world, dreams = trained.slow_world, trained.dream(Swing().windows(60, 1))
    members, last = trained.config.members, trained.config.dream_horizon
    z = dreams["latent"][:, 0].unflatten(0, (members, -1))
    action = dreams["action"].unflatten(0, (members, -1))
    with torch.no_grad():
        for step in range(last):  # the same actions, without re-encoding
            z = world.predict(z, action[:, :, step])[0]
        without, dreamed = (
            float((world.reencode(latent) - latent).square().mean().sqrt())
            for latent in (z, dreams["latent"][:, last])
        )
    assert dreamed < 0.3 * without


def test_log_probs_of_dreams_are_those_of_the_policy(trained):
    """If they are equal, Retrace targets on dreams are λ-returns."""
    dreams = trained.dream(Swing().windows(60, 1))
    policy = trained.policy_at(dreams["latent"], trained.policy_rng)
    found = policy.log_prob(dreams["action"])
    torch.testing.assert_close(found, dreams["log_prob"], rtol=0, atol=0.02)


# ---------------------------------------------------------------------- dreams and real rows


@pytest.mark.parametrize(
    ("share", "dreams", "real"), [(1.0, 40, 0), (0.75, 30, 10), (0.7, 25, 15), (0.0, 0, 40)]
)
def test_dream_share_splits_the_policy_batch_into_dreams_and_real_windows(share, dreams, real):
    """The number of dreams is rounded down to a multiple of the ensemble members."""
    agent = build(dream_share=share, members=5)
    consumers = agent.tables["real"].consumers
    assert ("dream" in agent.tables) == ("start" in consumers) == (dreams > 0)
    assert ("policy" in consumers) == (real > 0)
    system, starts, windows = Swing(), None, None
    if dreams:
        assert consumers["start"].batch == dreams
        starts = agent.dream(system.windows(dreams, 1))
    if real:
        assert consumers["policy"].batch == real
        windows = system.windows(real, consumers["policy"].window)
    metrics = agent.learn_policy(windows, starts).metrics
    assert all(np.isfinite(float(value)) for value in metrics.values())
    weight = np.zeros(2)  # total weight of dreams, and of real rows
    if starts is not None:
        weight[0] = agent.dreamed_trajectories(starts)["weight"][:, :-1].sum()
    if windows is not None:
        weight[1] = (~windows.data["last"][:, :-1]).sum()
    assert float(metrics["dream/share"]) == pytest.approx(weight[0] / weight.sum())
    ReplayServer(agent.tables, 0)


def test_invalid_settings_are_refused():
    with pytest.raises(UserError, match=r"world_batch must be a multiple of agent.members \(7\)"):
        Config(members=7)
    with pytest.raises(UserError, match=r"dream_share must be from 0 to 1; found 1\.5"):
        Config(dream_share=1.5)


# ---------------------------------------------------------------------------------- returns


@pytest.fixture
def valued(trained) -> DreamerLite:
    """Returns an agent with random weights in its slow critic, so that values differ everywhere."""
    agent = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in agent.slow_critic.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return agent


def targets_and_values(agent: DreamerLite, trajectories: Batch) -> tuple[Array, Array]:
    """Returns the critic's targets (B, T-1) and the policy's values (B, T) for B trajectories.

    Both use the same samples of the policy.
    """
    rng_state = agent.policy_rng.get_state()
    policy = agent.policy_at(trajectories["latent"], agent.policy_rng)
    q = agent.slow_critic(trajectories["latent"], trajectories["action"], policy)[1]
    value = policy.mean_value(q)
    agent.policy_rng.set_state(rng_state)
    unit = float(agent.value_unit)
    with torch.no_grad():
        found = agent.critic_targets(trajectories, policy)
    return found.numpy() * unit, value.detach().numpy() * unit


@pytest.mark.parametrize("terminal", [True, False])
def test_targets_bootstrap_at_truncation_and_not_at_termination(valued, terminal):
    windows = Swing().windows(8, 6)
    end = 3
    windows.data["last"][:, end], windows.data["first"][:, end + 1] = True, True
    windows.data["terminal"][:, end] = terminal
    found, value = targets_and_values(
        valued, valued.real_trajectories(to_tensors(windows.data, "cpu"))
    )
    reward, gamma = windows.data["reward"], valued.config.gamma
    expected = reward[:, end] + (0 if terminal else gamma * value[:, end])
    np.testing.assert_allclose(found[:, end - 1], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(gamma * value[:, end]).min() > 1e-2  # so that the two cases differ


def test_targets_clip_the_ratio_of_the_policy_to_the_acting_policy_at_one(valued):
    """Retrace weights an action by π/μ, at most 1. So a smaller μ than π changes no target."""
    rows = valued.real_trajectories(to_tensors(Swing().windows(8, 6).data, "cpu"))
    policy = valued.policy_at(rows["latent"], valued.policy_rng)
    log_prob = policy.log_prob(rows["action"]).detach()
    same, rarer, likelier = (
        targets_and_values(valued, {**rows, "log_prob": log_prob + change})[0]
        for change in (0.0, -3.0, 3.0)
    )
    np.testing.assert_allclose(rarer, same, rtol=1e-4, atol=1e-4)
    assert np.abs(likelier - same).max() > 1e-2


def test_targets_do_not_depend_on_the_next_episode(valued):
    system, end = Swing(), 3
    windows = system.windows(8, 6)
    windows.data["last"][:, end], windows.data["first"][:, end + 1] = True, True
    changed = copy.deepcopy(windows)
    for name, value in system.windows(8, 6).data.items():
        if name in ("obs", "action", "reward"):
            changed.data[name][:, end + 1 :] = value[:, end + 1 :]
    changed.data["action"][:, end] = 0.0  # the action of a last row is unused
    real = [
        valued.real_trajectories(to_tensors(sample.data, "cpu")) for sample in (windows, changed)
    ]
    found, changed_found = (targets_and_values(valued, rows)[0][:, :end] for rows in real)
    np.testing.assert_allclose(found, changed_found, rtol=1e-4, atol=1e-4)
    assert not real[0]["weight"][:, end].any()  # nothing is learned from a `last` row


@pytest.mark.parametrize("end", [1, 4])
def test_nothing_is_learned_from_untrusted_steps_and_later_rows(valued, end):
    """The step to row `end` is untrusted. So changes of the rows from `end` on must not matter."""
    dreams = valued.dream(Swing().windows(60, 1))
    dreams["trusted"] = torch.ones_like(dreams["trusted"])
    dreams["trusted"][:, end:] = 0
    changed = {**dreams, "latent": dreams["latent"].clone(), "reward": dreams["reward"].clone()}
    changed["latent"][:, end:] = torch.randn_like(changed["latent"][:, end:])
    changed["reward"][:, end:] += 5
    found, value = targets_and_values(valued, valued.dreamed_trajectories(dreams))
    changed_found, _ = targets_and_values(valued, valued.dreamed_trajectories(changed))
    weight = valued.dreamed_trajectories(dreams)["weight"].numpy()
    counts = weight[:, :-1] > 0
    np.testing.assert_array_equal(counts, np.arange(15) < np.full((60, 1), end - 1))
    np.testing.assert_allclose(found[counts], changed_found[counts], rtol=1e-4, atol=1e-4)
    if end > 1:  # returns bootstrap at row end - 1
        reward, cont = dreams["reward"].numpy(), dreams["cont"].numpy()
        at = end - 1
        expected = reward[:, at] + valued.config.gamma * cont[:, at] * value[:, at]
        np.testing.assert_allclose(found[:, at - 1], expected, rtol=1e-4, atol=1e-4)


def test_the_return_range_ignores_rows_without_weight(valued):
    """A `last` row has no weight. Its target would be a return across the end of the episode."""
    windows = Swing().windows(40, valued.config.dream_horizon + 1)
    windows.data["last"][:, 8], windows.data["first"][:, 9] = True, True
    agents = [copy.deepcopy(valued) for _ in range(2)]
    agents[0].learn_policy(windows, None)
    windows.data["reward"][:, 9] = 50  # the reward of a `first` row is never used
    agents[1].learn_policy(windows, None)
    ranges = [float(agent.return_range.value) for agent in agents]
    assert ranges[1] == pytest.approx(ranges[0], rel=0.05)


@pytest.mark.parametrize("outlier", [1e6, -3e38])
def test_nothing_is_learned_from_observations_with_outliers_and_from_steps_to_them(valued, outlier):
    windows, at = Swing().windows(60, 6), 3
    faulty = copy.deepcopy(windows)
    faulty.data["obs"][:, at, 0] = outlier
    real = [
        valued.real_trajectories(to_tensors(sample.data, "cpu")) for sample in (windows, faulty)
    ]
    np.testing.assert_array_equal(real[1]["weight"][0], [1, 1, 0, 0, 1, 0])
    found, changed_found = (targets_and_values(valued, rows)[0] for rows in real)
    np.testing.assert_allclose(found[:, 4], changed_found[:, 4], rtol=1e-4, atol=1e-4)
    value = targets_and_values(valued, real[1])[1]
    reward, gamma = windows.data["reward"], valued.config.gamma
    np.testing.assert_allclose(
        changed_found[:, 1], reward[:, 2] + gamma * value[:, 2], rtol=1e-4, atol=1e-4
    )


# ------------------------------------------------------------------------------- probe runs


PROBE = {**SMALL, "dream_horizon": 2, "world_window": 2, "warmup": 40}


def values(agent: DreamerLite, obs: list[float]) -> list[float]:
    """Returns the critic's value of the greedy action at each observation."""
    z = agent.slow_world.encode(torch.tensor(obs).view(-1, 1, 1))
    policy = agent.policy_at(z, agent.policy_rng)
    return (agent.critic(z, policy.mode, policy)[1] * agent.value_unit).flatten().tolist()


def greedy(agent: DreamerLite, obs: list[float]) -> Array:
    """Returns the greedy action at each observation."""
    rows = {"obs": np.array(obs, np.float32)[:, None]}
    return agent.act(rows, agent.initial_state(len(obs)), explore=False)[0]


@pytest.mark.parametrize(
    ("env", "obs", "expected"),
    [
        ("Constant", [0.0], [1.0]),
        ("ObsReward", [-1.0, 1.0], [-1.0, 1.0]),
        ("Delayed", [0.0, 1.0], [0.5, 1.0]),  # 0.5 is the discount
    ],
)
def test_the_critic_learns_the_discounted_value(tmp_path, env, obs, expected):
    run = train(
        tmp_path / "run", f"dreamfleet.envs.probe:{env}-v0", 200, options={**PROBE, "gamma": 0.5}
    )
    assert values(run.agent(), obs) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_the_policy_learns_the_rewarded_action_of_each_observation(tmp_path, share):
    """The policy learns from dreams alone, from dreams and real rows, and from real rows alone."""
    options = {**PROBE, "gamma": 0.5, "lr_policy": 1e-3, "dream_share": share}
    run = train(tmp_path / "run", "dreamfleet.envs.probe:ObsActionReward-v0", 240, options=options)
    assert greedy(run.agent(), [-1.0, 1.0]).tolist() == [0, 1]


def test_the_policy_learns_continuous_actions(tmp_path):
    """The best actions are 1 and 3 in the range [0, 4], which is -1/2 and 1/2 in [-1, 1]."""
    run = train(tmp_path / "run", "dreamfleet.envs.probe:Continuous-v0", 400, options=PROBE)
    assert greedy(run.agent(), [-1.0, 1.0]).ravel() == pytest.approx([-0.5, 0.5], abs=0.3)
