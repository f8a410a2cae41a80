"""Measures the memory that one update of Barlow Dreamer takes, for each size.

    python benchmarks/system/agent_memory.py [--sizes nano 12M] [--batch 16] [--window 64]

Each size is measured in a process of its own: the largest memory of the process during an update
with dreams, minus its memory before the agent was built. Frames have 64 × 64 × 3 bytes, and there
are 18 actions. The figures are written to `--out`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.formatting import markdown_table
from benchmarks.processes import RESULTS
from benchmarks.updates import barlow_dreamer
from dreamfleet.agents.barlow_dreamer.config import SIZES
from dreamfleet.runtime.run_folder import versions

SHOWN: Final = ("nano", "micro", "1M", "12M", "25M")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SHOWN)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "agent-memory.json")
    parser.add_argument("--only", choices=SIZES, help=argparse.SUPPRESS)  # in the child process
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.batch, args.window)))
        return
    found: dict[str, Any] = {"batch": args.batch, "window": args.window, **versions(), "sizes": {}}
    for size in args.sizes:
        command = [sys.executable, __file__, "--only", size]
        command += ["--batch", str(args.batch), "--window", str(args.window)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found["sizes"][size] = json.loads(out)
        print(f"{size}: {found['sizes'][size]}", flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def measure(size: Any, batch: int, window: int) -> dict[str, int]:
    """Returns the number of parameters, and the bytes that one update takes at most."""
    config = replace(
        barlow_dreamer.BARLOW, size=size, batch=batch, window=window, capacity=batch * window
    )
    rows = barlow_dreamer.random_windows(config)
    before = peak()
    agent, update = barlow_dreamer.whole_updates(config, rows)
    update(1)
    nets = (agent.world, agent.behaviour)
    parameters = sum(each.numel() for net in nets for each in net.parameters())
    return {"parameters": parameters, "bytes": peak() - before}


def peak() -> int:
    """Returns the largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(found: dict[str, Any]) -> str:
    """Returns the Markdown table of the memory of each size."""
    rows = [
        (f"`{size}`", f"{each['parameters'] / 1e6:.2f} M", f"{each['bytes'] / 1e9:.1f} GB")
        for size, each in found["sizes"].items()
    ]
    return markdown_table(("Size", "Parameters", "Memory of one update"), rows)


if __name__ == "__main__":
    main()
