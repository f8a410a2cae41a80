"""Measures updates per second of an agent's learner, compared with other implementations.

    python benchmarks/updates/speed.py [--agent dreamwalker]

All learners live in one process with one thread, and are timed alternately in processor time. The
compared learners are described in the files of this folder that are called like agents.
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

from benchmarks.formatting import markdown_table
from benchmarks.processes import RESULTS
from benchmarks.timing import Workload, interleaved
from benchmarks.updates import barlow_dreamer, dreamwalker, gated_rainbow
from benchmarks.updates.comparison import Comparison
from dreamfleet.runtime.run_folder import versions

COMPARISONS: Final[dict[str, Callable[[], Comparison]]] = {
    "gated-rainbow": gated_rainbow.comparison,
    "dreamwalker": dreamwalker.comparison,
    "barlow-dreamer": barlow_dreamer.comparison,
}
MEANING: Final = (
    "Each table of this section shows how many updates per second a learner does: the median over "
    "rounds of the measurement. The columns `Speed of …` compare one of our learners, named in the "
    "column, with the learner of the row: how many times as many updates per second ours does, as "
    "the median over rounds (lowest round)."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agent", choices=COMPARISONS, default="gated-rainbow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per learner and round")
    parser.add_argument(
        "--eager", action="store_true", help="leave out compiled learners, which need a compiler"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/updates/AGENT.json")
    args = parser.parse_args()
    compared = COMPARISONS[args.agent]()
    if args.eager:
        compared = without(compared, [name for name in compared.ours if name.endswith("compiled")])
    found = {"agent": args.agent, **measure(compared, args.rounds, args.seconds)}
    out = args.out or RESULTS / "updates" / f"{args.agent}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{table(found)}\n\n{conditions(found)}")
    for name, package in found["skipped"].items():
        print(f"skipped: {name} is not installed: pip install {package}")


def measure(compared: Comparison, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures the updates per second of each learner in each round.

    seconds: measuring time per learner and round. Returns the rates, the number of CPUs and the
    versions. Learners whose package is not installed are listed under `skipped`.
    """
    found = {package: installed_version(package) for package in compared.needs.values()}
    skipped = {name: package for name, package in compared.needs.items() if not found[package]}
    compared = without(compared, skipped)
    torch.set_num_threads(1)
    workloads = [
        Workload(name, build(), 1, time.process_time) for name, build in compared.learners.items()
    ]
    rates = zip(*interleaved(workloads, rounds, seconds), strict=True)
    ours = versions()
    return {
        "rounds": rounds,
        "cpus": os.cpu_count(),
        **{name: ours[name] for name in ("git", "platform", "python", "torch", "numpy")},
        "peers": {package: version for package, version in found.items() if version},
        "skipped": skipped,
        "batch": compared.batch,
        "capacity": compared.capacity,
        "ours": compared.ours,
        "others": compared.others,
        "rates": {work.name: list(rate) for work, rate in zip(workloads, rates, strict=True)},
    }


def without(compared: Comparison, names: Collection[str]) -> Comparison:
    """Returns a copy of the comparison without the learners called `names`."""
    kept = {name: build for name, build in compared.learners.items() if name not in names}
    return replace(
        compared, ours=tuple(name for name in compared.ours if name in kept), learners=kept
    )


def installed_version(package: str) -> str:
    """Returns the version of an installed package, or an empty string if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def table(found: Mapping[str, Any]) -> str:
    """Returns the Markdown table of learner speed, with one row per learner.

    found: the result of `measure`. The constant MEANING explains the columns.
    """
    rates, ours = found["rates"], found["ours"]
    rows = []
    for name, rate in rates.items():
        is_ours = name in (*ours, *found["others"])
        ratios = ["" if is_ours else relative(rates[own], rate) for own in ours]
        rows.append((name, per_second(statistics.median(rate)), *ratios))
    heads = (
        "Learner",
        f"Updates per second, batch of {found['batch']}",
        *(f"Speed of {own}" for own in ours),
    )
    return markdown_table(heads, rows)


def per_second(rate: float) -> str:
    """Returns a rate as text: whole numbers, or two digits after the point below 10."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


def relative(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Returns how many times as fast one learner is as another, as text `median (lowest)`.

    ours, theirs: updates per second of the two learners in each round. The text has the median and
    the lowest ratio of all rounds.
    """
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}×)"


def conditions(found: Mapping[str, Any]) -> str:
    """Returns a text about how learner speed was measured: rounds, replay size, CPUs, versions.

    found: the result of `measure`.
    """
    packages = "".join(f", {package} {version}" for package, version in found["peers"].items())
    return (
        f"after a warm-up, {found['rounds']} rounds, in each of which every learner of the table "
        "is timed; times are "
        f"processor time of one thread; {found['capacity']:,} rows in the replay; "
        f"{found['cpus']} CPUs, "
        f"torch {found['torch']}, Python {found['python']}{packages}"
    )


if __name__ == "__main__":
    main()
