from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.agents.gated_rainbow.tables import COLUMNS
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, EnvSpec, Sample, Space
from tests.agents.gated_rainbow.system import CHOICE, HEADS, SMALL, Swing, build, returns

# ---------------------------------------------------------------------------- world model


def test_the_world_learns_a_linear_system(swinging):
    """On fresh windows, each step with its reward; compared with the guess of no change."""
    rows = to_tensors(Swing().windows(60, 5).data, "cpu")
    world, share = swinging.slow_world, (swinging.config.members, -1)
    x = world.normaliser(rows["obs"])
    history, code = x[:, : CONTEXT + 1], swinging.actions.encode(rows["action"][:, CONTEXT])
    with torch.no_grad():
        mean, _, _ = world.predict_with_disagreement(
            history.unflatten(0, share), code.unflatten(0, share)
        )
        following = history[:, -1] + mean.flatten(0, 1) * world.change_rms
        reward, _ = world.predict_outcome(history[:, -1], code, x[:, CONTEXT + 1])
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
        agent.world.loss(rows, agent.actions.encode(rows["action"]))[0]
        for rows in (to_tensors(sample.data, "cpu"), to_tensors(other.data, "cpu"))
    ]
    torch.testing.assert_close(learned[0], learned[1])
    measured = []
    for one in (sample, other):
        rows, clean = to_tensors(one.data, "cpu"), build(world_window=5)
        for world in (clean.world, clean.slow_world):
            world.update_statistics(to_tensors(sample.data, "cpu"))
        code = clean.actions.encode(rows["action"])
        clean.world.update_held_out_error(clean.slow_world, rows, code, clean.dream_rng)
        measured.append(clean.world.error)
    assert (measured[1] > measured[0] + 1).all()


def test_the_held_out_error_is_that_of_dreams_step_by_step(swinging):
    """With the real actions; what each step draws is asked of the same generator."""
    agent, sample = copy.deepcopy(swinging), Swing(edge=0.7).windows(60, 5)
    rows = to_tensors(sample.data, "cpu")
    agent.world.seen.zero_()
    drawing = agent.dream_rng.get_state()
    agent.world.update_held_out_error(
        agent.slow_world, rows, agent.actions.encode(rows["action"]), agent.dream_rng
    )
    agent.dream_rng.set_state(drawing)
    drawn = [torch.randint(1024, (5, 12), generator=agent.dream_rng) for _ in range(4)]
    world, x = agent.slow_world, agent.slow_world.normaliser(rows["obs"])
    low, high = world.normaliser(world.low), world.normaliser(world.high)
    errors: list[list[float]] = [[] for _ in range(4)]
    for b in np.flatnonzero(sample.data["held_out"][:, 0]):
        member, history = b // 12, x[b, : CONTEXT + 1]
        for step in range(4):
            if rows["last"][b, CONTEXT : CONTEXT + step + 1].any():
                break
            code = agent.actions.encode(rows["action"][b, CONTEXT + step])
            asked = history.expand(5, 1, -1, -1), code.expand(5, 1, -1)
            with torch.no_grad():
                mean, log_std = (of[member, 0] for of in world.predict(*asked))
            residual = world.residuals[drawn[step][member, b % 12]]
            following = history[-1] + (mean + log_std.exp() * residual) * world.change_rms
            history = torch.cat([history[1:], following.clamp(low, high)[None]])
            errors[step].append(float((history[-1] - x[b, CONTEXT + step + 1]).square().mean()))
    expected = [np.mean(step) for step in errors]
    np.testing.assert_allclose(agent.world.error, expected, rtol=1e-3)
    assert (agent.world.error < agent.world.still).all()


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
    for growth, steps in ((0.01, 6), (0.13, 3), (1.0, 0)):
        agent = copy.deepcopy(swinging)
        agent.slow_world.error.copy_((growth * torch.arange(1, 5)) ** 2)
        dreams = agent.dream(starts)
        assert dreams["obs"].shape[:2] == (5, CONTEXT + max(steps, 1) + 1)
        assert dreams["weight"].sum() <= 5 * steps
        assert (dreams["weight"].sum() > 0) == (steps > 0)
    assert world.error.max().sqrt() < swinging.config.max_model_error


