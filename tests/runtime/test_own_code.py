"""Tests that Ray's processes import a user's own environment.

The user's project has folders with the same names as folders of dreamfleet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = """
import gymnasium as gym
import numpy as np


class Cell(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(3, np.float32), 1.0, self.t >= 10, False, {}


gym.register("Cell-v0", entry_point=Cell)
"""
FLAGS = "--agent gated-rainbow --num-actors 1 --num-dreamers 0 --no-dashboard --steps 60"
SETTINGS = "--run-dir run --set train.eval_every=0 --set agent.batch=8"


@pytest.fixture
def project(tmp_path):
    """The folder of a user's project, with an environment in `envs/cell.py` and in `script.py`.

    It also has packages with the names of dreamfleet's own folders. They raise ImportError, so that
    a wrong import is noticed.
    """
    for name in ("agents", "actors", "core", "envs", "learner", "runtime", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('imported by mistake')\n")
    (tmp_path / "launch.py").write_text("raise ImportError('imported by mistake')\n")
    (tmp_path / "envs" / "__init__.py").write_text("")
    (tmp_path / "envs" / "cell.py").write_text(ENV)
    script = f"{ENV}\nif __name__ == '__main__':\n    import sys\n    from dreamfleet import cli\n"
    (tmp_path / "script.py").write_text(f"{script}    sys.exit(cli.main(sys.argv[1:]))\n")
    return tmp_path


@pytest.mark.ray
@pytest.mark.parametrize(
    ("program", "env"),
    [
        ((str(ROOT / "launch.py"),), "envs.cell:Cell-v0"),
        pytest.param(  # registered by the script itself, as in a notebook
            ("script.py",), "Cell-v0", marks=pytest.mark.costly
        ),
    ],
    ids=["a module", "a script"],
)
@pytest.mark.parametrize("place", [("--local",), ()], ids=["local", "cluster"])
def test_an_environment_of_a_person_s_own_code_can_be_trained_in(project, program, env, place):
    path = {"PYTHONPATH": str(ROOT)} if program == ("script.py",) else {}
    done = subprocess.run(
        [sys.executable, *program, *f"{FLAGS} {SETTINGS}".split(), "--env", env, *place],
        cwd=project,
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "done 60 steps" in done.stderr
