from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.gated_rainbow.agent import COLUMNS, GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, EnvSpec, Sample, Space
from tests.agents.gated_rainbow.system import (
    ACTION,
    HEADS,
    SMALL,
    Swing,
    build_agent,
    n_step_returns,
)

# ---------------------------------------------------------------------------- world model


def test_the_world_model_learns_a_linear_system(trained_agent):
    """On new windows the one-step error is below 15 % of the error of predicting no change."""
    rows = to_tensors(Swing().windows(60, 5).data, "cpu")
    world, by_member = trained_agent.slow_world, (trained_agent.config.members, -1)
    x = world.normaliser(rows["obs"])
    history, after = x[:, : CONTEXT + 1], x[:, CONTEXT + 1]
    one_hot = trained_agent.actions.encode(rows["action"][:, CONTEXT])
    with torch.no_grad():
        mean, _, _ = world.predict_with_disagreement(
            history.unflatten(0, by_member), one_hot.unflatten(0, by_member)
        )
        predicted = history[:, -1] + mean.flatten(0, 1) * world.change_rms
        reward, _ = world.predict_outcome(history[:, -1], one_hot, after)
    error, no_change_error = (
        (x - after).square().mean().sqrt() for x in (predicted, history[:, -1])
    )
    assert error < 0.15 * no_change_error
    reward = reward * world.normaliser.reward_rms
    real = rows["reward"][:, CONTEXT + 1]
    assert (reward - real).square().mean().sqrt() < 0.15 * real.std()


def test_held_out_windows_change_the_held_out_error_and_not_the_loss():
    agent, sample = build_agent(world_window=5), Swing().windows(60, 5)
    other = copy.deepcopy(sample)
    other.data["obs"][other.data["held_out"][:, 0], CONTEXT + 1 :] += 5
    losses = [
        agent.world.loss(rows, agent.actions.encode(rows["action"]))[0]
        for rows in (to_tensors(sample.data, "cpu"), to_tensors(other.data, "cpu"))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    errors = []
    for each in (sample, other):
        rows, untrained = to_tensors(each.data, "cpu"), build_agent(world_window=5)
        world, slow_world = untrained.world, untrained.slow_world
        for model in (world, slow_world):
            model.update_statistics(to_tensors(sample.data, "cpu"))
        one_hot = untrained.actions.encode(rows["action"])
        world.update_held_out_error(slow_world, rows, one_hot, untrained.dream_rng)
        errors.append(world.held_out_error)
    assert (errors[1] > errors[0] + 1).all()


def test_the_held_out_error_is_that_of_dreams_with_the_real_actions(trained_agent):
    """Compares the held-out error with the result of a plain loop that draws the same residuals."""
    agent, sample = copy.deepcopy(trained_agent), Swing(edge=0.7).windows(60, 5)
    rows = to_tensors(sample.data, "cpu")
    agent.world.held_out_windows.zero_()
    rng_state = agent.dream_rng.get_state()
    agent.world.update_held_out_error(
        agent.slow_world, rows, agent.actions.encode(rows["action"]), agent.dream_rng
    )
    agent.dream_rng.set_state(rng_state)
    indices = [torch.randint(1024, (5, 12), generator=agent.dream_rng) for _ in range(4)]
    world, x = agent.slow_world, agent.slow_world.normaliser(rows["obs"])
    low, high = world.normaliser(world.low), world.normaliser(world.high)
    errors: list[list[float]] = [[] for _ in range(4)]
    for b in np.flatnonzero(sample.data["held_out"][:, 0]):
        member, history = b // 12, x[b, : CONTEXT + 1]
        for step in range(4):
            if rows["last"][b, CONTEXT : CONTEXT + step + 1].any():
                break
            one_hot = agent.actions.encode(rows["action"][b, CONTEXT + step])
            inputs = history.expand(5, 1, -1, -1), one_hot.expand(5, 1, -1)
            with torch.no_grad():
                mean, log_std = (output[member, 0] for output in world.predict(*inputs))
            residual = world.residuals[indices[step][member, b % 12]]
            dreamed = history[-1] + (mean + log_std.exp() * residual) * world.change_rms
            history = torch.cat([history[1:], dreamed.clamp(low, high)[None]])
            errors[step].append(float((history[-1] - x[b, CONTEXT + step + 1]).square().mean()))
    expected = [np.mean(step) for step in errors]
    np.testing.assert_allclose(agent.world.held_out_error, expected, rtol=1e-3)
    assert (agent.world.held_out_error < agent.world.no_change_error).all()


def test_beyond_the_measured_steps_the_expected_error_grows_in_proportion():
    world = build_agent(world_window=5).world
    assert world.expected_error(3).isinf().all()
    world.held_out_windows.fill_(1)
    world.held_out_error.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]) ** 2)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    np.testing.assert_allclose(world.expected_error(8), expected, rtol=1e-5)


