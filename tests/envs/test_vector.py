"""Tests the rows that `GymVector` makes of gymnasium environments, and its errors."""

import gymnasium as gym
import numpy as np
import pytest

from dreamfleet.core import seeding
from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.envs.vector import AT_ONCE, BATCHED_AT_ONCE, GymVector


def unroll(env, steps, action=None):
    """Resets the environments and takes `steps` vector steps. Returns all rows, (steps + 1, N, …).

    action: of every step; None for zeros.
    """
    zeros = np.zeros((env.num_envs, *env.spec.action.shape), env.spec.action.dtype)
    action = zeros if action is None else action
    rows = [env.reset(), *(env.step(action) for _ in range(steps))]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("truncates", [False, True])
def test_every_row_of_an_episode_is_there_once_and_truncation_is_no_termination(truncates):
    name = "CountTruncated" if truncates else "Count"
    rows = unroll(GymVector(f"dreamfleet.envs.probe:{name}-v0", 2, seed=0), 11)
    expected = [[episode, t] for episode in range(2) for t in range(6)]  # five steps, six rows
    for i in range(2):
        assert rows["obs"][:, i].tolist() == expected
        assert rows["reward"][:, i].tolist() == [t for _, t in expected]
        assert rows["first"][:, i].tolist() == [t == 0 for _, t in expected]
        assert rows["last"][:, i].tolist() == [t == 5 for _, t in expected]
        assert rows["terminal"][:, i].tolist() == [t == 5 and not truncates for _, t in expected]
    assert rows["obs"].dtype == rows["reward"].dtype == np.float32


def test_rows_agree_with_gymnasiums_own_vectorisation():
    """Both reset an environment on the step after the end of its episode (NEXT_STEP mode)."""
    ours = GymVector("CartPole-v1", 3, seed=7)
    seeds = seeding.derive(7, 3)
    theirs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    obs, _ = theirs.reset(seed=seeds)
    rows = ours.reset()
    np.testing.assert_array_equal(rows["obs"], obs)
    random = np.random.default_rng(0)
    for _ in range(200):
        action = random.integers(2, size=3)
        rows = ours.step(action)
        obs, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_array_equal(rows["obs"], obs)
        np.testing.assert_array_equal(rows["reward"], reward)
        np.testing.assert_array_equal(rows["terminal"], terminated)
        np.testing.assert_array_equal(rows["last"], terminated | truncated)


def test_rows_of_a_batched_environment_are_those_of_its_vectorised_form():
    ours = GymVector("NumberGame-v1", 3, seed=7)
    theirs = gym.make_vec("NumberGame-v1", 3)
    obs, _ = theirs.reset(seed=seeding.derive(7, 1)[0])
    rows, ended = ours.reset(), np.ones(3, bool)
    np.testing.assert_array_equal(rows["obs"], obs)
    assert rows["first"].all() and not rows["reward"].any() and not rows["last"].any()
    random, ends = np.random.default_rng(0), 0
    for _ in range(100):
        ended, action = rows["last"], random.integers(4, size=3)
        rows = ours.step(action)
        obs, reward, terminated, *_ = theirs.step(action)
        np.testing.assert_array_equal(rows["obs"], obs)
        np.testing.assert_array_equal(rows["reward"], reward.astype(np.float32))
        np.testing.assert_array_equal(rows["first"], ended)
        np.testing.assert_array_equal(rows["terminal"], terminated)
        np.testing.assert_array_equal(rows["last"], terminated)
        assert {rows[key].dtype.name for key in ("obs", "reward")} == {"float32"}
        ends += terminated.sum()
    assert ends > 10
    assert ours.reset()["first"].all()  # and on, from the same generator
    ours.close()


def test_info_and_state_of_a_batched_environment_pass_through():
    env = GymVector("NumberGame-v1", 3, seed=0, options={"progressive": True})
    env.restore({"level": 1, "scores": [7.0]})
    env.reset()
    assert env.info["level"].tolist() == [1, 1, 1]
    env.step(np.full(3, 3))
    assert env.state()["level"] == 1 and len(env.state()["scores"]) == 4
    assert set(env.info) == {"level", "tier", "won"}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "NumberGame-v1"])
def test_an_episode_with_its_own_seed_does_not_depend_on_other_environments(env_id):
    def seen(seeds, wanted):
        env = GymVector(env_id, len(seeds), seed=len(seeds))
        env.step(np.zeros(len(seeds), np.int64))  # whatever was played before
        rows = [env.reset(seeds), *(env.step(np.full(len(seeds), 1)) for _ in range(9))]
        return np.stack([row["obs"][seeds.index(wanted)] for row in rows])

    alone = seen([7], 7)
    np.testing.assert_array_equal(alone, seen([3, 7, 9], 7))
    assert not np.array_equal(alone, seen([3, 7, 9], 9))


@pytest.mark.parametrize(
    ("env_id", "most"), [("CartPole-v1", AT_ONCE), ("NumberGame-v1", BATCHED_AT_ONCE)]
)
def test_an_evaluation_plays_a_limited_number_of_environments_together(env_id, most):
    assert GymVector.to_play(env_id, 10).num_envs == 10
    assert GymVector.to_play(env_id, 5000).num_envs == most


def test_an_environment_without_a_state_has_none_and_takes_options():
    env = GymVector("dreamfleet.envs.probe:Count-v0", 2, seed=0, options={"length": 2})
    assert env.reset()["obs"].shape == (2, 2) and env.info == {} and env.state() == {}
    env.restore({})
    rows = unroll(env, 2)
    assert rows["last"].tolist() == [[False] * 2, [False] * 2, [True] * 2]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "NumberGame-v1"])
