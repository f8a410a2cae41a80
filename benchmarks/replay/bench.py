"""The replay against what a user would pick instead: `python launch.py bench replay`.

Every row of the table is measured in rounds, ours and the peer's in turns with both alive, so that
what else the machine does hits both alike.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.learning.report import markdown
from benchmarks.replay import processes, workloads
from benchmarks.replay.alone import memory_drift, snapshot_stalls, sum_drift
from benchmarks.replay.workloads import QUICK, Scale
from benchmarks.timing import CopyBandwidth, Side, interleaved
from dreamfleet.core.errors import UserError, nearest
from dreamfleet.runtime.run_folder import versions

Sides = Callable[[Scale], AbstractContextManager[Side]]
ITSELF: Final = "itself"


@dataclass
class Result:
    """What one row came to. `measured`: ratios against a peer, or figures of a promise."""

    name: str
    what: str
    against: str
    must: float
    unit: str
    measured: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)  # items a second
    theirs: list[float] = field(default_factory=list)
    peer: str = ""  # who ran, and how it was set
    skipped: str = ""  # why no peer ran


@dataclass(frozen=True)
class Peer:
    """A package to be compared with. `package`: what is imported of it."""

    name: str
    package: str
    install: str


CPPRB: Final = Peer("cpprb 11", "cpprb", "pip install cpprb")
SB3: Final = Peer("SB3 2.9", "stable_baselines3", "pip install stable-baselines3")
NUMPY: Final = Peer("bare numpy gather", "numpy", "pip install numpy")
REVERB: Final = Peer(
    "Reverb 0.14",
    "reverb",
    "pip install dm-reverb==0.14.0 tensorflow-cpu~=2.15.0, in a Python 3.11 of its own, and name "
    "that: --reverb-python PATH",
)


@dataclass(frozen=True)
class Race:
    """A row against a peer: the ratio of our rate to theirs, at least `must`."""

    what: str
    peer: Peer
    must: float
    unit: str  # of the items
    ours: Sides
    theirs: Sequence[Sides]  # settings of the peer, the fastest of which runs; none: not installed
    apart: bool = False  # in processes of their own

    @property
    def against(self) -> str:
        return self.peer.name

    def measure(self, result: Result, scale: Scale, rounds: int) -> Iterator[str]:
        """Fill in `result` → what to show of every round. Without its peer ours runs alone."""
        seconds = scale.seconds_apart if self.apart else scale.seconds
        with ExitStack() as stack:
            racing = [stack.enter_context(self.ours(scale))]
            if racing[0].name != "ours":  # it has something to say of itself
                result.what += f" ({racing[0].name})"
            if self.theirs:
                rivals = [stack.enter_context(build(scale)) for build in self.theirs]
                racing.append(fastest(rivals, seconds))
                result.peer = racing[1].name
            else:
                result.skipped = f"{self.peer.name} is not installed: {self.peer.install}"
            for ours, *theirs in interleaved(racing, rounds, seconds):
                result.ours.append(ours)
                result.theirs += theirs
                result.measured += [ours / rate for rate in theirs]
                yield f"{ours / theirs[0]:.2f}" if theirs else brief(ours)


def fastest(settings: list[Side], seconds: float) -> Side:
    """The one that is faster over two interleaved rounds."""
    if len(settings) == 1:
        return settings[0]
    first, second = interleaved(settings, 2, seconds / 2)
    totals = [a + b for a, b in zip(first, second, strict=True)]
    return settings[totals.index(max(totals))]


@dataclass(frozen=True)
class Promise:
    """A row against ourselves: a figure, at most `must`."""

    what: str
    must: float
    unit: str
    figures: Callable[[Scale], Iterator[float]]  # a round each, as many as one likes
    rounds: int | None = None  # where more of them would say no more
    against: ClassVar[str] = ITSELF

    def measure(self, result: Result, scale: Scale, rounds: int) -> Iterator[str]:
        for figure in itertools.islice(self.figures(scale), self.rounds or rounds):
            result.measured.append(figure)
            yield f"{figure:.2f} {self.unit}"


# ---------------------------------------------------------------------------- the table


def table(reverb_python: Path | None) -> dict[str, Race | Promise]:
    """All rows by the names that --rows takes."""
    cycle = "prioritized cycle: sample 256 + gather + weights + update, 2²⁰ rows, 24-dim"
    add = "insert of chunks of 64 rows × 16 streams, priorities included"
    atari = "Atari stack-4, n-step-3, batch 512 cycle"
    rows: dict[str, Race | Promise] = {
        "cycle": race(cycle, CPPRB, 1.0, workloads.our_cycle, workloads.cpprb_cycle),
        "insert": race(add, CPPRB, 0.5, workloads.our_adds, workloads.cpprb_adds),
        **{
            f"sb3-insert-{n}": race(
                f"{add}; SB3 with n_envs={n}",
                SB3,
                10.0,
                workloads.our_adds,
                *layouts(partial(workloads.sb3_adds, environments=n)),
            )
            for n in (1, 16)
        },
        "sb3-cycle": race(cycle, SB3, 1.0, workloads.our_cycle, *layouts(workloads.sb3_samples)),
        "sb3-uniform": race(
            "uniform: sample 256 + gather, 2²⁰ rows, 24-dim",
            SB3,
            1.0,
            workloads.our_uniform_samples,
            *layouts(workloads.sb3_samples),
        ),
        "atari": race(atari, SB3, 1.0, workloads.our_stacks, *layouts(workloads.sb3_stacks)),
    }
    for size, (name, count) in enumerate((("10k", "10⁴"), ("100k", "10⁵"), ("1m", "10⁶"))):
        what = f"sequences 16 × 64 of 64×64×3, {count} rows"
        ours, theirs = (
            partial(of, size=size) for of in (workloads.our_sequences, workloads.numpy_sequences)
        )
        rows[f"sequences-{name}"] = race(what, NUMPY, 0.8, ours, theirs, unit="frames")
    for name, what, must, unit, mine, reverbs in (
        (
            "processes",
            "across processes on Ray: transitions in + out at ratio 1",
            3.0,
            "transitions",
            processes.transitions_on_ray,
            processes.transitions_on_reverb,
        ),
        (
            "processes-pixels",
            "across processes on Ray: pixel sequences out",
            1.0,
            "frames",
            processes.sequences_on_ray,
            processes.sequences_on_reverb,
        ),
    ):
        rivals = (partial(reverbs, python=reverb_python),) if reverb_python else ()
        rows[name] = Race(what, REVERB, must, unit, mine, rivals, apart=True)
    return rows | {
        "sums": Promise(
            "sum tree after 10⁸ updates: how far its root is off the sum of its masses",
            1.0,
            "· 10⁻¹²",
            lambda scale: iter([sum_drift(scale.transitions, scale.updates)]),
            rounds=1,
        ),
        "memory": Promise(
            "resident memory over 10⁷ inserts into a full ring",
            2.0,
            "%",
            lambda scale: iter([memory_drift(scale.transitions, scale.inserts)]),
            rounds=1,
        ),
        "snapshot": Promise(
            "snapshot of 10⁶ low-dimensional rows while serving: longest stall",
            250.0,
            "ms",
            lambda scale: snapshot_stalls(scale.snapshot),
        ),
    }


def race(
    what: str, peer: Peer, must: float, ours: Sides, *theirs: Sides, unit: str = "transitions"
) -> Race:
    return Race(what, peer, must, unit, ours, theirs if find_spec(peer.package) else ())


def layouts(build: Callable[..., AbstractContextManager[Side]]) -> list[Sides]:
    """Both ways in which SB3 can store transitions."""
    return [partial(build, compact=compact) for compact in (False, True)]


# ---------------------------------------------------------------------------- measuring


def check(names: Sequence[str], rounds: int, reverb_python: Path | None, keep: Path | None) -> None:
    """Raise UserError for what `bench` could not do."""
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1; found {rounds}.")
    if keep and not keep.absolute().parent.is_dir():
        raise UserError(f"--json {keep}: there is no folder {keep.parent}. Make it first.")
    rows = table(None)
    for name in names:
        if name not in rows:
            hint = nearest(name, rows) or f" There are: {', '.join(rows)}."
            raise UserError(f"--rows: unknown row {name!r}.{hint}")
    if reverb_python:
        processes.check_reverb(reverb_python)


def bench(
    names: Sequence[str],
    rounds: int,
    quick: bool = False,
    reverb_python: Path | None = None,
    keep: Path | None = None,
) -> int:
    """Measure the rows of these names, or all, and print the table → exit code 0.

    quick: everything tiny, to see that it runs. keep: where the figures go as JSON.
    """
    check(names, rounds, reverb_python, keep)
    rows = table(reverb_python)
    scale, copying = QUICK if quick else Scale(), CopyBandwidth()
    copies, results = [], []
    for name in names or rows:
        of, began = rows[name], time.monotonic()
        result = Result(name, of.what, of.against, of.must, of.unit)
        tell(f"{name}:")
        for figure in of.measure(result, scale, rounds):
            copies.append(copying.measure())
            tell(f" {figure}")
        tell(f" ({time.monotonic() - began:.0f} s)\n")
        results.append(vars(result))
    found = {"quick": quick, "rounds": rounds, **about(), "copy_gb_s": copies, "rows": results}
    if keep:
        keep.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)
    return 0


def about() -> dict[str, Any]:
    """The machine, and the versions of ours and of the peers."""
    mine = versions()
    found = {name: mine[name] for name in ("git", "platform", "python", "numpy", "ray")}
    for peer in ("cpprb", "stable-baselines3"):
        try:
            found[peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            found[peer] = None
    return {"cpus": os.cpu_count(), **found}


def tell(text: str) -> None:
    """Progress."""
    print(text, end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- the figures

HEADS: Final = ("what", "against", "must", "median", "worst", "ours", "theirs")


def line(result: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table, by HEADS."""
    alone = result["against"] == ITSELF
    form, least, worst = (f" {result['unit']}", "≤", max) if alone else ("×", "≥", min)
    measured = result["measured"]
    figures = (
        f"{of(measured):.2f}{form}" if measured else "–" for of in (statistics.median, worst)
    )
    rates = (
        f"{brief(statistics.median(result[side]))} {result['unit']}/s" if result[side] else "–"
        for side in ("ours", "theirs")
    )
    return (
        result["what"],
        result["against"],
        f"{least} {result['must']:g}{form}",
        *figures,
        *rates,
    )


def brief(rate: float) -> str:
    """Three digits: 1.23M, 45.6k."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{name}"
    return f"{rate:.3g}"


def footing(found: Mapping[str, Any]) -> str:
    """How it was measured: the rounds, the yardstick, the machine."""
    tiny = "tiny sizes, no measurement; " if found["quick"] else ""
    return (
        f"{tiny}{found['rounds']} interleaved rounds after a warm-up; "
        f"np.copyto {statistics.median(found['copy_gb_s']):.1f} GB/s, "
        f"{found['cpus']} CPUs, Python {found['python']}, numpy {found['numpy']}"
    )


def show(found: Mapping[str, Any]) -> None:
    """The table on stdout: drawn on a terminal, Markdown elsewhere."""
    rows = [line(result) for result in found["rows"]]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*HEADS, caption=footing(found))
        for row in rows:
            drawn.add_row(*row)
        Console(highlight=False).print(drawn)
    else:
        print(f"{markdown(HEADS, rows)}\n\n{footing(found)}")
    for why in dict.fromkeys(row["skipped"] for row in found["rows"] if row["skipped"]):
        print(f"skipped: {why}")
