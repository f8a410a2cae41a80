"""Tests loaded policies that the caller steps with `act`, in every kind of space."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array

import dreamfleet
from dreamfleet.core import seeding

NUMBERS, TWO = Box(-1, 1, (3,), np.float32), Discrete(2)
SPACES = {  # name → observations, actions
    "Box": (NUMBERS, TWO),
    "Rows": (Box(-1, 1, (2, 3)), TWO),
    "Discrete": (Discrete(5, start=2), TWO),
    "Tuple": (Tuple((Discrete(3), NUMBERS)), Discrete(3, start=-1)),
    "Dict": (Dict(numbers=NUMBERS, kind=Discrete(4), both=MultiDiscrete([2, 3])), TWO),
    "Nested": (Dict(parts=Tuple((MultiBinary(3), Dict(inner=Box(0, 1, (2, 2)))))), TWO),
    "Image": (Box(0, 255, (64, 64, 3), np.uint8), TWO),
    "Choices": (NUMBERS, MultiDiscrete([2, 3])),
    "Switches": (NUMBERS, MultiBinary(2)),
    "Units": (NUMBERS, Box(np.float32([[-2, -2]]), np.float32([[3, 5]]))),
}


class Sampled(gymnasium.Env):
    """An environment whose observations are random samples of a space, in episodes of nine steps.

    The reward is the number of the step times the sum of the action.
    """

    def __init__(self, kind: str) -> None:
        self.observation_space, self.action_space = copy.deepcopy(SPACES[kind])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        paid = self.steps * float(np.sum(action))
        return self.observation_space.sample(), paid, self.steps == 9, False, {}


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Iterator[dict[str, dreamfleet.Run]]:
    """A dict of short runs: kind of space → run. A run is trained when it is first used."""
    folder = tmp_path_factory.mktemp("runs")
    ids = [f"Sampled{kind}-v0" for kind in SPACES]
    for kind, env in zip(SPACES, ids, strict=True):
        gymnasium.register(env, entry_point=lambda kind=kind: Sampled(kind))
    yield Runs(folder)
    for env in ids:
        del gymnasium.registry[env]


class Runs(dict):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> dreamfleet.Run:
        self[kind] = dreamfleet.train(
            agent="dreamwalker" if kind == "Units" else "gated-rainbow",
            env=f"Sampled{kind}-v0",
            steps=20,
            local=True,
            num_actors=1,
            run_dir=self.folder / kind,
            settings={"train.eval_every": 0},
        )
        return self[kind]


@pytest.mark.parametrize("kind", SPACES)
def test_episodes_played_with_act_have_the_returns_of_an_evaluation(policies, kind):
    """Gated Rainbow depends on earlier observations, so a policy without memory would fail."""
    run = policies[kind]
    found = run.evaluate(episodes=3, seed=4)
    policy, returns = run.policy(), []
    for seed in seeding.derive(4, 3):
        env = gymnasium.make(f"Sampled{kind}-v0")
        obs, _ = env.reset(seed=int(seed))
        state, total, over = None, 0.0, False
        while not over:
            action, state = policy.act(obs, state)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert np.mean(returns) == pytest.approx(found["return_mean"], rel=1e-4)
    assert min(returns) == pytest.approx(found["return_min"], rel=1e-4)


@pytest.mark.parametrize("kind", SPACES)
def test_a_batch_gets_the_same_actions_as_single_observations(policies, kind):
    policy, space = policies[kind].policy(), copy.deepcopy(SPACES[kind][0])
    space.seed(1)
    many = [space.sample() for _ in range(4)]
    states = None
    singles = [None] * 4
    for _ in range(3):
        batch = concatenate(space, many, create_empty_array(space, 4))
        actions, states = policy.act(batch, states)
        each = [policy.act(obs, state) for obs, state in zip(many, singles, strict=True)]
        singles = [state for _, state in each]
        np.testing.assert_allclose(actions, [action for action, _ in each], atol=1e-5)


def test_acting_does_not_change_the_given_state(policies):
    policy, space = policies["Box"].policy(), copy.deepcopy(NUMBERS)
    _, state = policy.act(space.sample())
    obs = [space.sample() for _ in range(5)]
    first = [policy.act(one, state)[0] for one in obs]
    assert [policy.act(one, state)[0] for one in obs] == first


@pytest.mark.parametrize(
    ("kind", "obs", "said"),
    [
        ("Box", [np.nan, 0, 0], "not finite"),
        ("Box", [1e300, 0, 0], "not finite"),
        ("Box", [[1, 2, 3], [1, 2]], "no array"),
        ("Box", (np.zeros(3), {}), "no array"),
        ("Box", np.zeros((0, 3)), "a batch without observations"),
        ("Box", np.zeros((2, 2, 3)), "with 3 axes, not 1"),
        ("Box", None, "with 0 axes, not 1"),
        ("Discrete", [], "a batch without observations"),
        ("Discrete", 7, "7 where"),
        ("Tuple", (np.array([1, 2]), np.zeros((3, 3))), r"\[0\]: 2, \[1\]: 3"),
        ("Tuple", (np.array([1, 2]), np.zeros(3)), r"\[0\]: 2, \[1\]: one"),
        ("Tuple", (1, [np.nan, 0, 0]), r"not finite at \[1\]\[0\]"),
        ("Dict", {"numbers": np.zeros(3), "kind": 1}, "without 'both'"),
        ("Image", np.zeros((64, 64, 3), np.float32), "float32"),
    ],
)
def test_observations_outside_the_space_are_refused(policies, kind, obs, said):
    with pytest.raises(ValueError, match=f"this policy cannot see .*{said}"):
        policies[kind].policy().act(obs)


def test_a_state_of_another_policy_is_refused(policies):
    policy, obs = policies["Box"].policy(), np.zeros(3, np.float32)
    for kind in ("Units", "Choices"):
        _, state = policies[kind].policy().act(obs)
        with pytest.raises(ValueError, match="not one that this policy returned"):
            policy.act(obs, state)
    with pytest.raises(ValueError, match="not one that this policy returned"):
        policy.act(obs, 3)
    _, state = policy.act(obs)
    _, state = policies["Box"].policy().act(obs, state)  # the same policy, read once more
    with pytest.raises(ValueError, match=r"first must be \(1,\) flags"):
        policy.act(obs, state, first=np.zeros(2, bool))
