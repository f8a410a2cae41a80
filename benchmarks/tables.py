"""Writes the tables of `docs/results.md` from the records in `benchmarks/results`.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.formatting import markdown_table, median_and_range
from benchmarks.learning import ablation
from benchmarks.learning.curves import DEFAULT_AGENT, TASKS, with_present_settings
from benchmarks.learning.report import (
    RETURNS,
    RETURNS_MEANING,
    THRESHOLDS,
    THRESHOLDS_MEANING,
    TRAINING,
    TRAINING_MEANING,
    returns_rows,
    threshold_rows,
    training_rows,
)
from benchmarks.processes import RESULTS, ROOT
from benchmarks.replay import bench
from benchmarks.system import startup
from benchmarks.updates import speed

PAGE: Final = ROOT / "docs" / "results.md"
BEGIN: Final = "<!-- results: written by `python benchmarks/tables.py` -->"
END: Final = "<!-- end of results -->"
MISSING: Final = "not measured yet"
TRAIN: Final = "benchmarks/learning/train.py"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(RESULTS)}\n{END}{after}", encoding="utf-8")


def tables(results: Path) -> str:
    """Returns the generated part of `docs/results.md`, all tables of measurements, as Markdown.

    results: the folder of recorded results. In the page, this part is between the lines BEGIN and
    END.
    """
    learned = [json.loads(path.read_text()) for path in sorted(results.glob("*/summary.json"))]
    parts = (
        *learning_tables(learned, load(results / "distributed.json")),
        *pictures(results),
        *category_tables(learned),
        *training_table(learned),
        *ablation_tables(results),
        *startup_table(load(results / "startup.json")),
        *replay_table(load(results / "replay.json")),
        *updates_tables(results),
    )
    return "\n\n".join(parts)


def learning_tables(learned: list[dict[str, Any]], on_ray: dict[str, Any] | None) -> Iterator[str]:
    """Yields the lines of three tables with headings: returns, steps to thresholds, and commands.

    learned: the content of `summary.json` of each environment. on_ray: the record of the training
    on Ray by `system/distributed.py`, or None.
    """
    returns, thresholds, commands = [], [], []
    for summary in learned:
        env, figures = summary["env"], summary["figures"]
        returns += returns_rows(env, figures)
        thresholds += threshold_rows(env, figures)
        methods = {row["method"]: row for row in figures}
        commands += [(env, name, f"`{command(row, env)}`") for name, row in methods.items()]
        ours = TASKS[env].ours
        if ours not in methods:
            returns.append((env, ours, "0", MISSING, "", ""))
            commands.append((env, ours, f"`python {TRAIN} --env {env} --agent {ours}`"))
    returns.append(distributed_row(on_ray))
    commands.append((returns[-1][0], returns[-1][1], "`make train`"))
    yield "### Returns and wall time"
    yield paragraph(RETURNS_MEANING)
    yield markdown_table(RETURNS, returns)
    yield "### Steps to a threshold"
    yield paragraph(THRESHOLDS_MEANING)
    yield markdown_table(THRESHOLDS, thresholds)
    yield "### Commands"
    yield paragraph(
        "Each command of this table trains all seeds of one method (an agent with certain "
        "settings, or a baseline). The commands use the present names of settings. The records in "
        "`benchmarks/results` may use older names."
    )
    yield markdown_table(("Environment", "Method", "Command"), commands)


def distributed_row(found: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns the row of `make train` (training on Ray) for the table of returns.

    found: the record of `system/distributed.py`. If it is None, the row says "not measured yet".
    """
    if found is None:
        return "CartPole-v1", f"{DEFAULT_AGENT} on Ray", "0", MISSING, "", ""
    runs = found["runs"]
    return (
        runs[0]["env"],
        f"{DEFAULT_AGENT} on Ray, {found['actors']} actors",
        str(len(runs)),
        median_and_range([run["return_mean"] for run in runs], ".1f"),
        median_and_range([run["env_steps"] for run in runs]),
        median_and_range([run["wall_s"] / 60 for run in runs], ".1f"),
    )


def command(row: Mapping[str, Any], env: str) -> str:
    """Returns the command that trains all seeds of a method (an agent or a baseline) on `env`.

    row: results of the method from `summary.json`. Old names of settings and scripts are replaced
    by the present names.
    """
    text, task = with_present_settings(row["command"]), TASKS[env]
    for old, new in (("launch.py", TRAIN), ("benchmarks/peers.py", "benchmarks/learning/sb3.py")):
        text = text.replace(old, new)
    evaluations = (
        f" --set train.eval_every={task.eval_every} --set train.eval_episodes={task.eval_episodes}"
    )
    for default in (" --local --num-actors 1", " --seed 0", evaluations):
        text = text.replace(default, "")
    text += f" --seeds {len(row['final_returns'])}"
    if row["method"] != row["agent"] and TRAIN in text:
        text += f" --name {row['method']}"
    return text


