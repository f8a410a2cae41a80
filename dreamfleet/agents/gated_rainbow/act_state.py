"""Keeps what acting remembers of an episode, such as its last four observations.

Also appends the elapsed time to observations, if the setting `observe_time` asks for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dreamfleet.agents.gated_rainbow.config import CONTEXT
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Batch, EnvSpec, Space

MAX_REWARD = 1e30  # rewards are clipped to ± this before they are summed, as float32 overflows


class ActState(NamedTuple):
    """Holds what acting remembers of the current episode in each of N environments.

    The memory is the last four observations, the number of steps, the return with and without
    discount, and whether the world model may learn from the episode.
    """

    history: Array  # (N, 4, *O), in the dtype of the observations
    age: Array  # (N,) f32, steps since the episode began
    discounted_return: Array  # (N,) f32, γ · discounted_return + reward after each step
    episode_return: Array  # (N,) f32, sum of rewards
    held_out: Array  # (N,) bool, whether the world model never learns from this episode

    @classmethod
    def initial(cls, n: int, obs: Space) -> ActState:
        """Returns the memory of acting before the first rows of `n` environments: all zeros.

        obs: the space of observations.
        """
        history = np.zeros((n, CONTEXT + 1, *obs.shape), obs.dtype)
        age, discounted_return, episode_return = np.zeros((3, n), np.float32)
        return cls(history, age, discounted_return, episode_return, np.zeros(n, bool))

    def next(self, rows: Batch, observe_time: bool) -> ActState:
        """Returns the memory of acting after one more row of each of N environments.

        The returns are still those of the row before, see `add_reward`.

        - rows: columns (N, …). At the first row of an episode, copies of its observation fill the
          history.
        - observe_time: whether the number of steps since the episode began is appended to the
          observation.
        """
        first, obs = rows["first"], rows["obs"]
        age = np.where(first, 0, self.age + 1).astype(np.float32)
        if observe_time:
            obs = np.concatenate([obs, age[:, None]], -1)
        newest = obs[:, None]
        new_episode = first.reshape(-1, *[1] * obs.ndim)
        history = np.where(new_episode, newest, np.concatenate([self.history[:, 1:], newest], 1))
        return self._replace(history=history, age=age)

    def add_reward(self, first: Array, reward: Array, gamma: float) -> ActState:
        """Returns this memory with the rewards of the newest row added to the returns.

        first (N,): whether an episode begins at the row; its returns are 0 then. reward (N,): the
        rewards, with outliers clipped. gamma: the discount factor.
        """
        reward = reward.clip(-MAX_REWARD, MAX_REWARD)
        discounted_return = np.where(first, 0, gamma * self.discounted_return + reward)
        episode_return = np.where(first, 0, self.episode_return + reward)
        return self._replace(
            discounted_return=discounted_return.astype(np.float32),
            episode_return=episode_return.astype(np.float32),
        )

    def hold_out(self, first: Array, drawn: Array) -> ActState:
        """Returns this memory; where an episode begins, `drawn` (N,) says whether it is held out.

        first (N,): whether an episode begins at the newest row.
        """
        return self._replace(held_out=np.where(first, drawn, self.held_out))


def with_time(spec: EnvSpec) -> EnvSpec:
    """Returns an environment's spec with one more number per observation: the elapsed time.

    The elapsed time is the number of steps since the episode began. Raises UserError unless
    observations are vectors.
    """
    if len(spec.obs.shape) != 1:
        raise UserError(
            f"agent.observe_time needs vector observations; {spec.env_id} has {spec.obs}."
        )
    return replace(spec, obs=Space((spec.obs.shape[0] + 1,), "float32"))
