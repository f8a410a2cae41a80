"""Tests the agent of docs/own-agent.md as a file of its own, and faulty variants of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dreamfleet
from dreamfleet import agents
from dreamfleet.core.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Returns a folder with the file `my_agent.py`, the Python code block of docs/own-agent.md."""
    page = (ROOT / "docs" / "own-agent.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "my_agent.py").write_text(code)
    return tmp_path


def launch(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs launch.py in the folder `project` with arguments; returns the finished process."""
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)


@pytest.mark.costly
def test_the_agent_of_the_document_learns_cartpole(project):
    run = ("--local", "--num-actors", "1", "--steps", "8000", "--seed", "3", "--run-dir", "run")
    evaluations = ("--set", "train.eval_every=2000")
    done = launch(
        project, "--agent", "my_agent:MyAgent", *run, *evaluations, "--env", "CartPole-v1"
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (project / "run" / "metrics.jsonl").read_text().splitlines())
    scores = [line["return_mean"] for line in lines if line["kind"] == "eval"]
    assert max(scores) > 150, scores  # a random policy gets 22
    played = launch(project, "eval", "run", "--episodes", "3", "--json")
    assert json.loads(played.stdout)["episodes"] == 3, played.stderr


@pytest.mark.slow
def test_the_agent_of_the_document_passes_the_contract_tests(project):
    done = launch(project, "check", "my_agent:MyAgent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.slow
def test_a_faulty_agent_fails_the_contract_tests(project):
    file = project / "my_agent.py"
    file.write_text(file.read_text().replace("return to_array(best), state", "return best, state"))
    done = launch(project, "check", "my_agent:MyAgent")
    assert done.returncode == 1
    assert "test_actions_lie_in_the_space" in done.stdout


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "has no class 'MyAgent'"),
        ("MyAgent = 3", "has no class 'MyAgent'"),
        ("class MyAgent: pass", "has no `Config`"),
        ("import nowhere_to_be_found", 'needs "nowhere_to_be_found", which is not installed'),
        ("1 / 0", "failed to import. ZeroDivisionError"),
        ("def f(:", "failed to import. SyntaxError"),
    ],
)
def test_a_path_without_an_agent_is_refused_in_one_line(tmp_path, monkeypatch, code, message):
    name = f"no_agent_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        agents.find(f"{name}:MyAgent")
    assert "\n" not in str(refused.value)


DECLARED = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings: pass

class MyAgent:
    Config = Settings
    initial_state = act = learn_policy = weights = load = state = restore = lambda self: None
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "",
            "",
            "must declare `actions`, a tuple of discrete, continuous and multi-discrete; "
            "found None",
        ),
        ("act = ", "", "lacks the methods act"),
        ("Config = Settings", 'Config = Settings; actions = ("discret",)', "found ('discret',)"),
    ],
)
def test_a_missing_declaration_or_method_is_named(tmp_path, monkeypatch, old, new, message):
    name = f"declares_{abs(hash(new + message))}"
    (tmp_path / f"{name}.py").write_text(DECLARED.replace(old, new, 1) if old else DECLARED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=re.escape(message)):
        agents.find(f"{name}:MyAgent")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return to_array(best)", "return to_array(best)[:, None]", "found int64 (3, 1)"),
        ("return to_array(best)", "return to_array(best).astype('f4')", "found float32 (3,)"),
        ("return to_array(best)", "return to_array(best) + 2", "whole numbers from 0 to 1"),
        ("return to_array(best)", "return best", "found Tensor"),
        ("state, {}", "state", "it must return (actions, state, further columns), found tuple"),
        ("state, {}", "state, {'x': np.zeros(len(best))}", "does not declare its column x"),
        ("state, {}", "state, {'x': np.full(len(best), np.nan)}", "'x' is not finite"),
        ("columns(spec)", "columns(spec, x=spec.action)", "does not return the column x"),
        ("loss.detach()", "loss", "the metric 'loss/value' carries gradients: detach it"),
        ("loss.detach()", "rows['reward']", "the metric 'loss/value' must be a number"),
        ('"loss/value"', '"loss"', "the name of a metric must be group/name, found 'loss'"),
        ("return Feedback", "Feedback", "it must return a Feedback, found None"),
        (
            "return Feedback(",
            "return Feedback(rows={'reward': rows['reward']}, metrics=",
            "cannot rewrite column 'reward'",
        ),
        ("norm = ", "raise SystemExit('no')\n        norm = ", "SystemExit: no"),
        ("norm = ", "1 / 0\n        norm = ", "learn_policy failed. ZeroDivisionError"),
        ("self.act_rng =", "1 / 0\n        self.act_rng =", "building it failed. ZeroDivision"),
        ("lr: float = 1e-3", "lr: float", "missing 1 required positional argument: 'lr'"),
        ("self.tables =", "self.tabels =", "`tables` must be a dict, found None"),
        ('"real": Table', '"reel": Table', "`tables['real']` must be a TableSpec, found None"),
        ('{"policy": C', '{"polic": C', "unknown consumer polic"),
        ('{"policy": C', '{"world": Consumer(8), "policy": C', "needs the method learn_world"),
        ('{"policy": C', '{"start": Consumer(8), "policy": C', "the table 'dream' go together"),
        ('("policy",)  #', '("policy")  #', "`act_groups` must be a tuple of policy"),
    ],
)
def test_a_faulty_agent_is_refused_in_one_line_before_the_run_folder_is_made(
    project, monkeypatch, old, new, message
):
    name = f"faulty_{abs(hash((new, message)))}"
    code = (project / "my_agent.py").read_text()
    assert old in code
    (project / f"{name}.py").write_text(code.replace(old, new, 1))
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        dreamfleet.train(f"{name}:MyAgent", steps=10, local=True, num_actors=1, run_dir="run")
    assert str(refused.value).startswith(f"agent '{name}:MyAgent'")
    assert str(refused.value).endswith(f"launch.py check {name}:MyAgent")
    assert "\n" not in str(refused.value)
    assert not (project / "run").exists()


def test_agents_of_installed_packages_are_found_by_name(project, monkeypatch):
    metadata = project / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    offered = "[dreamfleet.agents]\ntheir-agent = my_agent:MyAgent\n"
    (metadata / "entry_points.txt").write_text(offered)
    monkeypatch.syspath_prepend(str(project))
    assert agents.find("their-agent").path == "my_agent:MyAgent"
    assert "their-agent" in agents.known()
    with pytest.raises(UserError, match="Nearest: their-agent"):
        agents.find("their-agnt")
