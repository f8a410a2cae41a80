"""Writes the tables of `docs/results.md` from the files of the other scripts.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.learning import ablation
from benchmarks.learning.curves import DEFAULT_AGENT, TASKS
from benchmarks.learning.report import markdown, spread, training_table
from benchmarks.processes import ROOT
from benchmarks.replay import bench
from benchmarks.system import startup
from benchmarks.updates import speed

PAGE = ROOT / "docs" / "results.md"
BEGIN = "<!-- results: written by `python benchmarks/tables.py` -->"
END = "<!-- end of results -->"
MISSING = "not measured yet"
TRAIN = "benchmarks/learning/train.py"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = tables(ROOT / "benchmarks" / "results")
    PAGE.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}", encoding="utf-8")


def tables(results: Path) -> str:
    """Returns the text between the two marks of the page, from a folder of results."""
    return "\n\n".join((overview(results), details(results)))


def overview(results: Path) -> str:
    """What each agent learns in how many steps."""
    rows = [row for it in summaries(results) for row in local_rows(it["env"], it["figures"])]
    rows.append(distributed_row(load(results / "distributed.json")))
    plots = [
        f"![{path.parent.name}](../benchmarks/results/{path.parent.name}/{path.name})"
        for path in sorted(results.glob("*/curves.png"))
    ]
    heads = ("agent", "env", "greedy return", "steps", "wall time", "command")
    return "\n\n".join((markdown(heads, rows), " ".join(plots)))


def details(results: Path) -> str:
    """All that is measured besides."""
    learned = summaries(results)
    started = load(results / "startup.json")
    return "\n\n".join(
        (
            *(kinds_table(it["env"], it["finals"]) for it in learned if "finals" in it),
            *(training_table(it["env"], it["training"]) for it in learned if "training" in it),
            *(ablation.table(json.loads(path.read_text())) for path in ablation.summaries(results)),
            startup.table(started) if started else f"Start-up: {MISSING}.",
            *replay_table(load(results / "replay.json")),
            *(
                part
                for path in sorted(results.glob("updates/*.json"))
                for part in updates_part(path)
            ),
        )
    )


def summaries(results: Path) -> list[dict[str, Any]]:
    """Of all learning curves."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*/summary.json"))]


def local_rows(env: str, figures: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row for every method, and one where ours are still missing."""
    methods = list(dict.fromkeys(row["method"] for row in figures))
    for method in methods:
        rows = [row for row in figures if row["method"] == method]
        one = rows[0]
        yield (
            method,
            env,
            spread(one["final_returns"], ".1f"),
            "; ".join(steps_to(row) for row in rows),
            f"{spread(one['wall_s'])} s for {one['budget']:,} steps",
            f"`{command(one, env)}`",
        )
    ours = TASKS[env].ours
    if ours not in methods:
        make = f"`python benchmarks/learning/train.py --env {env} --agent {ours}`"
        yield ours, env, MISSING, "", "", make


def steps_to(row: Mapping[str, Any]) -> str:
    """How many steps were needed for a threshold, and whether it lasted."""
    seeds = len(row["steps"])
    there, settled = (
        sum(steps is not None for steps in row[name]) for name in ("steps", "steps_for_good")
    )
    said = f"≥ {row['threshold']:g}: {spread(row['steps'], beyond=row['budget'])}"
    said += f" in {there}/{seeds}, at the end in {settled}/{seeds}"
    if row["method"].startswith("sb3") and row["times_ours"]:
        said += f", {row['times_ours']:g} × ours"
    return said


def distributed_row(found: dict[str, Any] | None) -> tuple[str, ...]:
    if found is None:
        return f"{DEFAULT_AGENT} on Ray", "CartPole-v1", MISSING, "", "", "`make train`"
    of = {name: [run[name] for run in found["runs"]] for name in found["runs"][0]}
    return (
        f"{DEFAULT_AGENT} on Ray, {found['actors']} actors",
        of["env"][0],
        f"{spread(of['return_mean'], '.1f')} in {len(found['runs'])} seeds",
        spread(of["env_steps"]),
        f"{spread(of['wall_s'])} s from the command to the end",
        "`make train`",
    )


def replay_table(found: dict[str, Any] | None) -> Iterator[str]:
    """The replay against its peers, and how that was measured."""
    if found is None:
        yield f"The replay against its peers: {MISSING}."
        return
    rows = []
    for result in found["rows"]:
        what, against, must, median, worst, *_ = bench.line(result)
        measured = f"{median} ({worst})" if result["measured"] else MISSING
        rows.append((what, against, must, measured))
    yield markdown(("what", "against", "must", "measured: median (worst)"), rows)
    yield f"`python launch.py bench replay`: {bench.footing(found)}."


def updates_part(path: Path) -> Iterator[str]:
    """An agent's learner against its peers, and how that was measured."""
    found = json.loads(path.read_text())
    yield speed.table(found)
    yield f"`python benchmarks/updates/speed.py --agent {path.stem}`: {speed.footing(found)}."


def kinds_table(env: str, finals: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """What became of each kind of episodes at the end of training."""
    facts = list(next(iter(next(iter(finals.values())).values())))
    rows = [
        (method, kind, *(spread(figures[fact], _form(fact)) for fact in facts))
        for method, kinds in finals.items()
        for kind, figures in kinds.items()
    ]
    episodes = f"{TASKS[env].episodes:,} episodes of {env}"
    return markdown(("agent", episodes, *facts), rows)


def _form(fact: str) -> str:
    return ".1f" if fact == "return" else ".3g"


def command(row: Mapping[str, Any], env: str) -> str:
    """What makes all seeds of a row, from what made the first one."""
    said, task = row["command"], TASKS[env]
    for was, now in (("launch.py", TRAIN), ("benchmarks/peers.py", "benchmarks/learning/sb3.py")):
        said = said.replace(was, now)
    usual = f" --set train.eval_every={task.every} --set train.eval_episodes={task.episodes}"
    for alone in (" --local --num-actors 1", " --seed 0", usual):
        said = said.replace(alone, "")
    said += f" --seeds {len(row['final_returns'])}"
    named = row["method"] == row["agent"] or TRAIN not in said
    return said if named else f"{said} --name {row['method']}"


def load(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main()