# --------------------------------------------------------------------------------- dreams


def test_dreams_are_as_long_as_the_held_out_error_allows(trained_agent):
    starts = Swing().windows(5, 1)
    world = trained_agent.slow_world
    for growth, steps in ((0.01, 6), (0.13, 3), (1.0, 0)):
        agent = copy.deepcopy(trained_agent)
        agent.slow_world.held_out_error.copy_((growth * torch.arange(1, 5)) ** 2)
        dreams = agent.dream(starts)
        assert {value.shape[:2] for value in dreams.values()} == {(5, CONTEXT + 7)}
        assert not dreams["weight"][:, CONTEXT + steps :].any()
        assert dreams["last"][:, CONTEXT + steps :].all()
        assert (dreams["weight"].sum() > 0) == (steps > 0)
    assert world.held_out_error.max().sqrt() < trained_agent.config.max_model_error


def test_dreamed_changes_have_the_correlations_and_the_distribution_of_real_ones():
    """In real rows two numbers change together, and a third number rarely changes."""
    rng = np.random.default_rng(0)

    def windows(B: int, T: int) -> Sample:
        sample = Swing().windows(B, T)
        rows = CONTEXT + T
        common, seldom = rng.normal(size=(B, rows)), rng.exponential(size=(B, rows))
        seldom *= rng.random((B, rows)) < 0.2
        changes = np.stack([common, common + 0.3 * rng.normal(size=(B, rows)), seldom], -1)
        sample.data["obs"] = (0.1 * changes.cumsum(1)).astype(np.float32)
        return sample

    spec = EnvSpec("Walk-v0", Space((3,), "float32"), ACTION)
    agent = GatedRainbow(Config(**{**SMALL, "dream_after": 0, "world_window": 3}), spec, 0, "cpu")
    for _ in range(150):
        agent.learn_world(windows(60, 3))
    starts = torch.tensor(windows(5000, 1).data["obs"])
    one_hot = agent.actions.encode(torch.zeros(5000, dtype=torch.long))
    step = agent.slow_world.dream_step(starts, one_hot, agent.dream_rng)
    dreamed = (step.obs - starts[:, -1]).numpy()
    real = np.diff(windows(5000, 2).data["obs"][:, CONTEXT:], axis=1)[:, 0]
    np.testing.assert_allclose(np.corrcoef(dreamed.T), np.corrcoef(real.T), atol=0.1)
    np.testing.assert_allclose(dreamed.std(0), real.std(0), rtol=0.15)
    near_0 = [np.mean(np.abs(change[:, 2]) < 0.01) for change in (dreamed, real)]
    assert near_0[1] == pytest.approx(0.82, abs=0.02)  # 0.8 are 0, and some others are small
    assert near_0[0] > 0.6  # of a normal distribution 0.1 would be that near to 0


def test_no_dream_is_trusted_before_dream_after_steps(trained_agent):
    agent = copy.deepcopy(trained_agent)
    agent.config = Config(**{**SMALL, "dream_after": 100, "world_window": 5})
    starts = Swing().windows(5, 1)
    assert agent.dream(starts)["weight"].sum() == 0
    agent.schedules.updates.fill_(100)
    assert agent.dream(starts)["weight"].sum() > 0


def test_dreams_begin_with_real_histories_and_stay_in_the_real_range(trained_agent):
    starts = Swing().windows(5, 1)
    dreams = trained_agent.dream(starts)
    np.testing.assert_array_equal(dreams["obs"][:, : CONTEXT + 1], starts.data["obs"])
    low, high = trained_agent.slow_world.low, trained_agent.slow_world.high
    assert ((dreams["obs"] >= low) & (dreams["obs"] <= high)).all()
    assert not dreams["weight"][:, :CONTEXT].any()
    assert (dreams["weight"][:, -1] == 0).all()
    assert dreams["last"][:, -1].all()


def test_disagreement_and_curiosity_are_larger_outside_of_the_data(trained_agent):
    inside, outside = (Swing().windows(60, 3) for _ in range(2))
    outside.data["obs"] = outside.data["obs"] * 4
    bonus = [
        trained_agent.curiosity_bonus(to_tensors(windows.data, "cpu")).sum(1).mean()
        for windows in (inside, outside)
    ]
    assert bonus[1] > 3 * bonus[0]
    weight = [trained_agent.dream(starts)["weight"].sum() for starts in (inside, outside)]
    assert weight[1] < 0.5 * weight[0]


