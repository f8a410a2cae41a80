"""Tests runs, checkpoints and policies with mixed observations and factored actions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import dreamfleet
from dreamfleet.core import checkpoint
from dreamfleet.core.errors import UserError
from tests.envs import own

ROOT = Path(__file__).parent.parent.parent
AGENT = "tests.agents.mixed:MixedAgent"
ENVS = {  # name → function that registers it
    "Car-v0": own.car,
    "SwitchedCar-v0": lambda name: own.car(name, acts=own.SWITCHES),
    "Switchboard-v0": own.switchboard,
}


@pytest.fixture(scope="module", params=ENVS)
def run(request, tmp_path_factory):
    """A run of 60 steps, resumed after 40, with an evaluation."""
    ENVS[request.param](request.param)
    path = tmp_path_factory.mktemp("runs") / request.param
    settings = {"train.chunk": 4, "train.eval_every": 30, "train.eval_episodes": 2}
    given = {"local": True, "num_actors": 1, "run_dir": path, "settings": settings}
    dreamfleet.train(AGENT, request.param, steps=40, **given)
    return dreamfleet.train(resume=path, steps=60)


def test_a_run_stores_all_columns_and_resumes(run):
    newest = checkpoint.newest(run.path / "checkpoints")
    state = checkpoint.load(newest)
    columns = state["replay"]["real"]["columns"]
    car, switched = "Car" in run.config.env, run.config.env != "Car-v0"
    assert ("obs.camera" in columns) == car
    assert columns["action"].shape[1:] == ((8,) if switched else ())
    steps = columns["first"].size - columns["last"].sum()
    assert steps >= 60 and state["session"]["env_steps"] >= 60
    if car:  # of each row the pixels and the speed are of one step
        assert columns["obs.camera"].shape[1:] == (64, 64, 3)
        t = columns["obs.camera"].reshape(len(columns["obs"]), -1)
        np.testing.assert_array_equal(t, np.repeat(2 * columns["obs"][:, :1], t.shape[1], 1))
    elif switched:  # an observation is the action of the row before it
        follows = ~columns["first"][1:]
        np.testing.assert_array_equal(columns["obs"][1:][follows], columns["action"][:-1][follows])
    assert [event["at"] for event in run.metrics("eval")]


def test_a_policy_acts_on_one_observation_and_on_a_batch(run):
    env = gym.make(run.config.env)
    policy, space = run.policy(), env.observation_space
    many = [space.sample() for _ in range(4)]
    batch = gym.vector.utils.concatenate(space, many, gym.vector.utils.create_empty_array(space, 4))
    actions, _ = policy.act(batch)
    singles = [policy.act(one)[0] for one in many]
    np.testing.assert_array_equal(actions, singles)
    assert all(env.action_space.contains(action) for action in singles)


@pytest.mark.parametrize("agent", ["gated-rainbow", "dreamer-lite", "dreamwalker"])
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Car-v0", "mixed observations (obs float32 (2,), obs.camera uint8 (64, 64, 3))"),
        ("Switchboard-v0", "multi-discrete actions with 390,625 combinations"),
    ],
)
def test_other_agents_refuse_the_environment_before_a_run_folder_is_made(
    tmp_path, agent, env, message
):
    ENVS[env](env)
    with pytest.raises(UserError) as refused:
        dreamfleet.train(agent, env, steps=10, local=True, run_dir=tmp_path / "run")
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_contract_tests_cover_every_kind_that_the_agent_declares():
    command = [sys.executable, "launch.py", "check", AGENT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
