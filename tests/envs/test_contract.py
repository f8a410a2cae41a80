"""Tests that values from environments are converted if possible, and else reported in an error."""

import random
import signal
from decimal import Decimal

import gymnasium as gym
import numpy as np
import pytest

from dreamfleet.core import seeding
from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.envs import contract, registry
from dreamfleet.envs.first_step import try_first_step
from dreamfleet.envs.vector import GymVector
from tests.envs import own


def played(name, steps=1, **options):
    env = GymVector(name, 1, seed=0, options=options)
    env.reset()
    rows = [env.step(np.zeros(1, np.int64)) for _ in range(steps)]
    return env, rows[-1]


@pytest.mark.parametrize(
    ("reward", "taken"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.int64(2), 2.0),
        (np.array(3.0), 3.0),
        (np.array([4.0]), 4.0),
        (np.array([[5]]), 5.0),
        ([6], 6.0),
        (Decimal("1.5"), 1.5),
    ],
)
def test_a_reward_may_be_any_type_of_number(reward, taken):
    _, rows = played(own.register("Reward-v0", reward=lambda t: reward))
    assert rows["reward"].tolist() == [taken] and rows["reward"].dtype == np.float32


@pytest.mark.parametrize(
    ("reward", "named"),
    [
        (None, "None as its reward"),
        ("1.0", "'1.0' as its reward"),
        (1j, "1j as its reward"),
        (np.ones(2), r"array\(\[1., 1.\]\) as its reward"),
        ([[1], [2, 3]], r"\[\[1\], \[2, 3\]\] as its reward"),
        ({}, "{} as its reward"),
        (float("nan"), "a reward of nan"),
        (1e39, r"a reward of 1e\+39, which float32 cannot hold"),
        (-(10**400), "a reward of inf"),
    ],
)
def test_a_wrong_reward_is_named_with_environment_and_action(reward, named):
    name = own.register("Reward-v0", reward=lambda t: reward)
    with pytest.raises(EnvironmentFault, match=rf"^Reward-v0\[0\] returned {named}.* action 0$"):
        played(name)


@pytest.mark.parametrize("value", [1, np.True_, np.array([True]), np.array(1), 1.0, [True]])
def test_terminated_may_be_any_type_of_bool(value):
    _, rows = played(own.register("End-v0", ended=lambda t: value))
    assert rows["last"].tolist() == rows["terminal"].tolist() == [True]


@pytest.mark.parametrize("value", [None, "False", 2, np.array([True, False]), float("nan")])
@pytest.mark.parametrize(("which", "said"), [("ended", "terminated"), ("cut", "truncated")])
def test_a_value_that_is_no_bool_is_named(which, said, value):
    name = own.register("End-v0", **{which: lambda t: value})
    with pytest.raises(EnvironmentFault, match=f"as {said}, which must be True or False"):
        played(name)


def test_a_number_too_large_for_float32_is_named_with_its_part():
    space = gym.spaces.Dict(speed=own.BOX, kind=gym.spaces.Discrete(2))
    name = own.register(
        "Large-v0", obs=lambda env, t: {"speed": [0, 1e300 * t], "kind": 0}, observes=space
    )
    with pytest.raises(
        EnvironmentFault, match=r"an observation of 1e\+300 at speed\[1\], which float32 cannot"
    ):
        played(name)


class Old(gym.Env):
    observation_space, action_space = own.BOX, gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return np.zeros(2)

    def step(self, action):
        return np.zeros(2), 1.0, False, {}


class OldStep(Old):
    def reset(self, seed=None, options=None):
        return np.zeros(2), {}


class NoSeed(Old):
    def reset(self):
        return np.zeros(2), {}


class NoInfo(Old):
    def reset(self, seed=None, options=None):
        return None


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize(
    ("kind", "said"), [(Old, "reset("), (NoSeed, "reset("), (NoInfo, "reset("), (OldStep, "step(")]
)
def test_an_old_interface_is_a_mistake_in_one_line(kind, said, limit):
    gym.registry.pop("Old-v0", None)
    gym.register("Old-v0", kind, max_episode_steps=limit)
    with pytest.raises(UserError) as error:
        try_first_step("Old-v0", {})
    text = str(error.value)
    assert f"{said}" in text and "must return (observation, " in text and "\n" not in text


class Raises(gym.Env):
    observation_space, action_space = own.BOX, gym.spaces.Discrete(2)

    def __init__(self, where="step", error=SystemExit):
        self.where, self.error = where, error
        self.fail("init")

    def fail(self, here):
        if here == self.where:
            raise self.error("no")

    def reset(self, seed=None, options=None):
        self.fail("reset")
        return np.zeros(2), {}

    def step(self, action):
        self.fail("step")
        return np.zeros(2), 1.0, False, False, {}

    def close(self):
        self.fail("close")


@pytest.fixture
def raises(monkeypatch):
    """Registers `Raises` as an environment, and yields its id.

    Meanwhile Ctrl-C has a signal handler that raises nothing, as in the process of a run.
    """
    gym.registry.pop("Raises-v0", None)
    gym.register("Raises-v0", Raises)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield "Raises-v0"
    signal.signal(signal.SIGINT, before)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Stop])
