"""What `make train` does, from the command to its end: 16 actors on Ray learn CartPole.

    python benchmarks/system/distributed.py --seeds 3

Wants a machine that does nothing else. Each run is then scored by `launch.py eval`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.learning.report import markdown, spread
from benchmarks.processes import ROOT, Launched, fresh, score

PATIENCE_S = 180.0  # with the first gradient step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, help="0, 1, … (default 1)")
    parser.add_argument("--num-actors", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/distributed.json")
    args = parser.parse_args()
    runs = [train(seed, args.num_actors) for seed in range(args.seeds)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"actors": args.num_actors, "cpus": os.cpu_count(), "runs": runs}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(runs))


def train(seed: int, actors: int) -> dict[str, Any]:
    """One run and its score."""
    run = fresh(f"distributed_s{seed}")
    args = ["--num-actors", str(actors), "--seed", str(seed), "--run-dir", str(run)]
    launched = Launched(args, (ROOT / run).with_suffix(".log"))
    first = launched.wait_for_gradient_step(ROOT / run, PATIENCE_S)
    wall = launched.finish()
    left = launched.left_behind()
    if left:
        raise SystemExit(f"{run} left behind: {left}")
    times = {"first_gradient_step_s": round(first, 1), "wall_s": round(wall, 1)}
    found = score(run, 100)
    kept = ("env", "env_steps", "return_mean", "return_std", "return_min", "episodes")
    return {"seed": seed, **times, **{name: found[name] for name in kept}}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row a seed, and one over them all."""
    rows = [
        (
            str(run["seed"]),
            f"{run['first_gradient_step_s']:.1f} s",
            f"{run['wall_s']:.0f} s",
            f"{run['env_steps']:,}",
            f"{run['return_mean']:.1f} ± {run['return_std']:.1f}",
        )
        for run in runs
    ]
    if len(runs) > 1:
        first, wall = ([run[name] for run in runs] for name in ("first_gradient_step_s", "wall_s"))
        means = spread([run["return_mean"] for run in runs], ".1f")
        rows.append(("all", f"{spread(first, '.1f')} s", f"{spread(wall)} s", "", means))
    heads = ("seed", "first gradient step", "wall time", "env steps", "greedy mean ± std of 100")
    return markdown(heads, rows)


if __name__ == "__main__":
    main()