def test_rows_that_were_returned_do_not_change(env_id):
    env = GymVector(env_id, 2, seed=0)
    rows = env.reset()
    kept = {key: values.copy() for key, values in rows.items()}
    for _ in range(30):
        env.step(np.zeros(2, np.int64))
    for key in kept:
        np.testing.assert_array_equal(rows[key], kept[key])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "NumberGame-v1"])
def test_a_seed_decides_all_rows_and_environments_differ(env_id):
    one, same = (unroll(GymVector(env_id, 2, seed=3), 50) for _ in range(2))
    other = unroll(GymVector(env_id, 2, seed=4), 50)
    np.testing.assert_array_equal(one["obs"], same["obs"])
    assert not np.array_equal(one["obs"], other["obs"])
    assert not np.array_equal(one["obs"][:, 0], one["obs"][:, 1])


def test_later_episodes_start_differently():
    rows = unroll(GymVector("CartPole-v1", 1, seed=0), 100)
    starts = rows["obs"][rows["first"]]
    assert len(starts) > 3 and len(np.unique(starts, axis=0)) == len(starts)


def test_a_continuous_action_reaches_the_environment_in_its_own_units():
    env = GymVector("dreamfleet.envs.probe:Continuous-v0", 4, seed=1)
    seen = env.reset()["obs"]
    paid = env.step(seen / 2)["reward"]  # the best of [0, 4] is 2 + seen
    np.testing.assert_allclose(paid, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (
            "FaultyNaN",
            r"probe:FaultyNaN-v0\[0\] returned an observation of nan after action 1",
        ),
        ("FaultyShape", r"float32 \(3,\) where float32 \(2,\) was declared, after action 1"),
    ],
)
def test_an_environment_that_breaks_its_contract_is_named_with_its_last_action(probe, message):
    with pytest.raises(EnvironmentFault, match=message):
        unroll(
            GymVector(f"dreamfleet.envs.probe:{probe}-v0", 2, seed=0),
            10,
            action=np.ones(2, np.int64),
        )


class Returns(gym.Env):
    """An environment whose steps return the observation and the reward given to the constructor."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, obs, reward=0.0, dtype=np.float32):
        self.observation_space = gym.spaces.Box(0, 1, (2,), dtype)
        self.obs, self.paid = obs, reward

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, self.observation_space.dtype), {}

    def step(self, action):
        return self.obs, self.paid, False, False, {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"obs": np.zeros(2), "reward": np.inf}, "a reward of inf"),
        ({"obs": np.array([0.0, -np.inf])}, "observation of -inf"),
        ({"obs": np.array(["a", "b"])}, r"<U1 \(2,\)"),
        ({"obs": None}, r"object \(\)"),
    ],
)
def test_rows_that_would_poison_a_replay_are_refused(kwargs, message):
    gym.registry.pop("Returns-v0", None)
    gym.register("Returns-v0", Returns, kwargs=kwargs)
    env = GymVector("Returns-v0", 1, seed=0)
    env.reset()
    with pytest.raises(EnvironmentFault, match=message):
        env.step(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ([[0, 0], [0, np.nan]], r"Together-v0\[1\] returned an observation of nan after action 1"),
        ([[0, 0, 0], [0, 0, 0]], r"int64 \(2, 3\) where float32 \(2, 2\) was declared"),
    ],
)
def test_a_batched_environment_is_checked_as_well(obs, message):
    class Together(gym.vector.VectorEnv):
        metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

        def __init__(self, num_envs):
            self.num_envs = num_envs

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 2)), {}

        def step(self, actions):
            return np.array(obs), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {}

    class Apart(Returns):
        metadata = {"batched": True}  # noqa: RUF012

    gym.registry.pop("Together-v0", None)
    gym.register("Together-v0", lambda: Apart(None), vector_entry_point=Together)
    env = GymVector("Together-v0", 2, seed=0)
    env.reset()
    with pytest.raises(EnvironmentFault, match=message):
        env.step(np.ones(2, np.int64))


def test_numbers_of_any_kind_become_float32():
    gym.registry.pop("Returns-v0", None)
    gym.register("Returns-v0", Returns, kwargs={"obs": [True, 2]})
    env = GymVector("Returns-v0", 1, seed=0)
    env.reset()
    obs = env.step(np.zeros(1, np.int64))["obs"]
    assert obs.tolist() == [[1.0, 2.0]] and obs.dtype == np.float32


def test_exceptions_of_an_environment_pass_through():
    with pytest.raises(RuntimeError, match="never starts"):
        GymVector("dreamfleet.envs.probe:FaultyReset-v0", 1, seed=0).reset()
    with pytest.raises(RuntimeError, match="now and then"):
        unroll(GymVector("dreamfleet.envs.probe:FaultyStep-v0", 4, seed=0), 1_000)


def test_each_episode_with_a_seed_is_filmed_as_a_whole(tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    env = GymVector("CartPole-v1", 2, seed=0, video_dir=tmp_path)
    for seeds in ([1, 2], [3, 4]):
        env.reset(seeds)
        while not env.step(np.zeros(2, np.int64))["last"][0]:
            pass
        for _ in range(3):  # the next episode begins while other environments play on
            env.step(np.zeros(2, np.int64))
    names = ["CartPole-v1_episode-1.mp4", "CartPole-v1_episode-3.mp4"]
    assert env.films() == [tmp_path / name for name in names]
    env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.stat().st_size > 1_000 for path in tmp_path.iterdir())


def test_an_environment_that_draws_nothing_cannot_be_filmed(tmp_path):
    with pytest.raises(UserError, match="cannot be filmed: it lacks render mode rgb_array"):
        GymVector("dreamfleet.envs.probe:Count-v0", 1, seed=0, video_dir=tmp_path)
