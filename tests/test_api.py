"""Tests the Python interface of the package `dreamfleet`."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import dreamfleet
from dreamfleet.core.errors import UserError

QUICK = {"train.eval_every": 100, "train.eval_episodes": 2, "train.checkpoint_every": 100}


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> dreamfleet.Run:
    """A short CartPole run. It is trained in a thread that is not the main thread."""
    found = []
    path = tmp_path_factory.mktemp("runs") / "cartpole"

    def work() -> None:
        flags = {"steps": 300, "local": True, "num_actors": 1, "run_dir": str(path)}
        found.append(dreamfleet.train(env="CartPole-v1", settings=QUICK, **flags))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (run,) = found
    return run


def test_importing_dreamfleet_imports_nothing_heavy():
    code = (
        "import sys, dreamfleet\n"
        "heavy = {'torch', 'ray', 'gymnasium', 'numpy', 'rich', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert dir(dreamfleet) and dreamfleet.__doc__\n"
        "dreamfleet.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'dreamfleet' has no attribute 'nothing'" in done.stderr


def test_a_run_returns_its_metrics(cartpole):
    assert cartpole.config.env == "CartPole-v1"
    assert cartpole.metrics("episode")
    assert {event["kind"] for event in cartpole.metrics()} >= {"episode", "eval", "run"}


def test_a_run_evaluates_its_policy(cartpole):
    one, same = (cartpole.evaluate(episodes=3, seed=5) for _ in range(2))
    assert one == same
    assert one["episodes"] == 3


def test_a_policy_can_play_an_episode(cartpole):
    policy, env = dreamfleet.load(cartpole.path), gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=3)
    state, total, over = None, 0.0, False
    while not over:
        action, state = policy.act(obs, state)
        assert env.action_space.contains(action)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    assert total > 0


def test_a_batch_gets_the_same_actions_as_single_observations(cartpole):
    policy = dreamfleet.load(cartpole.path)
    obs = np.random.default_rng(0).normal(0, 0.05, (6, 4)).astype(np.float32)
    together, state = policy.act(obs)
    assert together.shape == (6,)
    assert together.tolist() == [policy.act(one)[0] for one in obs]
    again, _ = policy.act(obs, state, first=np.ones(6, bool))
    assert again.tolist() == together.tolist()


def test_a_policy_refuses_observations_of_a_wrong_shape(cartpole):
    policy = dreamfleet.load(cartpole.path)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        policy.act(np.zeros(3, np.float32))
    _, state = policy.act(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="of 2 environments, but there are 1"):
        policy.act(np.zeros(4, np.float32), state)


def test_continuous_actions_are_in_the_units_of_the_environment(tmp_path):
    run = dreamfleet.train(
        env="Pendulum-v1",
        steps=20,
        local=True,
        num_actors=1,
        run_dir=str(tmp_path / "run"),
        settings={"train.eval_every": 0},
    )
    policy, space = run.policy(), gymnasium.make("Pendulum-v1").action_space  # from -2 to 2
    action, _ = policy.act(np.array([1.0, 0.0, 0.0], np.float32))
    assert space.contains(action)
    many, _ = policy.act(np.zeros((5, 3), np.float32))
    assert many.shape == (5, 1)


def test_a_run_can_be_resumed(cartpole):
    again = dreamfleet.train(resume=cartpole.path, steps=400)
    assert again.path == cartpole.path
    assert again.policy().env_steps >= 400


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stepz": 3}, "train takes no 'stepz'. Nearest: steps"),
        ({"agent": "dreamerlite"}, "Nearest: dreamer-lite"),
        ({"env": "CartPol-v1"}, "Nearest: CartPole-v1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"steps": "many"}, "--steps must be a whole number; found 'many'"),
        ({"settings": {"train.chunks": 3}}, "Nearest: train.chunk"),
        ({"settings": {"agent.dream_horizn": 3}}, "Nearest: agent.dream_horizon"),
        ({"settings": {"steps": 3}}, "for this there is --steps"),
        ({"settings": ["train.chunk=3"]}, "settings must be a mapping"),
        ({"settings": {3: 4}}, "found '3'"),
        ({"settings": {"env.gravity": object()}}, "env.gravity must be made of numbers"),
        ({"env": gymnasium.make("CartPole-v1")}, "--env must be made of numbers, texts"),
        ({"agent": "my_agent.py:MyAgent"}, "leave out .py"),
        ({"agent": "./my_agent:MyAgent"}, "is no name of a module"),
        ({"agent": ":MyAgent"}, "is no name of a module"),
    ],
)
def test_a_mistake_is_a_user_error_and_leaves_nothing(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        dreamfleet.train(local=True, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"agent": "gated-rainbow"}, "--agent gated-rainbow contradicts the run to resume"),
        ({"env": "Pendulum-v1"}, "--env Pendulum-v1 contradicts the run to resume"),
    ],
)
def test_a_resumed_run_cannot_change_its_agent_or_environment(cartpole, given, said):
    with pytest.raises(UserError, match=said):
        dreamfleet.train(resume=cartpole, steps=1000, **given)


def test_paths_and_numpy_numbers_are_accepted_as_arguments(tmp_path):
    run = dreamfleet.train(
        env="LunarLander-v3",
        run_dir=tmp_path / "run",
        steps=np.int64(10),
        local=True,
        num_actors=1,
        settings={"env.gravity": np.float32(-5), "train.eval_every": np.int64(0)},
    )
    assert run.config.steps == 10
    assert run.config.env_options == {"gravity": -5.0}
    assert dreamfleet.load(run).env_steps == 10
    assert dreamfleet.Run(str(tmp_path / "run")) == run


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"episodes": 0}, "--episodes must be from 1 to 1000000; found 0"),
        ({"episodes": 1.5}, "--episodes must be a whole number; found 1.5"),
        ({"seed": -1}, "--seed must be from 0 to 2147483647; found -1"),
        ({"seed": 2**40}, "--seed must be from 0"),
        ({"device": "tpu"}, "--device must be auto, cpu or cuda; found 'tpu'"),
        ({"checkpoint": "bestt"}, "no checkpoint at bestt"),
    ],
)
def test_wrong_arguments_of_an_evaluation_are_user_errors(cartpole, given, said):
    with pytest.raises(UserError, match=said):
        cartpole.evaluate(**{"episodes": 1, **given})


def test_an_unknown_kind_of_event_is_an_error_and_an_incomplete_line_is_skipped(cartpole, tmp_path):
    with pytest.raises(UserError, match="no events of kind 'episodes'"):
        cartpole.metrics("episodes")
    with pytest.raises(UserError, match="no run at nowhere"):
        dreamfleet.Run("nowhere").metrics()
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((cartpole.path / name).read_bytes())
    whole = dreamfleet.Run(tmp_path).metrics()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epis')  # as of a run that goes on
    assert dreamfleet.Run(tmp_path).metrics() == whole


@pytest.mark.parametrize("missing", ["nowhere", Path("nowhere")])
def test_a_missing_run_is_named(missing):
    with pytest.raises(UserError, match="no run at nowhere"):
        dreamfleet.load(missing)
