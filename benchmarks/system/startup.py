"""Measures how fast `launch.py` answers, and how soon 16 actors reach the first gradient step.

    python benchmarks/system/startup.py

The script fails if Ctrl-C leaves a process of the run alive. Use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.checkouts.launch import machine, made_by
from benchmarks.formatting import markdown_table
from benchmarks.processes import RESULTS, ROOT, LaunchedRun, new_run_folder

REPETITIONS = 5
TIMEOUT_S = 180.0  # for the first gradient step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--num-actors", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    args = parser.parse_args()
    figures = {
        "help_s": response_time(["--help"], code=0),
        "mistyped_flag_s": response_time(["--num-actor", "16"], code=2),
        "first_words_s": time_to_first_words(args.num_actors),
        "actors": args.num_actors,
        **first_gradient_step(args.num_actors),
        **machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


def response_time(args: list[str], code: int) -> float:
    """Runs `launch.py` with `args` REPETITIONS times, and returns the median wall time in seconds.

    code: the expected exit code. Raises SystemExit if a run ends with another exit code.
    """
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "launch.py", *args], cwd=ROOT, capture_output=True)
        seconds.append(time.perf_counter() - began)
        if done.returncode != code:
            raise SystemExit(f"launch.py {' '.join(args)} ended with {done.returncode}, not {code}")
    return round(statistics.median(seconds), 2)


def time_to_first_words(actors: int) -> float:
    """Returns the median seconds from the start of a run on Ray to its first output on stderr.

    Raises SystemExit if a run ends with an exit code other than 130.
    """
    seconds = []
    for _ in range(REPETITIONS):
        run = new_run_folder("startup")
        args = ["launch.py", "--num-actors", str(actors), "--run-dir", str(run)]
        began = time.perf_counter()
        launched = subprocess.Popen([sys.executable, *args], cwd=ROOT, stderr=subprocess.PIPE)
        assert launched.stderr is not None
        launched.stderr.read(1)
        seconds.append(time.perf_counter() - began)
        launched.send_signal(signal.SIGINT)
        launched.communicate()
        if launched.returncode != 130:
            raise SystemExit(f"after Ctrl-C: exit code {launched.returncode}, not 130")
    return round(statistics.median(seconds), 2)


def first_gradient_step(actors: int) -> dict[str, Any]:
    """Starts a run on Ray, waits for its first gradient step and stops it with Ctrl-C.

    Returns the seconds until the first gradient step, the seconds from Ctrl-C to the end of the
    command, and the commit and versions. Raises SystemExit if the exit code is not 130, or if a
    process stays alive.
    """
    run = new_run_folder("startup")
    launched = LaunchedRun(
        ["--num-actors", str(actors), "--run-dir", str(run)], (ROOT / run).with_suffix(".log")
    )
    seconds = launched.wait_for_gradient_step(ROOT / run, TIMEOUT_S)
    began = time.monotonic()
    code = launched.interrupt()
    stopping = time.monotonic() - began
    left = launched.leftover()
    if code != 130 or left:
        raise SystemExit(f"after Ctrl-C: exit code {code}, processes still alive: {left}")
    return {
        "first_gradient_step_s": round(seconds, 1),
        "ctrl_c_s": round(stopping, 1),
        "made_by": made_by(ROOT / run),
    }


def table(figures: dict[str, Any]) -> str:
    """Returns a Markdown table of start-up times.

    figures: the measured times in seconds, by name, and the number of actors.
    """
    rows = [
        ("`launch.py --help`, median of 5", figures["help_s"]),
        ("error message for a mistyped flag, median of 5", figures["mistyped_flag_s"]),
        (
            f"first output of a run with {figures['actors']} actors on Ray, median of 5",
            figures["first_words_s"],
        ),
        (f"first gradient step with {figures['actors']} actors", figures["first_gradient_step_s"]),
        ("Ctrl-C until the command has ended", figures["ctrl_c_s"]),
    ]
    return markdown_table(("Measurement", "Seconds"), [(what, str(value)) for what, value in rows])


if __name__ == "__main__":
    main()
