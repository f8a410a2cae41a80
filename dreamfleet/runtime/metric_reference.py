"""Reads the descriptions of all metrics from `metrics.yaml`.

The display, `launch.py list metrics` and `docs/metrics.md` show these descriptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import yaml

PATH: Final = Path(__file__).parent.parent / "metrics.yaml"

HEAD: Final = """# Metrics

This page describes every metric of a training run. The command `python docs/generate.py` writes
this page from `dreamfleet/metrics.yaml`. `launch.py list metrics` prints the same descriptions.

A run writes its metrics to TensorBoard and to the file `metrics.jsonl`, one JSON object (event) per
line. Every event has the keys `kind`, `env_steps` (environment steps of the run so far) and
`wall_s` (seconds of the run so far).

The key `kind` of an event in `metrics.jsonl` has one of these values:
- `episode`: one training episode. The key `actor` is the number of the actor that played it.
- `eval`: one evaluation.
- `learn` and `world`: training metrics of the policy and of the world model.
- `run`: speed and counters of the run, every ten seconds.
- `fault`: an error that broke a part of the run, such as an actor.
- `milestone`: the first gradient step.
- `resume`: the run was resumed.

The tables below use the names in TensorBoard. If a name begins with the kind of an event, the key
in `metrics.jsonl` is the rest of the name. For example, `episode/return` is the key `return` of
events of kind `episode`.

In the names of metrics, a word in capitals stands for a part that varies, and N for a number. The
unit "–" means a number without a unit.

TensorBoard shows a counter of the replay or of faults only after the counter has changed.
"""


@dataclass(frozen=True)
class Metric:
    """The description of one metric, or of all metrics whose names fit one pattern.

    An example of a pattern is `model/error_N`, in which N stands for any number.
    """

    name: str  # as in TensorBoard; words in capitals stand for varying parts
    unit: str  # "" is a number without a unit
    meaning: str
    healthy: str  # values of a run that learns
    panel: str = ""  # words before the value in the panel; "" is a metric that it does not show

    def describes(self, name: str) -> bool:
        """Returns whether this description covers the metric `name`."""
        return _pattern(self.name).fullmatch(name) is not None

    def shown(self, value: float) -> str:
        """Returns a value of this metric as text, with its unit; fractions as percentages."""
        if self.unit == "fraction":
            return f"{value:.0%}"
        number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return f"{number} {self.unit}".rstrip()


@cache
def groups() -> dict[str, list[Metric]]:
    """Returns the descriptions of all metrics: title of a group of metrics → its descriptions."""
    loaded = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return {title: [Metric(**entry) for entry in entries] for title, entries in loaded.items()}


@cache
def find(name: str) -> Metric | None:
    """Returns the description of the metric `name`, or None if `metrics.yaml` has none.

    If several descriptions fit, returns the one whose name has the fewest varying parts.
    """
    fitting = [it for metrics in groups().values() for it in metrics if it.describes(name)]
    return min(fitting, key=lambda it: _varying(it.name), default=None)


def page() -> str:
    """Returns the text of `docs/metrics.md`, the reference of all metrics."""
    parts = [HEAD]
    for title, metrics in groups().items():
        rows = [
            f"| `{it.name}` | {it.unit or '–'} | {it.meaning} | {it.healthy} |" for it in metrics
        ]
        head = [
            f"## {title}",
            "",
            "| name | unit | meaning | healthy values |",
            "|---|---|---|---|",
        ]
        parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)


def _varying(name: str) -> int:
    return len(re.findall(r"[A-Z]+", name))


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Returns a regular expression for the metrics that a description covers.

    name: the name in the description. In `model/error_N` the N stands for a whole number. Any other
    word in capitals stands for a text without a slash.
    """
    words = (
        r"\d+" if word == "N" else "[^/]+" if word.isupper() else re.escape(word)
        for word in re.split(r"([A-Z]+)", name)
    )
    return re.compile("".join(words))
