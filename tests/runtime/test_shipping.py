"""Tests which folders with a user's own code are sent to a cluster."""

from __future__ import annotations

import sys

import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.runtime.shipping import PACKAGE, runtime_env, source_folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two folders on the import path: `here` has a package and a module, `there` has a module."""
    (tmp_path / "here" / "their_pkg" / "envs").mkdir(parents=True)
    for place in ("their_pkg/__init__.py", "their_pkg/envs/maze.py", "their_module.py"):
        (tmp_path / "here" / place).touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "their_agent.py").touch()
    for folder in ("here", "there"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("their_")]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["their_pkg.envs.maze", "their_pkg", "their_module"])
def test_a_module_is_sent_with_the_folder_that_contains_it(project, module):
    assert source_folder(module) == project / "here"
    sent = runtime_env(
        f"{module}:Maze-v0", "dreamfleet.agents.dreamer_lite.agent:DreamerLite", project
    )
    assert sent["working_dir"] == str(project / "here")
    assert {".venv/", ".git/", "runs/"} <= set(sent["excludes"])
    assert sent["py_modules"] == [str(PACKAGE)]


def test_the_run_folder_is_not_sent(project):
    run = project / "here" / "mine" / "first"
    assert "/mine/first/" in runtime_env("their_module:Maze-v0", "a", run)["excludes"]


@pytest.mark.parametrize("module", ["", "gymnasium.envs", "json", "__main__", "dreamfleet.envs"])
def test_installed_modules_are_not_sent(project, module):
    assert source_folder(module) is None
    assert runtime_env(f"{module}:Maze-v0", "a", project).keys() == {"py_modules"}


def test_environment_and_agent_must_be_in_one_folder(project):
    assert runtime_env("their_module:A-v0", "their_pkg.agent:B", project)["working_dir"]
    with pytest.raises(UserError, match=r"their_module and their_agent are in .*here and .*there"):
        runtime_env("their_module:A-v0", "their_agent:B", project)