def pictures(results: Path) -> Iterator[str]:
    """Yields Markdown links to the pictures of learning curves, one per environment.

    results: the folder of recorded results.
    """
    paths = sorted(results.glob("*/curves.png"))
    if paths:
        yield "### Learning curves"
    for path in paths:
        env = path.parent.name
        yield (
            f"![{env}: mean return of evaluations against environment steps, and against minutes "
            f"of training](../benchmarks/results/{env}/{path.name})"
        )


def category_tables(learned: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table of returns by category, as NumberGame's kinds of enemies are.

    Environments that report no categories are left out. learned: the content of `summary.json` of
    each environment.
    """
    for summary in learned:
        if "finals" not in summary:
            continue
        env, finals = summary["env"], summary["finals"]
        figures = list(next(iter(finals.values()))["all"])
        rows = [
            (method, category, *(median_and_range(found[name], form(name)) for name in figures))
            for method, categories in finals.items()
            for category, found in categories.items()
        ]
        yield f"### {env} by category of episodes"
        yield paragraph(
            f"The table shows the results of {TASKS[env].eval_episodes:,} greedy episodes after "
            f"training, by category. {env} itself reports the category of each episode. `all` "
            "means all episodes together. Cells are medians over seeds (min to max)."
        )
        names = [name.capitalize() for name in figures]
        yield markdown_table(("Method", "Category", *names), rows)


def form(figure: str) -> str:
    """Returns the number format of a table column, as a format specification.

    figure: name of the column. Numbers have one decimal in the column `return`, and three
    significant digits in all other columns.
    """
    return ".1f" if figure == "return" else ".3g"


def training_table(learned: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of the table of training episodes, for environments with a record of them.

    learned: the content of `summary.json` of each environment.
    """
    rows = []
    for summary in learned:
        rows += training_rows(summary["env"], summary.get("training", {}))
    if rows:
        yield "### Returns of training episodes"
        yield paragraph(TRAINING_MEANING)
        yield markdown_table(TRAINING, rows)


def ablation_tables(results: Path) -> Iterator[str]:
    """Yields the lines of the tables of ablations: agents trained without one of their parts.

    results: the folder of recorded results.
    """
    for path in ablation.summary_files(results):
        found = json.loads(path.read_text())
        yield f"### Ablation of {found['agent']}"
        yield paragraph(ablation.title(found))
        yield ablation.table(found)


def startup_table(found: dict[str, Any] | None) -> Iterator[str]:
    """Yields the lines of the table of start-up times, or "not measured yet" if `found` is None.

    found: the record of `system/startup.py`.
    """
    yield "### Start-up time"
    yield startup.table(found) if found else f"Start-up: {MISSING}."


def replay_table(found: dict[str, Any] | None) -> Iterator[str]:
    """Yields the lines of the replay benchmark's table, or "not measured yet" if `found` is None.

    found: the JSON record of the benchmark.
    """
    yield "### Speed of the replay"
    if found is None:
        yield f"Replay: {MISSING}."
        return
    yield paragraph(bench.MEANING)
    rows = []
    for result in found["rows"]:
        what, against, target, *figures = bench.cells(result)[:5]
        rows.append((what, against, target, *(figures if result["measured"] else (MISSING, ""))))
    yield markdown_table(bench.HEADS[:5], rows)
    yield paragraph(f"Measured with `python launch.py bench replay`: {bench.conditions(found)}.")


def updates_tables(results: Path) -> Iterator[str]:
    """Yields the lines of the tables of learner speed (updates per second), one per agent.

    results: the folder of recorded results.
    """
    paths = sorted(results.glob("updates/*.json"))
    if paths:
        yield "### Speed of the learners"
        yield paragraph(speed.MEANING)
    for path in paths:
        found = json.loads(path.read_text())
        yield speed.table(found)
        yield paragraph(
            f"Measured with `python benchmarks/updates/speed.py --agent {path.stem}`: "
            f"{speed.conditions(found)}."
        )


def paragraph(text: str) -> str:
    """Returns `text` wrapped to lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def load(path: Path) -> Any:
    """Returns the content of a JSON file, or None if the file does not exist."""
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main()
