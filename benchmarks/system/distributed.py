"""Times whole training runs on Ray: 16 actors learn CartPole-v1, as with `make train`.

    python benchmarks/system/distributed.py --seeds 3

After training, `launch.py eval` evaluates each run. Use a machine that does nothing else.
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

from benchmarks.formatting import markdown_table, median_and_range
from benchmarks.processes import RESULTS, ROOT, LaunchedRun, evaluate, new_run_folder

TIMEOUT_S = 180.0  # for the first gradient step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds: 0, 1, … (default 1)")
    parser.add_argument("--num-actors", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "distributed.json")
    args = parser.parse_args()
    runs = [train(seed, args.num_actors) for seed in range(args.seeds)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"actors": args.num_actors, "cpus": os.cpu_count(), "runs": runs}
    args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(runs))


def train(seed: int, actors: int) -> dict[str, Any]:
    """Trains CartPole-v1 on Ray with one seed, evaluates the policy and returns the results.

    The results are the time until the first gradient step, the time of the whole run, and the mean
    return of 100 episodes. Raises SystemExit if a process of the run stays alive.
    """
    run = new_run_folder(f"distributed_s{seed}")
    args = ["--num-actors", str(actors), "--seed", str(seed), "--run-dir", str(run)]
    launched = LaunchedRun(args, (ROOT / run).with_suffix(".log"))
    first = launched.wait_for_gradient_step(ROOT / run, TIMEOUT_S)
    wall = launched.finish()
    left = launched.leftover()
    if left:
        raise SystemExit(f"{run} has ended, but these processes are alive: {left}")
    times = {"first_gradient_step_s": round(first, 1), "wall_s": round(wall, 1)}
    found = evaluate(run, 100)
    names = ("env", "env_steps", "return_mean", "return_std", "return_min", "episodes")
    return {"seed": seed, **times, **{name: found[name] for name in names}}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table of training runs on Ray, with one row per seed.

    runs: results of `train`, one per seed. If there are several seeds, a last row shows the median
    (min to max) over seeds.
    """
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
        means = median_and_range([run["return_mean"] for run in runs], ".1f")
        rows.append(
            ("all", f"{median_and_range(first, '.1f')} s", f"{median_and_range(wall)} s", "", means)
        )
    heads = (
        "Seed",
        "First gradient step",
        "Wall time",
        "Environment steps",
        "Return: mean ± standard deviation of 100 greedy episodes",
    )
    return markdown_table(heads, rows)


if __name__ == "__main__":
    main()