def test_numbers_that_move_together_in_real_rows_do_so_in_dreams():
    """Two numbers get one push each step, by chance; the third another, which is mostly nothing."""
    rng = np.random.default_rng(0)

    def windows(B: int, T: int) -> Sample:
        sample = Swing().windows(B, T)
        rows = CONTEXT + T
        common, rare = rng.normal(size=(B, rows)), rng.exponential(size=(B, rows))
        rare *= rng.random((B, rows)) < 0.2
        pushes = np.stack([common, common + 0.3 * rng.normal(size=(B, rows)), rare], -1)
        sample.data["obs"] = (0.1 * pushes.cumsum(1)).astype(np.float32)
        return sample

    spec = EnvSpec("Pushed-v0", Space((3,), "float32"), CHOICE)
    agent = GatedRainbow(Config(**{**SMALL, "dream_after": 0, "world_window": 3}), spec, 0, "cpu")
    for _ in range(150):
        agent.learn_world(windows(60, 3))
    starts = torch.tensor(windows(5000, 1).data["obs"]).unflatten(0, (5, -1))
    code = agent.actions.encode(torch.zeros(5, 1000, dtype=torch.long))
    step = agent.slow_world.imagine(starts, code, agent.dream_rng)
    dreamed = (step.obs - starts[:, :, -1]).flatten(0, 1).numpy()
    real = np.diff(windows(5000, 2).data["obs"][:, CONTEXT:], axis=1)[:, 0]
    np.testing.assert_allclose(np.corrcoef(dreamed.T), np.corrcoef(real.T), atol=0.1)
    np.testing.assert_allclose(dreamed.std(0), real.std(0), rtol=0.15)
    quiet = [np.mean(np.abs(of[:, 2]) < 0.01) for of in (dreamed, real)]
    assert quiet[1] == pytest.approx(0.82, abs=0.02)  # 0.8, and pushes that are small
    assert quiet[0] > 0.6  # a normal distribution would have 0.1 of it


def test_dreams_wait_for_their_time(swinging):
    agent = copy.deepcopy(swinging)
    agent.config = Config(**{**SMALL, "dream_after": 100, "world_window": 5})
    starts = Swing().windows(5, 1)
    assert agent.dream(starts)["weight"].sum() == 0
    agent.schedules.updates.fill_(100)
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
    found = [
        swinging.curiosity_bonus(to_tensors(s.data, "cpu")).sum(1).mean() for s in (inside, outside)
    ]
    assert found[1] > 3 * found[0]
    weight = [swinging.dream(starts)["weight"].sum() for starts in (inside, outside)]
    assert weight[1] < 0.5 * weight[0]


def test_curiosity_adds_to_rewards():
    windows = Swing().windows(50, 4)
    found = []
    for curiosity in (0.0, 0.5):
        agent = build(curiosity=curiosity, dream_share=0.0, noisy_sigma=0.0)
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
    starts, horizon = system.windows(4000, 1), agent.config.dream_horizon
    dreamed = agent.dream(starts)["obs"]
    lived = list(np.moveaxis(starts.data["obs"], 1, 0))
    for _ in range(horizon):
        action = agent.choose(torch.tensor(np.stack(lived[-4:], 1)), agent.act_rng).numpy()
        push = (action - 1)[:, None] * system.b
        lived.append((lived[-1] @ system.A.T + push).astype(np.float32))

    def values(obs: Any) -> Array:  # (B, C + 1 + H, O) → (B, H + 1)
        histories = obs.unfold(1, 4, 1).transpose(2, 3).flatten(0, 1)
        with torch.no_grad():
            found = agent.online.mean(agent.online(histories)[0]).max(-1).values
        return found.view(len(obs), -1).numpy()

    real, imagined = values(torch.tensor(np.stack(lived, 1))), values(dreamed)
    assert real.shape == imagined.shape == (4000, horizon + 1)
    assert np.abs(real.mean(0) - imagined.mean(0)).max() < 0.1 * real.std()


