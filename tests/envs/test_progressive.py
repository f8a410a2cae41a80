"""Tests that a curriculum's level rises with the mean return of episodes played at that level."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv

from dreamfleet.core.errors import UserError
from dreamfleet.envs.progressive import Progressive
from tests.envs.test_number_game import sensible, uniform


class Paid(VectorEnv):
    """A batched environment whose reward is the action.

    Episodes of environment i have lengths[i] steps.
    """

    def __init__(self, lengths):
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs, self.lengths, self.difficulty = len(lengths), np.array(lengths), 1.0

    def reset(self, *, seed=None, options=None):
        self.difficulty, self.t = options["difficulty"], np.zeros(self.num_envs, int)
        self.begun_at = np.full(self.num_envs, self.difficulty)
        return np.zeros(self.num_envs), {}

    def step(self, actions):
        starts = self.t == self.lengths
        self.begun_at[starts] = self.difficulty
        self.t = np.where(starts, 0, self.t + 1)
        over = self.t == self.lengths
        return np.zeros(self.num_envs), np.where(starts, 0.0, actions), over, over & False, {}


def levels(env, actions):
    """Takes a step for each action.

    Returns the level of each environment's episode after each step.
    """
    return [env.step(np.asarray(action, float))[4]["level"].tolist() for action in actions]


def test_the_level_rises_once_the_mean_of_enough_episodes_passes():
    env = Progressive(Paid([1]), thresholds=(2.0, 5.0), window=2)
    _, info = env.reset()
    assert info["level"].tolist() == [0] and env.difficulty == pytest.approx(1 / 3)
    # An episode is one paid step and then the step that starts the next one, which pays nothing.
    seen = levels(env, [[9], [9], [-6], [9], [3], [9], [1], [9], [9]])
    assert [level for (level,) in seen] == [0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert env.unwrapped.difficulty == pytest.approx(2 / 3)


def test_the_last_level_is_the_full_game_and_never_ends():
    env = Progressive(Paid([1]), thresholds=(1.0,), window=1)
    env.reset()
    levels(env, [[9], [0], [9], [0], [-99], [0], [-99]])
    assert env.level == 1 and env.unwrapped.difficulty == 1.0


def test_an_episode_begun_at_an_easier_level_does_not_count():
    env = Progressive(Paid([1, 4]), thresholds=(2.0, 2.0), window=1)
    env.reset()
    seen = levels(env, [[9, 9], [0, 9], [-1, 9], [0, 9]])  # the long one ends last, far above
    assert seen == [[0, 0], [1, 0], [1, 0], [1, 0]]
    assert env.level == 1
    assert env.unwrapped.begun_at.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_return_is_that_of_one_episode():
    env = Progressive(Paid([3]), thresholds=(6.0,), window=1)
    env.reset()
    levels(env, [[1], [1], [1], [9], [2], [2], [1]])
    assert env.level == 0 and env.state()["scores"] == [5.0]
    env.reset()
    levels(env, [[5]])
    env.reset()  # cuts that episode short: it counts nowhere
    levels(env, [[2], [2], [1]])
    assert env.level == 0 and env.state()["scores"] == [5.0]


def test_level_and_scores_continue_from_a_saved_state():
    first = Progressive(Paid([1]), thresholds=(2.0, 4.0), window=2)
    first.reset()
    levels(first, [[2], [0], [2], [0], [5]])
    assert first.state() == {"level": 1, "scores": [5.0]}
    second = Progressive(Paid([1]), thresholds=(2.0, 4.0), window=2)
    second.restore(first.state())
    _, info = second.reset()
    assert info["level"].tolist() == [1] and second.unwrapped.difficulty == pytest.approx(2 / 3)
    levels(second, [[3]])
    assert second.level == 2


def test_the_option_difficulty_is_refused():
    with pytest.raises(UserError, match="follows the score here"):
        Progressive(Paid([1]), (1.0,)).reset(options={"difficulty": 0.5})


def test_the_number_game_gets_harder_for_a_good_policy():
    reached = {}
    for policy in (sensible, uniform):
        env = gym.make_vec("dreamfleet.envs.number_game:NumberGame-v1", 50, progressive=True)
        obs, _ = env.reset(seed=0)
        highest, random = [], np.random.default_rng(0)
        for _ in range(600):
            obs, *_, info = env.step(policy(obs, random))
            highest.append(env.unwrapped._games.damage.max())
        assert highest[0] <= 2.4
        reached[policy] = env.level
        assert max(highest) == pytest.approx(1.7 + 0.7 * (env.level + 1), abs=0.05)
        assert info["level"].max() == env.level
    assert reached == {sensible: 2, uniform: 0}


def test_one_progressive_game_passes_gymnasiums_checker_and_has_its_level_in_info():
    env = gym.make("dreamfleet.envs.number_game:NumberGame-v1", progressive=True)
    check_env(env.unwrapped)
    _, info = env.reset(seed=0)
    assert info["level"] == 0
