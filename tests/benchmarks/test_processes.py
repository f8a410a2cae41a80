"""Tests functions that watch a run from another process."""

import json
import os
import subprocess
import sys

from benchmarks.processes import MARK, first_gradient_step, processes_with


def test_the_first_gradient_step_is_found_once_its_line_is_complete(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert not first_gradient_step(metrics)
    line = json.dumps({"kind": "milestone", "what": "first gradient step", "env_steps": 260})
    metrics.write_text(json.dumps({"kind": "episode", "env_steps": 20}) + "\n" + line)
    assert not first_gradient_step(metrics)
    metrics.write_text(line + "\n")
    assert first_gradient_step(metrics)


def test_child_processes_are_found_by_an_environment_variable():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: "abc"}, stdin=subprocess.PIPE
    )
    while len(processes_with("abc")) < 2:  # the grandchild has not started yet
        assert child.poll() is None
    child.communicate(b"\n")
    assert processes_with("abc") == []
