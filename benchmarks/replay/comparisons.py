"""Defines the rows of the replay benchmark.

A row compares the speed of our replay with that of another library, or a property of our replay
(such as memory growth) with an upper limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.replay import processes, workloads
from benchmarks.replay.alone import memory_growth, snapshot_stalls, sum_error
from benchmarks.replay.workloads import Scale
from benchmarks.timing import Workload, interleaved

Builder = Callable[[Scale], AbstractContextManager[Workload]]
ITSELF: Final = "itself"


@dataclass
class Result:
    """The measurement of one row of the replay benchmark. The JSON record has the same fields."""

    name: str
    what: str
    against: str  # the library compared with, or ITSELF
    must: float  # the target: lowest ratio, or highest figure
    unit: str
    measured: list[float] = field(default_factory=list)  # per round: ratio, or figure
    ours: list[float] = field(default_factory=list)  # items per second, per round
    theirs: list[float] = field(default_factory=list)  # the same of the other library
    peer: str = ""  # the other library with its setting
    skipped: str = ""  # why the other library was not measured
    remark: str = ""  # what differs from the description


@dataclass(frozen=True)
class Library:
    """A library whose replay buffer is compared with ours. package: the name to import."""

    name: str
    package: str
    install: str


CPPRB: Final = Library("cpprb 11", "cpprb", "pip install cpprb")
SB3: Final = Library("SB3 2.9", "stable_baselines3", "pip install stable-baselines3")
NUMPY: Final = Library("bare numpy gather", "numpy", "pip install numpy")
REVERB: Final = Library(
    "Reverb 0.14",
    "reverb",
    "pip install dm-reverb==0.14.0 tensorflow-cpu~=2.15.0 in a separate Python 3.11, and give its "
    "path: --reverb-python PATH",
)


@dataclass(frozen=True)
class Comparison:
    """A row of the replay benchmark: the speed of our replay divided by that of another library."""

    what: str
    library: Library
    must: float  # lowest ratio
    unit: str  # of the items that are counted
    ours: Builder
    theirs: Sequence[Builder]  # settings of the library; empty: not installed
    apart: bool = False  # whether the workloads start processes

    @property
    def against(self) -> str:
        return self.library.name

    def measure(self, result: Result, scale: Scale, rounds: int) -> Iterator[str]:
        """Measures the rates of our replay and of the other library in every round.

        Adds the rates and their ratio to `result`, and yields a progress text per round. Of several
        settings, only the fastest is measured. scale: sizes and durations.
        """
        seconds = scale.seconds_apart if self.apart else scale.seconds
        with ExitStack() as stack:
            measured = [stack.enter_context(self.ours(scale))]
            if measured[0].name != "ours":
                result.remark = measured[0].name
            if self.theirs:
                settings = [stack.enter_context(build(scale)) for build in self.theirs]
                measured.append(fastest(settings, seconds))
                result.peer = measured[1].name
            else:
                result.skipped = f"{self.library.name} is not installed: {self.library.install}"
            for ours, *theirs in interleaved(measured, rounds, seconds):
                result.ours.append(ours)
                result.theirs += theirs
                result.measured += [ours / rate for rate in theirs]
                yield f"{ours / theirs[0]:.2f}" if theirs else short(ours)


def fastest(settings: list[Workload], seconds: float) -> Workload:
    """Returns the workload with the highest rate over two short rounds.

    settings: workloads of one library, one per setting of the library. seconds: measuring time of
    each workload.
    """
    if len(settings) == 1:
        return settings[0]
    first, second = interleaved(settings, 2, seconds / 2)
    totals = [a + b for a, b in zip(first, second, strict=True)]
    return settings[totals.index(max(totals))]


def short(rate: float) -> str:
    """Returns a rate as text with three digits, such as 1.23M or 45.6k."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{name}"
    return f"{rate:.3g}"


@dataclass(frozen=True)
class Limit:
    """A row of the replay benchmark: one property of our replay, compared with an upper limit.

    An example is the growth of memory.
    """

    what: str
    must: float  # highest figure
    unit: str
    figures: Callable[[Scale], Iterator[float]]  # yields a figure per round
    rounds: int | None = None  # where the number of rounds is fixed
    against: ClassVar[str] = ITSELF
    apart: ClassVar[bool] = False

    def measure(self, result: Result, scale: Scale, rounds: int) -> Iterator[str]:
        """Measures the property of our replay, such as memory growth, in every round.

        Adds the values to `result`, and yields a progress text per round. scale: sizes and
        durations.
        """
        for figure in itertools.islice(self.figures(scale), self.rounds or rounds):
            result.measured.append(figure)
            yield f"{figure:.2f} {self.unit}"


# ---------------------------------------------------------------------------- the rows


