"""How many steps our agent needs: several seeds, each looked at every 500 steps.

    python benchmarks/learning.py --env CartPole-v1 --seeds 5 --steps 10000

Seeds that are done are not run again, and an interrupted one is resumed. Runs stay under
`runs/benchmarks/`; what is kept of them goes to `--out`, with a table and a plot (needs the extra
`bench`: matplotlib).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.curves import OURS, THRESHOLDS, keep, read_events
from benchmarks.processes import ROOT, RUNS, Launched
from benchmarks.report import report
from core import checkpoint
from core.types import Event


def main() -> None:
    args = parse()
    os.environ["OMP_NUM_THREADS"] = "1"
    out = args.out or ROOT / "benchmarks" / "results" / args.env
    commands = [command(args.env, seed, args.steps, args.set) for seed in range(args.seeds)]
    folders = [RUNS / args.env / args.name / f"seed-{seed}" for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(train, *of, args.steps) for of in zip(commands, folders, strict=True)]
        try:
            for seed, job in enumerate(jobs):
                job.result()
                made = {"method": args.name, "env": args.env, "seed": seed}
                made |= about(commands[seed], folders[seed])
                events = read_events(folders[seed] / "metrics.jsonl")
                keep(made, events, out / args.name / f"seed-{seed}.jsonl")
                print(f"seed {seed}: {folders[seed].relative_to(ROOT)}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    print(report(args.env, out))


def command(env: str, seed: int, steps: int, settings: Sequence[str]) -> list[str]:
    """The arguments of `launch.py` for one seed, all but its folder."""
    args = ["--env", env, "--local", "--num-actors", "1"]
    args += ["--seed", str(seed), "--steps", str(steps)]
    looks = ("train.eval_every=500", "train.eval_episodes=100")
    return args + [word for item in (*looks, *settings) for word in ("--set", item)]


def train(args: Sequence[str], run: Path, steps: int) -> None:
    """Bring one seed to its end, from wherever its folder says it is."""
    newest = checkpoint.newest(run / "checkpoints")
    if newest is not None:
        if checkpoint.manifest(newest)["env_steps"] >= steps:
            return
        args = ["--resume", str(run), "--steps", str(steps)]
    elif run.exists():
        raise SystemExit(f"{run} has no checkpoint to go on from; remove it to start again")
    else:
        args = [*args, "--run-dir", str(run)]
    Launched(args, run.with_suffix(".log")).finish()


def about(args: Sequence[str], run: Path) -> Event:
    """How a seed was made."""
    versions = json.loads((run / "versions.json").read_text())
    return {
        "command": " ".join(["python launch.py", *args]),
        **{name: versions[name] for name in ("git", "python", "torch")},
        "cpus": os.cpu_count(),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--env", choices=THRESHOLDS, default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, … (default 5)")
    parser.add_argument("--steps", type=int, default=10_000, help="of a seed (default 10000)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one core each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--name", default=OURS, help="of the curve, when settings make it another")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ENV")
    return parser.parse_args()


if __name__ == "__main__":
    main()