def test_an_exception_that_would_end_the_process_is_a_fault_of_the_environment(raises, error):
    for where in ("reset", "step"):
        with pytest.raises(EnvironmentFault, match=rf"Raises-v0\[0\] raised {error.__name__} no"):
            played(raises, where=where, error=error)
    with pytest.raises(UserError, match=f"could not be built with .*: {error.__name__}: no"):
        registry.make(raises, where="init", error=error)
    played(raises, where="close", error=error)[0].close()


def test_ctrl_c_is_no_fault_of_the_environment(raises):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        played(raises, error=KeyboardInterrupt)


@pytest.mark.parametrize("where", ["init", "reset", "step"])
def test_an_environment_that_always_breaks_is_a_mistake_in_one_line(raises, where):
    with pytest.raises(UserError, match=r"ValueError: no") as error:
        try_first_step(raises, {"where": where, "error": ValueError})
    assert "\n" not in str(error.value)


def test_an_environment_that_fails_now_and_then_is_accepted():
    tries = []

    def obs(env, t):
        tries.append(t)
        if len(tries) < 3:
            raise RuntimeError("no valid start")
        return np.zeros(2)

    spec, warnings = try_first_step(own.register("Shaky-v0", obs=obs), {})
    assert spec.obs.shape == (2,) and warnings == []


def test_numbers_that_float32_cannot_tell_apart_give_a_warning():
    name = own.register("Stamp-v0", obs=lambda env, t: np.array([0.0, 1.7e9 + t]))
    _, (warning,) = try_first_step(name, {})
    assert "1700000001.0" in warning and "within 128" in warning and "\n" not in warning


def test_an_environment_without_spaces_is_named():
    class Bare(gym.Env):
        pass

    gym.registry.pop("Bare-v0", None)
    gym.register("Bare-v0", Bare)
    with pytest.raises(UserError, match=r"Set self.observation_space"):
        registry.describe("Bare-v0")


def test_an_environment_cannot_change_numpys_error_handling():
    def obs(env, t):
        np.seterr(all="raise")
        return np.zeros(2)

    before = np.geterr()
    played(own.register("Seterr-v0", obs=obs))
    assert np.geterr() == before


# --------------------------------------------------------------------------------------- infos


def test_numbers_and_bools_of_an_episodes_last_info_are_facts():
    def info(t):
        facts = {"is_success": True, "lives": 3, "speed": np.float32(0.5), "n": np.int64(2)}
        facts |= {"success": np.array([True]), "score": np.array(1.5)}
        ours = {"return": 7.0, "length": None, "kind": "x", "wall_s": 1}
        odd = {"text": "a", "array": np.ones(2), "nan": np.nan, "nested": {"r": 1.0}, 3: 4.0}
        return {**facts, **ours, **odd, "a/b": 1.0} if t == 5 else {"early": 1.0}

    env, _ = played(own.register("Says-v0", info=info), steps=5)
    assert {name: values[0] for name, values in env.info.items()} == {
        "is_success": True,
        "lives": 3.0,
        "speed": 0.5,
        "n": 2.0,
        "success": True,
        "score": 1.5,
        "info_return": 7.0,
        "info_wall_s": 1.0,
        "a_b": 1.0,
    }
    assert type(env.info["lives"][0]) is float
    env.step(np.zeros(1, np.int64))
    assert all(values[0] is None for values in env.info.values())


def test_a_batched_environment_may_mark_where_a_fact_holds():
    info = {"success": np.array([True, False]), "_success": np.array([True, False])}
    found = contract.batched_facts(info | {"level": np.array([1, 2])}, 2)
    assert found["success"].tolist() == [True, None]
    assert found["level"].tolist() == [1, 2] and found.keys() == {"success", "level"}


def test_an_observation_array_that_the_environment_reuses_is_copied():
    seen = np.zeros(2)

    def obs(env, t):
        seen[:] = t
        return seen

    env = GymVector(own.register("Same-v0", obs=obs), 1, seed=0)
    rows = [env.reset(), *(env.step(np.zeros(1, np.int64)) for _ in range(3))]
    assert [row["obs"][0, 0] for row in rows] == [0, 1, 2, 3]


# --------------------------------------------------------------------------------------- seeds


def test_a_seed_also_seeds_spaces_and_shared_generators():
    def seen(seed):
        with seeding.seeded_globals(seed):
            env = GymVector(own.drawing("Draws-v0"), 2, seed)
            env.reset()
            return np.stack([env.step(np.zeros(2, np.int64))["obs"] for _ in range(8)])

    np.testing.assert_array_equal(seen(3), seen(3))
    assert not np.array_equal(seen(3), seen(4))


def test_seeds_fit_a_signed_integer_of_32_bits_and_differ():
    seeds = [seed for i in range(50) for seed in seeding.derive((i, 7), 20)]
    assert len(set(seeds)) == 1_000 and max(seeds) < 2**31 and min(seeds) >= 0
    assert max(seeds) > 2**30  # all bits are in use


def drawn():
    return random.random(), np.random.rand()  # noqa: NPY002


def test_the_state_of_shared_generators_is_restored():
    seeding.seed_globals(1)
    before = drawn()
    seeding.seed_globals(1)
    with seeding.seeded_globals(2):
        assert drawn() != before
    assert drawn() == before