def test_windows_of_dreams_end_with_them():
    """What is drawn from a dream, against the dream; a dream of one step discounts by γ."""
    agent = build(n_step=3, gamma=0.9)
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
    windows, found_weight = agent.sample_windows(to_tensors(dreams, "cpu"))
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
    alone, beside = build(noisy_sigma=0.0), build(noisy_sigma=0.0)
    one, other = alone.learn_policy(real, None), beside.learn_policy(real, dreams)
    assert float(other.metrics["dream/share"]) == 0
    assert float(one.metrics["loss/value"]) == pytest.approx(float(other.metrics["loss/value"]))
    np.testing.assert_allclose(one.priorities, other.priorities, rtol=1e-4)


@pytest.mark.parametrize("counts", [1e-4, 0.3, 1.0])
def test_an_update_is_the_mean_over_windows_as_far_as_they_count(counts):
    """So dreams that count little leave the gradient of the real rows as it is."""
    agent = build(noisy_sigma=0.0, gate="none", prioritized=False)
    real = to_tensors(Swing().windows(35, 4).data, "cpu")
    dreamed = to_tensors(Swing(edge=0.5).windows(15, 4).data, "cpu")
    played, weight = torch.zeros(2), torch.full((15,), counts)
    agent.update_value_unit(real["trace"], real["reward"])
    loss, _, metrics = agent.update_loss(real, torch.ones(35), played, (dreamed, weight), None)
    each = [agent.losses(rows, None)[0].detach() for rows in (real, dreamed)]
    expected = (each[0].sum() + counts * each[1].sum()) / (35 + 15 * counts)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["dream/share"]) == pytest.approx(15 * counts / (35 + 15 * counts))


def test_nothing_is_learned_from_windows_with_an_outlier():
    """The update is that of the other windows, and such windows are not asked for again."""
    found = []
    for faulty in (False, True):
        agent, system = build(noisy_sigma=0.0, gate="none", prioritized=True), Swing()
        agent.learn_policy(system.windows(35, 4), None)
        real = to_tensors(system.windows(35, 4).data, "cpu")
        if faulty:
            real["obs"][30:, CONTEXT + 2] = torch.tensor([1e20, -1e6])
        else:
            real = {key: value[:30] for key, value in real.items()}
        loss, priority, _ = agent.update_loss(
            real, torch.ones(len(real["obs"])), torch.zeros(2), None, None
        )
        found.append(float(loss.detach()))
    assert found[1] == pytest.approx(found[0], rel=0.02)  # the statistics are of other rows
    assert (priority[30:] < priority[:30].min()).all()


def test_believed_dreams_are_their_share_of_the_update(swinging):
    dreams = swinging.dream(Swing().windows(60, 1))
    assert dreams["weight"].sum() > 15
    metrics = build().learn_policy(Swing().windows(35, 4), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "consumers"),
    [
        ({}, {"policy", "world", "start"}),
        ({"dream_share": 0.0}, {"policy"}),
        ({"dream_share": 0.0, "curiosity": 0.1}, {"policy", "world"}),
    ],
)
def test_without_dreams_or_curiosity_there_is_no_world(options, consumers):
    agent = build(**options)
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
def test_each_part_can_be_left_out_or_exchanged(options):
    agent, system = build(dream_after=0, max_model_error=9.0, **options), Swing()
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
        Config(members=7, world_batch=60)
    with pytest.raises(UserError, match=r"share must be from 0 to below 1; found 1"):
        Config(dream_share=1.0)
    with pytest.raises(UserError, match="n_step must be at least 1; found 0"):
        Config(n_step=0)
