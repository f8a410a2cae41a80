"""What the scripts ask of launch.py and of others is understood there."""

import numpy as np
import pytest

import launch
from benchmarks import learning


def test_launch_understands_the_command():
    args = learning.command("Pendulum-v1", 3, 2000, ["agent.horizon=10"])
    config, _, resumed = launch.configured([*args, "--run-dir", "somewhere"])
    assert (config.env, config.seed, config.steps, config.num_actors) == ("Pendulum-v1", 3, 2000, 1)
    assert config.local and resumed is None
    assert (config.train.eval_every, config.train.eval_episodes) == (500, 100)
    assert config.agent_options["horizon"] == 10


def test_a_peers_actions_become_ours():
    pytest.importorskip("stable_baselines3")
    from gymnasium.spaces import Box

    from benchmarks.peers import Greedy

    class Model:
        action_space = Box(-2.0, 4.0, (1,), np.float32)

        def predict(self, obs, deterministic):
            assert deterministic
            return obs[:, :1], None

    obs = np.array([[-2.0, 9.0], [1.0, 9.0], [4.0, 9.0]], np.float32)
    action, _, _ = Greedy(Model()).act({"obs": obs}, None, explore=False)
    assert action.tolist() == [[-1.0], [0.0], [1.0]]