def test_curiosity_changes_the_loss():
    windows = Swing().windows(50, 4)
    losses = []
    for curiosity in (0.0, 0.5):
        agent = build_agent(curiosity=curiosity, dream_share=0.0, noisy_sigma=0.0)
        agent.learn_world(Swing().windows(60, 9))  # untrained members agree
        assert ("world" in agent.tables["real"].consumers) == (curiosity > 0)
        losses.append(float(agent.learn_policy(windows, None).metrics["loss/value"]))
    assert losses[0] != losses[1]


def test_values_along_dreams_equal_values_along_real_rows(trained_agent):
    """Compares mean values in dreams and in real play at each step, for the same policy and starts.

    A difference would spread by learning, because values bootstrap from dreamed rows.
    """
    agent, system = copy.deepcopy(trained_agent), Swing()
    for _ in range(200):
        agent.learn_policy(system.windows(35, 4), agent.dream(system.windows(5, 1)))
    agent.slow_world.held_out_error.zero_()  # so that all steps are trusted
    starts, horizon = system.windows(4000, 1), agent.config.dream_horizon
    dreamed = agent.dream(starts)["obs"]
    real = list(np.moveaxis(starts.data["obs"], 1, 0))
    for _ in range(horizon):
        action = agent.choose(torch.tensor(np.stack(real[-4:], 1)), agent.act_rng).numpy()
        push = (action - 1)[:, None] * system.b
        real.append((real[-1] @ system.A.T + push).astype(np.float32))

    def values(obs: Any) -> Array:  # (B, C + 1 + H, O) → (B, H + 1)
        histories = obs.unfold(1, 4, 1).transpose(2, 3).flatten(0, 1)
        with torch.no_grad():
            best = agent.online.mean(agent.online(histories)[0]).max(-1).values
        return best.view(len(obs), -1).numpy()

    real_values, dreamed_values = values(torch.tensor(np.stack(real, 1))), values(dreamed)
    assert real_values.shape == dreamed_values.shape == (4000, horizon + 1)
    difference = real_values.mean(0) - dreamed_values.mean(0)
    assert np.abs(difference).max() < 0.1 * real_values.std()


def test_returns_of_dreamed_windows_end_with_the_dream():
    """Compares the returns of sampled windows with returns computed from the dreams."""
    agent = build_agent(n_step=3, gamma=0.9)
    rng, steps = np.random.default_rng(0), 5
    last = np.zeros((4, CONTEXT + steps + 1), bool)
    lengths = np.array([5, 1, 3, 4])  # number of trusted steps of each dream
    weight = np.zeros(last.shape, np.float32)
    for b, length in enumerate(lengths):
        last[b, CONTEXT + length :] = True
        weight[b, CONTEXT : CONTEXT + length] = 1
    dreams = {
        "obs": rng.normal(size=(*last.shape, 2)).astype(np.float32),
        "action": rng.integers(0, 3, last.shape),
        "reward": rng.normal(size=last.shape).astype(np.float32),
        "last": last,
        "terminal": np.zeros(last.shape, bool),
        "weight": weight,
    }
    windows, window_weight = agent.sample_windows(to_tensors(dreams, "cpu"))
    assert len(window_weight) == agent.config.dreamed_windows == 15
    np.testing.assert_allclose(window_weight, 13 / 15)  # 13 trusted rows for 15 windows
    assert windows.keys() == set(COLUMNS)
    data = {key: value.numpy() for key, value in windows.items()}
    rows = {key: value[:, CONTEXT:] for key, value in data.items()}
    total, m, discount = n_step_returns(rows, 3, 0.9)
    for b in range(15):
        ((dream, row),) = np.argwhere((dreams["obs"] == data["obs"][b, CONTEXT]).all(-1))
        assert m[b] == min(3, lengths[dream] + CONTEXT - row)
        assert discount[b] == pytest.approx(0.9 ** m[b])
        rewards = dreams["reward"][dream, row + 1 : row + 1 + m[b]]
        assert total[b] == pytest.approx(sum(0.9**k * r for k, r in enumerate(rewards)), abs=1e-5)
        np.testing.assert_array_equal(
            data["obs"][b, : CONTEXT + 1], dreams["obs"][dream, row - CONTEXT : row + 1]
        )


