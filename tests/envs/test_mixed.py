"""Tests rows of environments whose observations have several parts, and factored actions."""

import gymnasium as gym
import numpy as np
import pytest

from dreamfleet.core.errors import EnvironmentFault
from dreamfleet.core.types import EnvSpec, Space
from dreamfleet.envs import registry
from dreamfleet.envs.codec import Codec
from dreamfleet.envs.first_step import try_first_step
from dreamfleet.envs.vector import GymVector
from tests.envs import own

CHOICE, IMAGE = Space((), "int64", n=2), Space((64, 64, 3), "uint8")


def test_the_specification_names_all_parts():
    spec = registry.describe(own.car("Car-v0"))
    assert spec == EnvSpec("Car-v0", Space((2,), "float32"), CHOICE, {"obs.camera": IMAGE})
    assert [*spec.observations] == ["obs", "obs.camera"]
    assert str(spec) == (
        "observations float32 (2,), obs.camera uint8 (64, 64, 3) and actions 2 choices"
    )
    assert {spec: 1}[registry.describe("Car-v0")] == 1


def test_rows_hold_a_column_for_the_vector_and_one_for_the_image():
    env = GymVector(own.car("Car-v0"), 3, seed=0)
    rows = [env.reset(), *(env.step(np.zeros(3, np.int64)) for _ in range(7))]
    for row, t in zip(rows, [0, 1, 2, 3, 4, 5, 0, 1], strict=True):
        assert [*row][:2] == ["obs", "obs.camera"]
        assert row["obs"].tolist() == [[t / 2, -t]] * 3 and row["obs"].dtype == np.float32
        camera = np.full((3, 64, 64, 3), t, np.uint8)
        np.testing.assert_array_equal(row["obs.camera"], camera, strict=True)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("camera", np.zeros((64, 64, 3)), r"camera: float64 \(64, 64, 3\) where uint8 "),
        ("camera", np.zeros((64, 64), np.uint8), r"camera: uint8 \(64, 64\) where uint8 "),
        ("speed", [np.nan, 0], "an observation of nan at speed[0] after"),
        ("speed", [0, 1e300], "an observation of 1e+300 at speed[1], which float32 cannot hold"),
    ],
)
def test_a_wrong_part_is_named_with_environment_and_action(part, value, message):
    def obs(env, t):
        good = {"camera": np.zeros((64, 64, 3), np.uint8), "speed": [0, 0]}
        return {**good, part: value} if t else good

    env = GymVector(own.car("Car-v0", obs=obs), 1, seed=0)
    env.reset()
    with pytest.raises(EnvironmentFault) as fault:
        env.step(np.zeros(1, np.int64))
    assert message.replace("\\", "") in str(fault.value)
    assert str(fault.value).startswith("Car-v0[0] returned an observation")
    assert str(fault.value).endswith("after action 0")


