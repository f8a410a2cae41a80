"""What of a person's code is sent to a joined cluster."""

from __future__ import annotations

import sys

import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.runtime.shipping import PACKAGE, folder_of, shipped


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder on the path with a package and a module, and another folder with a module."""
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
def test_a_module_is_sent_with_its_siblings(project, module):
    assert folder_of(module) == project / "here"
    about = shipped(f"{module}:Maze-v0", "dreamfleet.agents.dreamer_lite:DreamerLite", project)
    assert about["working_dir"] == str(project / "here")
    assert {".venv/", ".git/", "runs/"} <= set(about["excludes"])
    assert about["py_modules"] == [str(PACKAGE)]


def test_the_run_is_not_sent(project):
    run = project / "here" / "mine" / "first"
    assert "/mine/first/" in shipped("their_module:Maze-v0", "a", run)["excludes"]


@pytest.mark.parametrize("module", ["", "gymnasium.envs", "json", "__main__", "dreamfleet.envs"])
def test_what_is_installed_is_not_sent(project, module):
    assert folder_of(module) is None
    assert shipped(f"{module}:Maze-v0", "a", project).keys() == {"py_modules"}


def test_environment_and_agent_may_share_a_folder_and_no_more(project):
    assert shipped("their_module:A-v0", "their_pkg.agent:B", project)["working_dir"]
    with pytest.raises(UserError, match=r"their_module and their_agent are in .*here and .*there"):
        shipped("their_module:A-v0", "their_agent:B", project)
