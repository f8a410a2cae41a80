"""Makes short runs of every agent with two checkouts, and compares their results bit by bit.

A checkout is a copy of this repository. Values that depend on the clock are not compared. Names of
arrays and metrics may differ.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from benchmarks.checkouts.launch import launch, machine, made_by
from benchmarks.formatting import markdown_table

COMMON: Final = ("--local", "--num-actors", "1", "--seed", "5")
WALKER: Final = ("--agent", "dreamwalker", "--env", "BipedalWalker-v3")
RUNS: Final[dict[str, tuple[str, ...]]] = {  # run → flags
    "lite-cartpole": ("--env", "CartPole-v1", "--steps", "700"),
    "lite-pendulum": ("--env", "Pendulum-v1", "--steps", "600"),
    "rainbow-cartpole": ("--agent", "gated-rainbow", "--env", "CartPole-v1", "--steps", "1600"),
    "rainbow-number": ("--agent", "gated-rainbow", "--env", "NumberGame-v1", "--steps", "14000"),
    "walker-pendulum": ("--agent", "dreamwalker", "--env", "Pendulum-v1", "--steps", "900"),
    "walker-walker": (*WALKER, "--steps", "2600"),
    "walker-droq": (*WALKER, "--preset", "BipedalWalker-v3-droq", "--steps", "2200"),
    "walker-crossq": (*WALKER, "--preset", "BipedalWalker-v3-crossq", "--steps", "2200"),
    "walker-prio": (*WALKER, "--preset", "BipedalWalker-v3-prioritized", "--steps", "2200"),
    "rainbow-invaders": (
        "--agent",
        "gated-rainbow",
        "--env",
        "ALE/SpaceInvaders-v5",
        "--steps",
        "1300",
    ),
    "barlow-cartpole": ("--agent", "barlow-dreamer", "--env", "CartPole-v1", "--steps", "1100"),
    "barlow-catch": ("--agent", "barlow-dreamer", "--env", "PixelCatch-v1", "--steps", "1040"),
}
HEADS: Final = ("Run", "Arrays", "Arrays that differ", "Events", "Events that differ", "Same")


def run(checkout: Path, folder: Path) -> None:
    """Makes all short runs of RUNS with the code in `checkout`, and writes them to `folder`.

    checkout: a copy of this repository. Finished runs are skipped. Raises SystemExit if an
    unfinished run is in `folder`.
    """
    for name, flags in RUNS.items():
        path = folder / name
        finished = path.with_suffix(".finished")
        if not finished.is_file():
            if path.exists():
                raise SystemExit(f"{path} is not finished. Remove the folder to start again.")
            launch(checkout, path, [*COMMON, "--run-dir", str(path), *flags])
            finished.touch()
        print(name, flush=True)


def compare(old: Path, new: Path) -> dict[str, Any]:
    """Compares the short runs in the folders `old` and `new`, and returns how they differ.

    Raises SystemExit if the two folders have different runs, or no runs.
    """
    names = [[name for name in RUNS if (folder / name).is_dir()] for folder in (old, new)]
    if names[0] != names[1] or not names[0]:
        raise SystemExit(f"{old} has the runs {names[0]}, and {new} has the runs {names[1]}")
    runs = {
        name: {
            "command": command(name),
            "old": made_by(old / name),
            "new": made_by(new / name),
            **compare_run(old / name, new / name),
        }
        for name in names[0]
    }
    return {
        **machine(),
        "same": all(run["same"] for run in runs.values()),
        "runs": runs,
    }


def command(name: str) -> str:
    """Returns the command that makes the short run `name`, without the flag for its run folder."""
    return " ".join(("python launch.py", *COMMON, *RUNS[name]))


def compare_run(old: Path, new: Path) -> dict[str, Any]:
    """Returns how many arrays and events the run folder `old` has, and how many differ in `new`.

    The arrays are those of the last checkpoint. The events are the lines of `metrics.jsonl`.
    """
    arrays = [array_hashes(run) for run in (old, new)]
    events = [event_values(run) for run in (old, new)]
    arrays_differ = max((arrays[0] - arrays[1]).total(), (arrays[1] - arrays[0]).total())
    events_differ = sum(a != b for a, b in zip_longest(*events))
    return {
        "arrays": arrays[0].total(),
        "arrays_differ": arrays_differ,
        "events": len(events[0]),
        "events_differ": events_differ,
        "same": not arrays_differ and not events_differ,
    }


def array_hashes(run: Path) -> Counter[str]:
    """Returns the SHA-256 hashes of all arrays in a run's last checkpoint, with their counts.

    run: the run folder. A hash covers an array's data type, shape and values. Raises SystemExit if
    the run has no checkpoint.
    """
    checkpoints = sorted((run / "checkpoints").glob("ckpt-*"))
    if not checkpoints:
        raise SystemExit(f"{run} has no checkpoint")
    found: Counter[str] = Counter()
    for path in checkpoints[-1].rglob("*.npz"):
        with zipfile.ZipFile(path) as file:
            found.update(hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist())
    return found


def event_values(run: Path) -> list[list[str]]:
    """Returns a sorted list of numbers, as text, for each event in `metrics.jsonl` of a run.

    run: the run folder. Events of kind `run`, and fields whose name ends in `_s` (durations in
    seconds), are left out.
    """
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] != "run":
            numbers = [
                value
                for name, value in event.items()
                if isinstance(value, (int, float)) and not name.endswith("_s")
            ]
            found.append(sorted(map(repr, numbers)))
    return found


def table(found: dict[str, Any]) -> str:
    """Returns a Markdown table of how the short runs of two checkouts differ, one row per run.

    found: the result of `compare`.
    """
    rows = [
        (
            name,
            *(str(run[key]) for key in ("arrays", "arrays_differ", "events", "events_differ")),
            "yes" if run["same"] else "no",
        )
        for name, run in found["runs"].items()
    ]
    return markdown_table(HEADS, rows)
