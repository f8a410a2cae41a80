"""The replay benchmark, `python launch.py bench replay`: our replay against other libraries.

Every row of its table is one measurement, repeated in several rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.formatting import markdown_table
from benchmarks.replay import comparisons
from benchmarks.replay.comparisons import ITSELF, Result, short
from benchmarks.replay.processes import check_reverb
from benchmarks.replay.workloads import QUICK, Scale
from benchmarks.timing import CopyBandwidth
from dreamfleet.core.errors import UserError, nearest
from dreamfleet.runtime.run_folder import versions

HEADS: Final = (
    "Measurement",
    "Compared with",
    "Target",
    "Median",
    "Worst round",
    "Ours",
    "Other library",
)
MEANING: Final = (
    "The table compares our replay with the replay buffers of other libraries. If the column "
    "`Compared with` names a library, the figures say how many times as fast our replay is as that "
    "library: the median over rounds, and the worst round. If the column says `itself`, the "
    "figures are measured on our replay alone. `Target` is the goal that was set."
)


def bench(
    names: Sequence[str],
    rounds: int,
    quick: bool = False,
    reverb_python: Path | None = None,
    keep: Path | None = None,
) -> int:
    """Measures rows of the replay benchmark, prints their table and returns exit code 0.

    names: the rows to measure; if empty, all rows. quick: use tiny sizes, and leave out rows that
    start Ray unless `names` has them. reverb_python: path of a Python interpreter that has Reverb,
    or None. keep: file for the results as JSON.
    """
    check(names, rounds, reverb_python, keep)
    rows = comparisons.rows(reverb_python)
    names, left_out = selected(names, quick)
    scale = QUICK if quick else Scale()
    copying = CopyBandwidth(scale.copy_bytes)
    copies, results = [], []
    for name in names:
        row, began = rows[name], time.monotonic()
        result = Result(name, row.what, row.against, row.must, row.unit)
        progress(f"{name}:")
        for text in row.measure(result, scale, rounds):
            copies.append(copying.measure())
            progress(f" {text}")
        progress(f" ({time.monotonic() - began:.0f} s)\n")
        results.append(vars(result))
    found = {
        "quick": quick,
        "rounds": rounds,
        **environment(),
        "copy_gb_s": copies,
        "rows": results,
    }
    if keep:
        keep.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)
    if left_out:
        print(f"left out by --quick: {', '.join(left_out)}, which start Ray; --rows includes them")
    return 0


def check(names: Sequence[str], rounds: int, reverb_python: Path | None, keep: Path | None) -> None:
    """Raises UserError if an argument of `bench` is invalid.

    Invalid are the name of an unknown row, less than one round, a file `keep` in a folder that does
    not exist, and an interpreter `reverb_python` without Reverb.
    """
    if rounds < 1:
        raise UserError(f"--rounds must be at least 1; found {rounds}.")
    if keep and not keep.absolute().parent.is_dir():
        raise UserError(f"--json {keep}: there is no folder {keep.parent}. Make it first.")
    rows = comparisons.rows()
    for name in names:
        if name not in rows:
            hint = nearest(name, rows) or f" There are: {', '.join(rows)}."
            raise UserError(f"--rows: unknown row {name!r}.{hint}")
    if reverb_python:
        check_reverb(reverb_python)


def selected(names: Sequence[str], quick: bool) -> tuple[list[str], list[str]]:
    """Returns two lists of rows of the replay benchmark: rows to measure, and rows left out.

    names: the rows that the user asked for; if empty, all rows. quick: leave out rows that start
    Ray, unless `names` has them.
    """
    rows = comparisons.rows()
    left_out = [name for name, row in rows.items() if row.apart] if quick and not names else []
    return [name for name in names or rows if name not in left_out], left_out


def environment() -> dict[str, Any]:
    """Returns the number of CPUs, the platform, and the versions of our code and the libraries."""
    ours = versions()
    found = {name: ours[name] for name in ("git", "platform", "python", "numpy", "ray")}
    for package in ("cpprb", "stable-baselines3"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {"cpus": os.cpu_count(), **found}


def progress(text: str) -> None:
    """Prints a progress message to stderr, without a line break."""
    print(text, end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- the table


def cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the table cells of one row of the replay benchmark, in the order of HEADS.

    result: the measurement of the row, from the JSON record of the benchmark.
    """
    alone = result["against"] == ITSELF
    unit, sign, worst = (f" {result['unit']}", "≤", max) if alone else ("×", "≥", min)
    measured = result["measured"]
    figures = (
        f"{function(measured):.2f}{unit}" if measured else "–"
        for function in (statistics.median, worst)
    )
    rates = (
        f"{short(statistics.median(result[key]))} {result['unit']}/s" if result[key] else "–"
        for key in ("ours", "theirs")
    )
    return (
        description(result),
        result["against"],
        f"{sign} {result['must']:g}{unit}",
        *figures,
        *rates,
    )


def description(result: Mapping[str, Any]) -> str:
    """Returns the description of a row of the replay benchmark, with its remark in brackets.

    result: the measurement of the row, from the JSON record of the benchmark.
    """
    row = comparisons.rows().get(result.get("name", ""))
    remark = result.get("remark")
    return (row.what if row else result["what"]) + (f" ({remark})" if remark else "")


def conditions(found: Mapping[str, Any]) -> str:
    """Returns a text about how the replay was measured: rounds, memory bandwidth, CPUs, versions.

    found: the JSON record of the benchmark.
    """
    tiny = "tiny sizes, not those of the table: no measurement; " if found["quick"] else ""
    return (
        f"{tiny}memory bandwidth of np.copyto {statistics.median(found['copy_gb_s']):.1f} GB/s; "
        f"after a warm-up, {found['rounds']} rounds in which the libraries take turns; "
        f"{found['cpus']} CPUs, Python {found['python']}, numpy {found['numpy']}"
    )


def show(found: Mapping[str, Any]) -> None:
    """Prints the table of the replay benchmark, and which libraries were not measured.

    found: the JSON record of the benchmark. The table is drawn with lines on a terminal, and
    printed as Markdown elsewhere.
    """
    rows = [cells(result) for result in found["rows"]]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*HEADS, caption=conditions(found))
        for row in rows:
            drawn.add_row(*row)
        Console(highlight=False).print(drawn)
    else:
        print(f"{markdown_table(HEADS, rows)}\n\n{conditions(found)}")
    for reason in dict.fromkeys(row["skipped"] for row in found["rows"] if row["skipped"]):
        print(f"skipped: {reason}")
