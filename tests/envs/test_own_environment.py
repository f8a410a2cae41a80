"""The environment of docs/own-environment.md, as a person would save it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamfleet.core.types import Space
from dreamfleet.envs.first_step import try_first_step
from dreamfleet.envs.vector import GymVector

PAGE = Path(__file__).parents[2] / "docs" / "own-environment.md"


@pytest.mark.parametrize(("name", "paid"), [("Corridor-v0", 1.0), ("PaidCorridor-v0", 0.99)])
def test_the_environment_of_the_documentation_can_be_played(tmp_path, monkeypatch, name, paid):
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "corridor.py").write_text(source.group(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "corridor", raising=False)
    spec, warnings = try_first_step(f"corridor:{name}", {"size": 3})
    assert spec.obs == Space((3,), "float32") and warnings == []
    env = GymVector(f"corridor:{name}", 1, seed=0, options={"size": 3})
    rows = [env.reset(), *(env.step(np.ones(1, np.int64)) for _ in range(2))]
    assert [row["obs"][0].argmax() for row in rows] == [0, 1, 2]
    assert rows[-1]["reward"][0] == np.float32(paid) and env.info["is_success"][0] is True
