"""Watching a run from outside."""

import json
import os
import subprocess
import sys

from benchmarks.processes import MARK, first_gradient_step, marked


def test_the_first_gradient_step_is_seen_in_the_metrics_even_while_a_line_is_written(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    assert not first_gradient_step(metrics)
    line = json.dumps({"kind": "milestone", "what": "first gradient step", "env_steps": 260})
    metrics.write_text(json.dumps({"kind": "episode", "env_steps": 20}) + "\n" + line)
    assert not first_gradient_step(metrics)
    metrics.write_text(line + "\n")
    assert first_gradient_step(metrics)


def test_processes_are_found_by_what_they_inherit():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: "abc"}, stdin=subprocess.PIPE
    )
    while len(marked("abc")) < 2:  # the grandchild is on its way
        assert child.poll() is None
    child.communicate(b"\n")
    assert marked("abc") == []