def test_untrusted_dreams_do_not_change_an_update(trained_agent):
    real, dreams = Swing().windows(35, 4), trained_agent.dream(Swing().windows(5, 1))
    dreams["weight"] = torch.zeros_like(dreams["weight"])
    alone, beside = build_agent(noisy_sigma=0.0), build_agent(noisy_sigma=0.0)
    one, other = alone.learn_policy(real, None), beside.learn_policy(real, dreams)
    assert float(other.metrics["dream/share"]) == 0
    assert float(one.metrics["loss/value"]) == pytest.approx(float(other.metrics["loss/value"]))
    np.testing.assert_allclose(one.rows["priority"], other.rows["priority"], rtol=1e-4)


@pytest.mark.parametrize("counts", [1e-4, 0.3, 1.0])
def test_the_loss_is_the_weighted_mean_over_real_and_dreamed_windows(counts):
    """In a weighted mean, dreams of little weight hardly change the gradient of real windows."""
    agent = build_agent(noisy_sigma=0.0, gate="none", prioritized=False)
    real = to_tensors(Swing().windows(35, 4).data, "cpu")
    dreamed = to_tensors(Swing(edge=0.5).windows(15, 4).data, "cpu")
    episode_stats, weight = torch.zeros(2), torch.full((15,), counts)
    agent.update_value_unit(real["discounted_return"], real["reward"])
    loss, _, metrics = agent.update_loss(
        real, torch.ones(35), episode_stats, (dreamed, weight), None
    )
    each = [agent.td_losses(rows, None)[0].detach() for rows in (real, dreamed)]
    expected = (each[0].sum() + counts * each[1].sum()) / (35 + 15 * counts)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["dream/share"]) == pytest.approx(15 * counts / (35 + 15 * counts))


def test_windows_with_an_outlier_do_not_change_the_loss_and_get_the_lowest_priority():
    losses = []
    for faulty in (False, True):
        agent, system = build_agent(noisy_sigma=0.0, gate="none", prioritized=True), Swing()
        agent.learn_policy(system.windows(35, 4), None)
        real = to_tensors(system.windows(35, 4).data, "cpu")
        if faulty:
            real["obs"][30:, CONTEXT + 2] = torch.tensor([1e20, -1e6])
        else:
            real = {key: value[:30] for key, value in real.items()}
        loss, priority, _ = agent.update_loss(
            real, torch.ones(len(real["obs"])), torch.zeros(2), None, None
        )
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # running statistics differ a little
    assert (priority[30:] < priority[:30].min()).all()


def test_trusted_dreams_have_the_configured_share_of_an_update(trained_agent):
    dreams = trained_agent.dream(Swing().windows(60, 1))
    assert dreams["weight"].sum() > 15
    metrics = build_agent().learn_policy(Swing().windows(35, 4), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "consumers"),
    [
        ({}, {"policy", "world", "start"}),
        ({"dream_share": 0.0}, {"policy"}),
        ({"dream_share": 0.0, "curiosity": 0.1}, {"policy", "world"}),
    ],
)
def test_the_world_model_learns_only_for_dreams_or_curiosity(options, consumers):
    agent = build_agent(**options)
    assert agent.tables["real"].consumers.keys() == consumers
    assert ("dream" in agent.tables) == ("start" in consumers)


@pytest.mark.parametrize(
    "options",
    [
        *({"value_head": values} for values in HEADS),
        *({"gate": gate} for gate in ("mlp", "transformer", "none")),
        {"prioritized": False},
        {"n_step": 1},
        {"noisy_sigma": 0.0},
        {"curiosity": 0.1},
    ],
    ids=str,
)
def test_every_variant_learns_from_dreams(options):
    agent, system = build_agent(dream_after=0, max_model_error=9.0, **options), Swing()
    consumers = agent.tables["real"].consumers
    for _ in range(3):
        agent.learn_world(system.windows(60, consumers["world"].window))
        dreams = agent.dream(system.windows(consumers["start"].batch, 1))
        real = system.windows(consumers["policy"].batch, consumers["policy"].window)
        metrics = agent.learn_policy(real, dreams).metrics
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert float(metrics["dream/share"]) > 0


def test_inconsistent_settings_are_refused():
    with pytest.raises(UserError, match=r"world_batch must be a multiple of agent.members \(7\)"):
        Config(members=7, world_batch=60)
    with pytest.raises(UserError, match=r"share must be from 0 to below 1; found 1"):
        Config(dream_share=1.0)
    with pytest.raises(UserError, match="n_step must be at least 1; found 0"):
        Config(n_step=0)
