"""Updates a second of an agent's learner, against its peers at equal networks.

    python benchmarks/updates/speed.py [--agent dreamwalker]

Ours is what `Learner` does in a run: sample, learn, tell the priorities, publish the weights. All
sides live in one process, take turns and have one thread, whose time on the processor counts: what
else the machine does matters less. Who races and on what: `gated_rainbow.py`,
`dreamwalker.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.learning.report import markdown
from benchmarks.processes import ROOT
from benchmarks.timing import Side, interleaved
from benchmarks.updates import dreamwalker, gated_rainbow
from benchmarks.updates.comparison import Race
from dreamfleet.runtime.run_folder import versions

RACES: Final[dict[str, Callable[[], Race]]] = {
    "gated-rainbow": gated_rainbow.race,
    "dreamwalker": dreamwalker.race,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agent", choices=RACES, default="gated-rainbow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a side in a round")
    parser.add_argument("--eager", action="store_true", help="ours not compiled: no C++ compiler")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/updates/AGENT.json")
    args = parser.parse_args()
    race = RACES[args.agent]()
    if args.eager:
        race = without(race, [name for name in race.ours if name.endswith("compiled")])
    found = {"agent": args.agent, **measure(race, args.rounds, args.seconds)}
    out = args.out or ROOT / "benchmarks" / "results" / "updates" / f"{args.agent}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{table(found)}\n\n{footing(found)}")
    for name, package in found["skipped"].items():
        print(f"skipped: {name} is not installed: pip install {package}")


def measure(race: Race, rounds: int, seconds: float) -> dict[str, Any]:
    """Updates a second of each side in each round, those left out whose package is missing."""
    found = {package: installed(package) for package in race.needs.values()}
    skipped = {name: package for name, package in race.needs.items() if not found[package]}
    race = without(race, skipped)
    torch.set_num_threads(1)
    racing = [Side(name, build(), 1, time.process_time) for name, build in race.sides.items()]
    rates = zip(*interleaved(racing, rounds, seconds), strict=True)
    mine = versions()
    return {
        "rounds": rounds,
        "cpus": os.cpu_count(),
        **{name: mine[name] for name in ("git", "platform", "python", "torch", "numpy")},
        "peers": {package: version for package, version in found.items() if version},
        "skipped": skipped,
        "batch": race.batch,
        "capacity": race.capacity,
        "ours": race.ours,
        "others": race.others,
        "rates": {side.name: list(of) for side, of in zip(racing, rates, strict=True)},
    }


def without(race: Race, names: Collection[str]) -> Race:
    """The same race, those sides left out."""
    sides = {name: build for name, build in race.sides.items() if name not in names}
    return replace(race, ours=tuple(name for name in race.ours if name in sides), sides=sides)


def installed(package: str) -> str:
    """Its version; empty where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def table(found: Mapping[str, Any]) -> str:
    """Medians over rounds, and how many times a peer's rate each of ours is, round by round."""
    rates, mine = found["rates"], found["ours"]
    rows = [
        (
            name,
            f"{statistics.median(of):,.0f}",
            *("" if name in (*mine, *found["others"]) else times(rates[one], of) for one in mine),
        )
        for name, of in rates.items()
    ]
    heads = ("who", f"updates/s of batch {found['batch']}", *(f"{one} against it" for one in mine))
    return markdown(heads, rows)


def times(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """`median (worst)` of the ratios of rounds."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}×)"


def footing(found: Mapping[str, Any]) -> str:
    """How it was measured."""
    peers = "".join(f", {package} {version}" for package, version in found["peers"].items())
    return (
        f"{found['rounds']} interleaved rounds after a warm-up, processor seconds of one thread, "
        f"{found['capacity']:,} rows to draw from; {found['cpus']} CPUs, torch {found['torch']}, "
        f"Python {found['python']}{peers}"
    )


if __name__ == "__main__":
    main()
