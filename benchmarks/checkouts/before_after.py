"""Whether a change made learning worse: two checkouts, the same commands, the same fresh seeds.

    python benchmarks/checkouts/before_after.py run CHECKOUT FOLDER      # goes on where it stopped
    python benchmarks/checkouts/before_after.py show OLD_FOLDER NEW_FOLDER

Each run keeps its `config.yaml`, `versions.json` and `metrics.jsonl`, and beside them the score of
its end: greedy episodes, the same for all. `show` keeps a summary of both in `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

TASKS: Final = {  # task → flags, steps between evaluations, their episodes, those of the end; seeds
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


def run(checkout: Path, folder: Path) -> None:
    """Brings every run of one checkout to its end, from wherever it is."""
    for task, (flags, every, episodes, scored, seeds) in TASKS.items():
        for seed in seeds:
            path, score = folder / f"{task}-{seed}", folder / f"{task}-{seed}.json"
            if score.is_file():
                continue
            looks = (f"train.eval_every={every}", f"train.eval_episodes={episodes}")
            new = [*flags, "--seed", str(seed), "--run-dir", str(path), "--local"]
            new += ["--num-actors", "1", *(word for look in looks for word in ("--set", look))]
            launch(checkout, path, ["--resume", str(path)] if path.exists() else new)
            ask = ["--episodes", str(scored), "--seed", "7000", "--json"]
            found = launch(checkout, path, ["eval", str(path), *ask])
            score.write_text(found)
            print(path.name, json.loads(found)["return_mean"], flush=True)


def launch(checkout: Path, path: Path, args: list[str]) -> str:
    """Runs `launch.py` of a checkout → what it prints. SystemExit unless it ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".log"), "a") as log:
        done = subprocess.run(
            [sys.executable, "launch.py", *args],
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"launch.py {' '.join(args)} ended with {done.returncode}; see {log.name}")
    return done.stdout


def summary(folder: Path) -> dict[str, Any]:
    """Returns what is kept of a folder's runs: how each was made, its evaluations, its score."""
    kept = {}
    for score in sorted(folder.glob("*.json")):
        path = folder / score.stem
        versions = json.loads((path / "versions.json").read_text())
        events = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        looks = [[event["at"], event["return_mean"]] for event in events if event["kind"] == "eval"]
        found = json.loads(score.read_text())
        figures = {key: found[key] for key in ("return_mean", "return_min", "env_steps", "seed")}
        about = {name: versions[name] for name in ("git", "python", "torch")}
        kept[score.stem] = {**about, "evaluations": looks, "score": figures}
    return kept


def row(task: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """One task of the table: means over evaluations and scores of the end, old and new."""
    names = [name for name in old if name.startswith(task) and name in new]

    def values(kept: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        looks = [np.mean([mean for _, mean in kept[name]["evaluations"]]) for name in names]
        return np.array(looks), np.array([kept[name]["score"]["return_mean"] for name in names])

    cells = []
    for before, after in zip(values(old), values(new), strict=True):
        change = after - before
        error = change.std(ddof=1) / len(change) ** 0.5
        cells += [
            f"{np.median(side):.1f} ({side.min():.1f} to {side.max():.1f})"
            for side in (before, after)
        ]
        cells.append(f"{change.mean():+.1f} ± {error:.1f}")
    return f"| {task}, {len(names)} seeds | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("first", type=Path, help="run: a checkout; show: the old code's folder")
    parser.add_argument("folder", type=Path, help="run: for its runs; show: the new code's folder")
    parser.add_argument("--out", type=Path, help="show: a file for the summary of both")
    given = parser.parse_args()
    if given.what == "run":
        run(given.first.resolve(), given.folder.resolve())
        return
    old, new = summary(given.first), summary(given.folder)
    if given.out:
        machine = {"cpus": os.cpu_count(), "processor": processor()}
        given.out.write_text(json.dumps({**machine, "old": old, "new": new}, indent=1) + "\n")
    print(
        "| task | mean of evaluations, old | new | new - old | score at the end, old | new "
        "| new - old |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        print(row(task, old, new))


def processor() -> str:
    """The name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