def rows(reverb_python: Path | None = None) -> dict[str, Comparison | Limit]:
    """Returns all rows of the replay benchmark, by name.

    reverb_python: path of a Python interpreter that has Reverb. If it is None, Reverb is not
    measured.
    """
    cycle = (
        "prioritized cycle of 256 transitions: sample, gather, weights, new priorities; "
        "2²⁰ rows of 24 numbers"
    )
    add = "add chunks of 64 rows × 16 streams with priorities"
    found: dict[str, Comparison | Limit] = {
        "cycle": compare(cycle, CPPRB, 1.0, workloads.our_cycle, workloads.cpprb_cycle),
        "insert": compare(add, CPPRB, 0.5, workloads.our_adds, workloads.cpprb_adds),
    }
    for n in (1, 16):
        found[f"sb3-insert-{n}"] = compare(
            f"{add}; SB3 with n_envs={n}",
            SB3,
            10.0,
            workloads.our_adds,
            *layouts(partial(workloads.sb3_adds, environments=n)),
        )
    found |= {
        "sb3-cycle": compare(
            f"{cycle}; SB3: uniform",
            SB3,
            1.0,
            workloads.our_cycle,
            *layouts(workloads.sb3_samples),
        ),
        "sb3-uniform": compare(
            "uniform sample of 256 transitions; 2²⁰ rows of 24 numbers",
            SB3,
            1.0,
            workloads.our_uniform_samples,
            *layouts(workloads.sb3_samples),
        ),
        "atari": compare(
            "prioritized cycle of 512 Atari transitions: stacks of 4 frames, 3-step returns; "
            "SB3: uniform, 1-step",
            SB3,
            1.0,
            workloads.our_stacks,
            *layouts(workloads.sb3_stacks),
        ),
    }
    for size, (name, count) in enumerate((("10k", "10⁴"), ("100k", "10⁵"), ("1m", "10⁶"))):
        ours, theirs = (
            partial(build, size=size)
            for build in (workloads.our_sequences, workloads.numpy_sequences)
        )
        what = f"uniform sample of 16 sequences of 64 frames of 64×64×3; {count} rows"
        found[f"sequences-{name}"] = compare(what, NUMPY, 0.8, ours, theirs, unit="frames")
    return found | {
        "processes": across_processes(
            "across processes on Ray: add and sample as many transitions",
            3.0,
            "transitions",
            processes.transitions_on_ray,
            processes.transitions_on_reverb,
            reverb_python,
        ),
        "processes-pixels": across_processes(
            "across processes on Ray: sample 16 sequences of 64 frames of 64×64×3",
            1.0,
            "frames",
            processes.sequences_on_ray,
            processes.sequences_on_reverb,
            reverb_python,
        ),
        "sums": Limit(
            "relative error of the sum tree's root after 10⁸ updates of priorities",
            1.0,
            "· 10⁻¹²",
            lambda scale: iter([sum_error(scale.transitions, scale.updates)]),
            rounds=1,
        ),
        "memory": Limit(
            "growth of resident memory during 10⁷ inserts into a full replay",
            2.0,
            "%",
            lambda scale: iter([memory_growth(scale.transitions, scale.inserts)]),
            rounds=1,
        ),
        "snapshot": Limit(
            "longest call of the replay during a snapshot of 10⁶ rows of 24 numbers",
            250.0,
            "ms",
            lambda scale: snapshot_stalls(scale.snapshot),
        ),
    }


def compare(
    what: str,
    library: Library,
    must: float,
    ours: Builder,
    *theirs: Builder,
    unit: str = "transitions",
) -> Comparison:
    """Returns a row that compares our replay with another library inside one process.

    what: description of the row. must: the lowest ratio of our rate to the library's rate that
    meets the target. ours, theirs: functions that build the timed work; `theirs` has one per
    setting. unit: what the rate counts.
    """
    installed = find_spec(library.package) is not None
    return Comparison(what, library, must, unit, ours, theirs if installed else ())


def across_processes(
    what: str,
    must: float,
    unit: str,
    ours: Builder,
    theirs: Callable[..., AbstractContextManager[Workload]],
    python: Path | None,
) -> Comparison:
    """Returns a row that compares our replay on Ray with Reverb, across processes.

    what: description of the row. must: the lowest ratio of our rate to Reverb's rate that meets the
    target. unit: what the rate counts. ours, theirs: functions that build the timed work. python:
    path of an interpreter that has Reverb, or None.
    """
    builders = (partial(theirs, python=python),) if python else ()
    return Comparison(what, REVERB, must, unit, ours, builders, apart=True)


def layouts(build: Callable[..., AbstractContextManager[Workload]]) -> list[Builder]:
    """Returns workload builders for both layouts in which Stable-Baselines3 can store transitions.

    build: a function that builds a workload (work to be timed). Its parameter `compact` chooses the
    layout.
    """
    return [partial(build, compact=compact) for compact in (False, True)]
