"""Tests Gated Rainbow on image observations: its inputs, its dreams, and a training run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dreamfleet.agents.blocks.arrays import to_tensors
from dreamfleet.agents.blocks.conv import NATURE, Convolutions
from dreamfleet.agents.blocks.normaliser import FrameNormaliser
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.agents.gated_rainbow.frame_world import FrameTransition
from dreamfleet.agents.gated_rainbow.network import ValueNetwork
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EnvSpec, Sample, Space
from dreamfleet.replay_server.server import ReplayServer
from tests.runs import train

OBS, ACTION = Space((40, 40, 1), "uint8"), Space((), "int64", n=3)
SPEC = EnvSpec("Slide-v0", OBS, ACTION)
SMALL: dict[str, Any] = {
    "hidden": 32,
    "world_hidden": 64,
    "members": 2,
    "batch": 12,
    "world_batch": 8,
    "world_window": 4,
    "lr_world": 1e-2,
    "slow_world": 0.1,
}


class Slide:
    """A system whose frames show a bright block that moves 3 pixels to the right in each step.

    Action 0 also moves the block up by 3 pixels, action 2 down. Action 2 earns a reward of 5, the
    other actions 0. A block that leaves the frame enters on the opposite side.
    """

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def windows(self, B: int, T: int) -> Sample:
        shape = (B, CONTEXT + T)
        action = self.rng.integers(0, 3, shape)
        moved = np.zeros((*shape, 2), np.int64)
        moved[:, 1:, 1], moved[:, 1:, 0] = 3, 3 * (action[:, :-1] - 1)
        place = self.rng.integers(0, 40, (B, 1, 2)) + moved.cumsum(1)
        obs = np.zeros((*shape, 40, 40, 1), np.uint8)
        for b, t in np.ndindex(*shape):
            rows, columns = ((place[b, t, axis] + np.arange(8)) % 40 for axis in range(2))
            obs[b, t, rows[:, None], columns, 0] = 200
        reward = np.zeros(shape, np.float32)
        reward[:, 1:] = 5.0 * (action[:, :-1] == 2)
        flags = {key: np.zeros(shape, bool) for key in ("first", "last", "terminal")}
        held_out = np.repeat(self.rng.random((B, 1)) < 0.3, shape[1], 1)
        data = {
            "obs": obs,
            "action": action,
            "reward": reward,
            "discounted_return": reward,
            **flags,
        }
        return Sample({**data, "held_out": held_out}, np.arange(B), np.full(B, 1 / B), B)


def build_agent(**options: Any) -> GatedRainbow:
    return GatedRainbow(Config(**{**SMALL, **options}), SPEC, 0, "cpu")


@pytest.fixture(scope="module")
def trained_agent() -> GatedRainbow:
    """Returns an agent whose world model was trained on `Slide`; tests must not train it."""
    agent = build_agent(dream_after=0, dream_horizon=3, max_model_error=9.0, max_disagreement=1e9)
    system = Slide()
    for _ in range(120):
        agent.learn_world(system.windows(8, 4))
    return agent


# ------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("gate", ["mlp", "transformer", "none"])
@pytest.mark.parametrize("shape", [(84, 84, 1), (64, 48, 3)])
def test_the_value_network_reads_frames_of_several_sizes(gate, shape):
    spec = EnvSpec("Any-v0", Space(shape, "uint8"), ACTION)
    net = ValueNetwork(Config(hidden=32, quantiles=8, gate=gate), spec)
    values, gate = net(torch.randint(0, 256, (5, 4, *shape), dtype=torch.uint8))
    assert values.shape == (5, 3, 8)
    assert gate.shape == (5, 32)


def test_pixels_are_scaled_to_0_to_1_and_back():
    frame = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = FrameNormaliser()(frame)
    assert x.shape == (1, 1, 16, 16)
    assert (x.min(), x.max()) == (0, 1)
    torch.testing.assert_close(FrameNormaliser().denormalise(x), frame.float(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_gate_and_features_depend_on_every_frame_of_a_history(kind):
    net, weights = build_agent(gate=kind).online, torch.linspace(-1, 1, 32)
    history = torch.rand(3, 4, 1, 40, 40, requires_grad=True)
    for out in (net.body(history), net.gate(net.body.gate_input(history))):
        (gradient,) = torch.autograd.grad((out * weights).sum(), history)
        assert (gradient.abs().sum((0, 2, 3, 4)) > 0).all()


def test_every_parameter_is_trained():
    agent, system = build_agent(dream_after=0, max_model_error=9.0), Slide()
    nets = nn.ModuleDict({"online": agent.online, "world": agent.world})
    before = {name: parameter.detach().clone() for name, parameter in nets.named_parameters()}
    for _ in range(2):  # the first update trains the world's last layers only, as they start at 0
        agent.learn_world(system.windows(8, 4))
        agent.learn_policy(system.windows(8, 4), agent.dream(system.windows(10, 1)))
    for name, parameter in nets.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space((35, 84, 1), "uint8"), "at least 36 × 36; found uint8 35 × 84"),
        (Space((84, 84, 1), "float32"), "must be uint8 .* found float32 84 × 84"),
    ],
)
def test_small_or_float_frames_are_refused(space, message):
    with pytest.raises(UserError, match=message):
        Convolutions(space, 4, NATURE)


def test_acting_and_the_replay_stack_the_same_frames():
    """The earlier frames that `act` remembers equal the context that the replay returns."""
    agent, n, steps = (
        build_agent(dream_share=0.0, warmup=1, policy_updates_per_step=1.0, batch=4),
        2,
        9,
    )
    obs = np.random.default_rng(0).integers(0, 256, (n, steps, 40, 40, 1), np.uint8)
    first = np.zeros((n, steps), bool)
    first[:, 0] = first[1, 6] = True
    last = np.roll(first, -1, 1)
    last[:, -1] = False
    state, chunk, histories = agent.initial_state(n), [], {}
    for t in range(steps):
        rows = {"obs": obs[:, t], "first": first[:, t], "last": last[:, t]}
        rows |= {"reward": np.zeros(n, np.float32), "terminal": last[:, t]}
        action, state, extras = agent.act(rows, state, explore=True)
        assert state.history.dtype == np.uint8
        for i in range(n):
            histories[obs[i, t].tobytes()] = state.history[i]
        chunk.append({**rows, "action": action, **extras})
    data = {key: np.stack([row[key] for row in chunk], 1) for key in chunk[0]}
    replay = ReplayServer(agent.tables, 0)
    assert replay.add("real", data, np.arange(n))
    sample = replay.sample("real", "policy")
    assert isinstance(sample, Sample)
    assert sample.data["obs"].dtype == np.uint8
    for window in sample.data["obs"]:
        np.testing.assert_array_equal(window[: CONTEXT + 1], histories[window[CONTEXT].tobytes()])


def test_it_learns_which_action_pays_from_the_place_of_the_block():
    """Action 0 is rewarded if the block is on the left, action 1 if it is on the right."""
    agent, system = (
        build_agent(dream_share=0.0, noisy_sigma=0.0, batch=32, n_step=1, lr_critic=1e-3),
        Slide(),
    )

    def on_the_right(obs: Any) -> Any:
        return obs[..., 20:, :].sum((-3, -2, -1)) > obs[..., :20, :].sum((-3, -2, -1))

    for _ in range(80):
        sample = system.windows(32, 2)
        rows = {key: value[:, CONTEXT:] for key, value in sample.data.items()}
        paid = rows["action"][:, 0] == on_the_right(rows["obs"][:, 0])
        rows["reward"][:, 1] = rows["discounted_return"][:, 1] = paid
        rows["last"][:, 1] = rows["terminal"][:, 1] = True
        agent.learn_policy(sample, None)
    obs = system.windows(200, 1).data["obs"]
    action = agent.choose(torch.as_tensor(obs), None).numpy()
    assert (action == on_the_right(obs[:, CONTEXT])).mean() > 0.9


def test_default_batches_are_smaller_for_frames():
    frames, vectors = Config().sized(OBS), Config().sized(Space((4,), "float32"))
    assert (frames.batch, frames.world_batch, frames.world_window) == (32, 10, 6)
    assert (vectors.batch, vectors.world_batch, vectors.world_window) == (256, 60, 9)
    assert Config(batch=7, world_batch=20, world_window=3).sized(OBS).batch == 7


# ------------------------------------------------------------------------------------ dreams


def test_the_world_model_learns_movement_and_rewards_of_a_block(trained_agent):
    """On new windows the errors are smaller than the errors of predicting no change."""
    world, sample = trained_agent.slow_world, Slide().windows(40, 4)
    rows = to_tensors(sample.data, "cpu")
    one_hot = trained_agent.actions.encode(rows["action"][:, CONTEXT])
    step = world.dream_step(rows["obs"][:, : CONTEXT + 1], one_hot, trained_agent.dream_rng)
    dreamed, real = step.obs.float(), rows["obs"][:, CONTEXT + 1].float()
    error = (dreamed - real).square().mean().sqrt()
    no_change_error = (rows["obs"][:, CONTEXT].float() - real).square().mean().sqrt()
    assert error < 0.7 * no_change_error
    rewarded = rows["reward"][:, CONTEXT + 1] > 0
    assert step.reward[rewarded].mean() > 4 and step.reward[~rewarded].mean() < 1
    assert (world.held_out_error < 0.8 * world.no_change_error).all()
    assert trained_agent.world.expected_error(3).isfinite().all()


def test_the_unit_of_the_error_is_the_standard_deviation_of_pixels(trained_agent):
    world, x = trained_agent.world, Slide().windows(200, 1).data["obs"][:, 0] / 255
    deviation = np.sqrt(((x - x.mean(0)) ** 2).mean())
    assert float(world.obs_std) == pytest.approx(deviation, rel=0.05)
    expected = float(world.held_out_error[0].sqrt()) / float(world.obs_std)
    assert float(world.expected_error(1)) == pytest.approx(expected)


def test_dreams_are_rows_of_whole_bytes(trained_agent):
    starts = Slide().windows(6, 1)
    dreams = trained_agent.dream(starts)
    assert dreams["obs"].dtype == torch.uint8
    assert dreams["obs"].shape == (6, CONTEXT + 3 + 1, 40, 40, 1)
    np.testing.assert_array_equal(dreams["obs"][:, : CONTEXT + 1], starts.data["obs"])
    assert int(dreams["obs"].max()) <= 200  # the largest value in real frames
    assert dreams["last"][:, -1].all()
    assert not dreams["last"][:, : CONTEXT + 1].any()
    assert dreams["weight"][:, CONTEXT:-1].eq(1).all()
    assert dreams["terminal"].logical_not().all()  # no real episode terminated
    metrics = build_agent().learn_policy(Slide().windows(8, 4), dreams).metrics
    assert float(metrics["dream/share"]) == pytest.approx(4 / 12)


def test_members_disagree_more_on_random_frames(trained_agent):
    starts = Slide().windows(8, 2)
    noise = np.random.default_rng(1).integers(0, 256, starts.data["obs"].shape, np.uint8)
    one_hot = trained_agent.actions.encode(torch.as_tensor(starts.data["action"]))
    disagreement = [
        float(trained_agent.slow_world.disagreement(torch.as_tensor(obs), one_hot).mean())
        for obs in (starts.data["obs"], noise)
    ]
    assert disagreement[1] > 3 * disagreement[0]


@pytest.mark.parametrize("size", [(40, 40), (41, 39)])
def test_an_untrained_transition_predicts_no_change_for_frames_of_any_size(size):
    change = FrameTransition(8, 2, 3, 16)(torch.rand(5, 8, *size), torch.rand(5, 3))
    assert change.shape == (5, 2, *size)
    assert not change.any()


# -------------------------------------------------------------------------------- training run


def test_a_run_on_space_invaders_learns_from_dreams(tmp_path):
    pytest.importorskip("ale_py")
    options = {
        **SMALL,
        "warmup": 20,
        "policy_updates_per_step": 0.25,
        "dream_after": 0,
        "max_model_error": 9.0,
    }
    options |= {"dream_horizon": 2, "dreams_per_update": 4, "capacity": 500, "held_out_share": 0.5}
    train_config = TrainConfig(chunk=4, eval_every=0, log_every=5)
    run = train(
        tmp_path / "run",
        "ALE/SpaceInvaders-v5",
        120,
        options=options,
        agent="gated-rainbow",
        envs_per_actor=2,
        env_options={"max_num_frames_per_episode": 40},
        train=train_config,
    )
    updates = [event for event in run.events if event["kind"] == "learn"]
    assert updates[-1]["dream/share"] > 0
    assert all(event["length"] == 10 for event in run.events if event["kind"] == "episode")
    agent = run.agent()
    rows = {
        "obs": np.zeros((2, 84, 84, 1), np.uint8),
        "reward": np.zeros(2, np.float32),
        "first": np.ones(2, bool),
    }
    action, _, _ = agent.act(rows, agent.initial_state(2), explore=False)
    assert action[0] == action[1]
