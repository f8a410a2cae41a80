"""Tests that the reference of settings follows the code, and that docs/settings.md is current."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from dreamfleet import agents, cli
from dreamfleet.core.config import within
from dreamfleet.core.settings import Setting, described
from dreamfleet.runtime import reference

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Example:
    """An example configuration, whose fields have defaults, ranges and comments."""

    plain: int = within(8, 1, 64)  # rows [a paper: 4]
    # Without a comment beside the field
    # the comment above is the meaning.
    above: float = within(1e-4, 0.0)
    kind: Literal["a", "b"] = "a"  # which one
    several: tuple[float, float] = (
        0.5,
        1.0,
    )  # first and last
    nothing: str | None = None


def test_a_setting_is_described_by_its_field_and_its_comment():
    assert described(Example, "x.") == [
        Setting("x.plain", "8", "from 1 to 64", "Rows", "a paper: 4"),
        Setting(
            "x.above",
            "0.0001",
            "at least 0.0",
            "Without a comment beside the field the comment above is the meaning",
        ),
        Setting("x.kind", "a", "a, b", "Which one"),
        Setting("x.several", "[0.5, 1]", "", "First and last"),
        Setting("x.nothing", "null", "", ""),
    ]


def test_the_page_is_current():
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    assert text == reference.page(), "run python docs/generate.py"


def test_every_setting_has_a_meaning():
    for title, settings in reference.groups().items():
        missing = [it.name for it in settings if not it.meaning]
        assert not missing, f"{title}: no comment beside {missing}"


@pytest.mark.parametrize("agent", [None, *agents.REGISTRY])
def test_the_settings_of_an_agent_can_be_listed(capsys, agent):
    assert cli.main(["list", "settings", *([agent] if agent else [])]) == 0
    text = capsys.readouterr().out
    assert "train.chunk = 8 (from 1 to 4096): Vector steps" in text
    listed = [name for name in agents.REGISTRY if f"\nagent {name}: --set NAME=VALUE\n" in text]
    assert listed == ([agent] if agent else list(agents.REGISTRY))


def test_only_list_settings_takes_an_agent(capsys):
    assert cli.main(["list", "envs", "dreamwalker"]) == 2
    assert cli.main(["list", "settings", "dreamwalkr"]) == 2
    assert "Nearest: dreamwalker" in capsys.readouterr().err
