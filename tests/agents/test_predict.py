"""Tests the method `predict` of the agents on an environment that can be learned exactly."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from dreamfleet import agents
from dreamfleet.agents.blocks.nets import by_turns
from dreamfleet.contracts import Experience
from dreamfleet.core.types import EnvSpec, Space
from dreamfleet.runtime.trial import rollout

LENGTH, CONTEXT = 8, 3  # steps of an episode; rows from which a prediction starts
DISCRETE, CONTINUOUS = Space((), "int64", n=2), Space((1,), "float32")
VECTOR, IMAGE = Space((2,), "float32"), Space((36, 36, 1), "uint8")


class Echo:
    """N environments in which the reward that arrives with a row is the action of the row before.

    An observation shows the step of the episode and this action. The episode terminates after
    `LENGTH` steps.
    """

    def __init__(self, spec: EnvSpec, n: int) -> None:
        self.spec, self.n = spec, n
        self.t, self.echo = np.full(n, LENGTH), np.zeros(n, np.float32)

    def rows(self):
        first = self.t == LENGTH
        self.t = np.where(first, 0, self.t + 1)
        self.echo = np.where(first, 0, self.echo).astype(np.float32)
        last = self.t == LENGTH
        return {
            "obs": self.image() if self.spec.obs.image else self.vector(),
            "reward": self.echo,
            "first": first,
            "last": last,
            "terminal": last,
        }

    def vector(self):
        return np.stack([self.t, self.echo], 1).astype(np.float32)

    def image(self):
        """Returns frames with a bar at the place of the step, which is dark if the action was 0."""
        frames = np.zeros((self.n, 36, 36, 1), np.uint8)
        for frame, t, echo in zip(frames, self.t, self.echo, strict=True):
            frame[:, 4 * t : 4 * t + 4] = 250 if echo else 120
        return frames

    def act(self, action):
        self.echo = action.reshape(self.n).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "obs", "action", "updates"),
    [
        ("dreamer-lite", VECTOR, DISCRETE, 800),
        ("dreamer-lite", VECTOR, CONTINUOUS, 800),
        ("dreamwalker", VECTOR, CONTINUOUS, 500),
        ("gated-rainbow", VECTOR, DISCRETE, 500),
        pytest.param("gated-rainbow", IMAGE, DISCRETE, 300, marks=pytest.mark.slow),
    ],
)
def test_predicted_observation_reward_and_end_line_up_with_the_real_rows(
    name, obs, action, updates
):
    agent_class = agents.load(name)
    agent = agent_class(agent_class.Config(), EnvSpec("Echo-v0", obs, action), 0, "cpu")
    experience = Experience(agent, env=Echo(agent.spec, 8))
    for _ in range(updates):
        agent.learn_world(experience.sample("world"))
    window = rollout(agent, Echo(agent.spec, 7), steps=LENGTH + 1)
    predicted = agent.predict(window, CONTEXT)
    real = {key: window[key][:, CONTEXT:] for key in predicted}
    assert rms(predicted["reward"] - real["reward"]) < 0.25 * real["reward"].std()
    np.testing.assert_array_equal(predicted["terminal"] > 0.5, real["terminal"])
    error = predicted["obs"].astype(float) - real["obs"]
    assert rms(error) < 0.3 * real["obs"].astype(float).std(0).max()


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def test_window_b_goes_to_member_b_modulo_the_members_whatever_the_batch():
    for windows in (1, 4, 5, 11):
        order, back = by_turns(windows, members=5)
        member = torch.arange(len(order)) // (len(order) // 5)
        assert len(order) % 5 == 0
        assert order[back].tolist() == list(range(windows))
        assert member[back].tolist() == [b % 5 for b in range(windows)]
