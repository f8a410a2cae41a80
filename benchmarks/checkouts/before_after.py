"""Compares two checkouts (copies of this repository), one before and one after a change.

`run` trains all agents of one checkout with fixed seeds. `show` compares the returns of both
checkouts:

    python benchmarks/checkouts/before_after.py run CHECKOUT FOLDER
    python benchmarks/checkouts/before_after.py show OLD_FOLDER NEW_FOLDER [--out FILE]

`run-short` makes a short run of every agent. `same` compares the runs of both checkouts bit by bit:

    python benchmarks/checkouts/before_after.py run-short CHECKOUT FOLDER
    python benchmarks/checkouts/before_after.py same OLD_FOLDER NEW_FOLDER [--out FILE]

FOLDER receives the runs of one checkout. `show` and `same` print a table, and write the result to
`--out` as JSON. `same` ends with exit code 1 if any number differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.checkouts import short_runs
from benchmarks.checkouts.launch import launch, machine, made_by
from benchmarks.formatting import markdown_table, median_and_range

# task → flags, steps between evaluations, their episodes, episodes after training, seeds
TASKS: Final = {
    "cartpole": (("--env", "CartPole-v1", "--steps", "5000"), 500, 100, 100, range(211, 216)),
    "pendulum": (("--env", "Pendulum-v1", "--steps", "3000"), 500, 100, 100, range(211, 216)),
    "walker": (
        ("--agent", "dreamwalker", "--env", "BipedalWalker-v3", "--steps", "30000"),
        10_000,
        50,
        100,
        range(221, 223),
    ),
    "number-game": (
        ("--agent", "gated-rainbow", "--env", "NumberGame-v1", "--steps", "120000"),
        20_000,
        5_000,
        5_000,
        range(231, 233),
    ),
}
EVAL_SEED: Final = "7000"  # of the evaluation after training, the same for all runs
HEADS: Final = (
    "Task",
    "Mean of evaluations, old",
    "new",
    "new - old",
    "Return after training, old",
    "new",
    "new - old",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "show", "run-short", "same"))
    parser.add_argument("first", type=Path, help="a checkout, or the folder of the old runs")
    parser.add_argument(
        "second", type=Path, help="a folder for runs, or the folder of the new runs"
    )
    parser.add_argument("--out", type=Path, help="a file for the result (show, same)")
    args = parser.parse_args()
    first, second = args.first.resolve(), args.second.resolve()
    if args.what == "run":
        run(first, second)
        return
    if args.what == "run-short":
        short_runs.run(first, second)
        return
    if args.what == "same":
        found = short_runs.compare(first, second)
        print(short_runs.table(found))
    else:
        found = {**machine(), "old": summarise(first), "new": summarise(second)}
        print(table(found["old"], found["new"]))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.what == "same" and not found["same"]:
        raise SystemExit(1)


def run(checkout: Path, folder: Path) -> None:
    """Trains and evaluates all runs of TASKS with the code in `checkout`; writes them to `folder`.

    TASKS lists the environments and seeds. checkout: a copy of this repository. Finished runs are
    skipped, and interrupted runs are resumed.
    """
    for task, (flags, every, episodes, final_episodes, seeds) in TASKS.items():
        for seed in seeds:
            path = folder / f"{task}-{seed}"
            evaluation = path.with_suffix(".json")
            if evaluation.is_file():
                continue
            new = [*flags, "--seed", str(seed), "--run-dir", str(path), "--local"]
            new += ["--num-actors", "1"]
            new += [
                "--set",
                f"train.eval_every={every}",
                "--set",
                f"train.eval_episodes={episodes}",
            ]
            launch(checkout, path, ["--resume", str(path)] if path.exists() else new)
            options = ["--episodes", str(final_episodes), "--seed", EVAL_SEED, "--json"]
            found = launch(checkout, path, ["eval", str(path), *options])
            evaluation.write_text(found)
            print(path.name, json.loads(found)["return_mean"], flush=True)


def summarise(folder: Path) -> dict[str, Any]:
    """Returns the results of all finished runs in `folder`, by name of the run.

    A result has the git commit, the versions of Python and torch, the evaluations as [environment
    steps, mean return], and the evaluation after training (`score`).
    """
    runs = {}
    for evaluation in sorted(folder.glob("*.json")):
        path = folder / evaluation.stem
        events = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        evaluations = [
            [event["at"], event["return_mean"]] for event in events if event["kind"] == "eval"
        ]
        final = json.loads(evaluation.read_text())
        names = ("return_mean", "return_min", "env_steps", "seed")
        score = {name: final[name] for name in names}
        runs[path.name] = {**made_by(path), "evaluations": evaluations, "score": score}
    return runs


def table(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns a Markdown table of the returns before and after a change, with one row per task.

    old, new: results of `summarise`. Returns are shown as median (min to max) over seeds,
    differences as mean ± standard error.
    """
    return markdown_table(HEADS, [row(task, old, new) for task in TASKS])


def row(task: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns the table cells of one task: returns before and after a change, and their difference.

    old, new: results of `summarise`. A run is compared only if `old` and `new` both have it.
    """
    names = [name for name in old if name.startswith(task) and name in new]

    def values(runs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        means = [np.mean([mean for _, mean in runs[name]["evaluations"]]) for name in names]
        return np.array(means), np.array([runs[name]["score"]["return_mean"] for name in names])

    cells = [f"{task}, {len(names)} seeds"]
    for before, after in zip(values(old), values(new), strict=True):
        change = after - before
        error = change.std(ddof=1) / len(change) ** 0.5
        cells += [median_and_range(runs.tolist(), ".1f") for runs in (before, after)]
        cells.append(f"{change.mean():+.1f} ± {error:.1f}")
    return cells


if __name__ == "__main__":
    main()
