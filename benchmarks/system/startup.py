"""How soon something happens: help, a mistake, and the first gradient step of 16 actors.

    python benchmarks/system/startup.py

Wants a machine that does nothing else. The run it starts is stopped by Ctrl-C after its first
gradient step, and whatever it leaves behind is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.learning.report import markdown
from benchmarks.processes import ROOT, Launched, fresh

TIMES = 5
PATIENCE_S = 180.0  # with the first gradient step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--num-actors", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup.json")
    args = parser.parse_args()
    figures = {
        "help_s": answer(["--help"], code=0),
        "mistyped_flag_s": answer(["--num-actor", "16"], code=2),
        "actors": args.num_actors,
        **first_gradient_step(args.num_actors),
        "cpus": os.cpu_count(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


def answer(args: list[str], code: int) -> float:
    """The median of TIMES wall times of a command that ends at once with `code`."""
    spent = []
    for _ in range(TIMES):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "launch.py", *args], cwd=ROOT, capture_output=True)
        spent.append(time.perf_counter() - began)
        if done.returncode != code:
            raise SystemExit(f"launch.py {' '.join(args)} ended with {done.returncode}, not {code}")
    return round(statistics.median(spent), 2)


def first_gradient_step(actors: int) -> dict[str, float | int]:
    """Start a run, wait for its first gradient step, stop it, look around."""
    run = fresh("startup")
    launched = Launched(
        ["--num-actors", str(actors), "--run-dir", str(run)], (ROOT / run).with_suffix(".log")
    )
    seconds = launched.wait_for_gradient_step(ROOT / run, PATIENCE_S)
    began = time.monotonic()
    code = launched.interrupt()
    stopping = time.monotonic() - began
    left = launched.left_behind()
    if code != 130 or left:
        raise SystemExit(f"Ctrl-C: exit code {code}, left behind: {left or 'nothing'}")
    return {"first_gradient_step_s": round(seconds, 1), "ctrl_c_s": round(stopping, 1)}


def table(figures: dict[str, float | int | None]) -> str:
    rows = [
        ("`launch.py --help`, median of 5", figures["help_s"]),
        ("a mistyped flag, median of 5", figures["mistyped_flag_s"]),
        (f"first gradient step, {figures['actors']} actors", figures["first_gradient_step_s"]),
        ("Ctrl-C to the end, nothing left behind", figures["ctrl_c_s"]),
    ]
    return markdown(("what", "seconds"), [(what, str(seconds)) for what, seconds in rows])


if __name__ == "__main__":
    main()