class Together(gym.vector.VectorEnv):
    """N cars in one batched environment, of which number i is i steps ahead of the first."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012
    wrong: dict = {}  # parts that `step` returns in place of the right ones  # noqa: RUF012

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def reset(self, *, seed=None, options=None):
        self.t = np.arange(self.num_envs)
        return self.seen(), {}

    def step(self, actions):
        self.t = self.t + 1
        flags = np.zeros(self.num_envs, bool)
        return {**self.seen(), **self.wrong}, np.zeros(self.num_envs), flags, flags, {}

    def seen(self):
        camera = np.broadcast_to(self.t[:, None, None, None], (self.num_envs, 64, 64, 3))
        return {"camera": camera.astype(np.uint8), "speed": np.stack([self.t / 2, -self.t], 1)}


@pytest.fixture
def together(monkeypatch):
    name = own.car("Cars-v0")
    entry = gym.registry[name].entry_point
    monkeypatch.setattr(entry, "metadata", {"batched": True, "render_modes": []})
    gym.registry[name].vector_entry_point = Together
    env = GymVector(name, 3, seed=0)
    env.reset()
    return env


def test_a_batched_environment_may_have_parts(together):
    row = together.step(np.zeros(3, np.int64))
    assert row["obs"].tolist() == [[0.5, -1], [1, -2], [1.5, -3]]
    assert row["obs"].dtype == np.float32
    assert (row["obs.camera"] == np.array([1, 2, 3])[:, None, None, None]).all()
    assert row["obs.camera"].shape == (3, 64, 64, 3) and row["obs.camera"].dtype == np.uint8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"camera": np.zeros((3, 64, 64, 3))}, "[0] returned an observation camera: float64"),
        (
            {"speed": [[0, 0], [0, np.inf], [0, 0]]},
            "[1] returned an observation of inf at speed[1]",
        ),
        ({"speed": [[0, 0]]}, "observation speed: int64 (1, 2) where float32 (3, 2)"),
    ],
)
def test_a_wrong_part_of_a_batched_environment_is_named(together, monkeypatch, wrong, message):
    monkeypatch.setattr(Together, "wrong", wrong)
    with pytest.raises(EnvironmentFault) as fault:
        together.step(np.zeros(3, np.int64))
    assert message in str(fault.value)


def test_a_factored_action_reaches_the_environment_entry_by_entry():
    env = GymVector(own.switchboard("Switches-v0"), 2, seed=0)
    assert env.spec.action == Space((8,), "int64", choices=(5,) * 8)
    env.reset()
    action = np.array([[0, 1, 2, 3, 4, 3, 2, 1], [4, 4, 4, 4, 0, 0, 0, 0]])
    assert env.step(action)["obs"].tolist() == action.tolist()


def test_a_fault_after_a_long_action_is_one_line():
    name = own.register("Long-v0", acts=gym.spaces.MultiBinary(100), reward=lambda t: np.nan)
    env = GymVector(name, 1, seed=0)
    env.reset()
    with pytest.raises(EnvironmentFault) as fault:
        env.step(np.zeros((1, 100), np.int64))
    assert "\n" not in str(fault.value)


def test_numbers_beside_an_image_are_checked_for_what_float32_cannot_hold():
    def obs(env, t):
        return {"camera": np.zeros((64, 64, 3), np.uint8), "speed": [0, 1.7e9 + t]}

    spec, warnings = try_first_step(own.car("Car-v0", obs=obs), {})
    assert spec.more_obs == {"obs.camera": IMAGE}
    (warning,) = warnings
    assert "observes 1700000001.0 at speed[1]: agents see float32" in warning


def test_a_codec_encodes_one_observation_and_a_batch():
    codec = Codec(own.car("Car-v0"), {})
    cameras = np.arange(2, dtype=np.uint8)[:, None, None, None] + np.zeros((2, 64, 64, 3), np.uint8)
    speeds = np.array([[1.0, 2.0], [3.0, 4.0]])
    rows, batched = codec.encode({"camera": cameras, "speed": speeds})
    assert batched and [*rows] == ["obs", "obs.camera"]
    np.testing.assert_array_equal(rows["obs"], speeds.astype(np.float32), strict=True)
    np.testing.assert_array_equal(rows["obs.camera"], cameras, strict=True)
    row, batched = codec.encode({"camera": cameras[1], "speed": speeds[1]})
    assert not batched
    for name in rows:
        np.testing.assert_array_equal(row[name], rows[name][1:], strict=True)


@pytest.mark.parametrize(
    ("camera", "speed", "message"),
    [
        (np.zeros((64, 64, 3)), [0, 0], "camera: float64"),
        (np.zeros((64, 64, 3), np.uint8), [0, np.nan], r"not finite at speed\[1\]"),
        (np.zeros((2, 64, 64, 3), np.uint8), [0, 0], r"\(camera: 2, speed: one\)"),
        (np.zeros((64, 3), np.uint8), [0, 0], "camera: with 2 axes, not 3"),
    ],
)
def test_a_codec_names_the_part_that_it_refuses(camera, speed, message):
    codec = Codec(own.car("Car-v0"), {})
    with pytest.raises(ValueError, match=f"cannot see .*{message}"):
        codec.encode({"camera": camera, "speed": speed})
