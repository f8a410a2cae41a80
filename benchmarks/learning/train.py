"""How many steps an agent needs: several seeds, looked at as they learn and scored at the end.

    python benchmarks/learning/train.py --env CartPole-v1 --seeds 5 --steps 10000
    python benchmarks/learning/train.py --env NumberGame-v1 --agent gated-rainbow --steps 600000

Seeds that are done are not run again, and an interrupted one is resumed. Runs stay under
`runs/benchmarks/`; what is kept of them goes to `--out`, with a table and a plot (needs the extra
`bench`: matplotlib).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.learning.curves import DEFAULT_AGENT, TASKS, keep, read_curve, read_events
from benchmarks.learning.report import report
from benchmarks.processes import ROOT, RUNS, Launched, score
from dreamfleet import agents
from dreamfleet.core import checkpoint
from dreamfleet.core.types import Event


@dataclass(frozen=True)
class Training:
    """What all seeds of a curve have in common."""

    agent: str
    env: str
    steps: int
    every: int  # env steps between looks
    episodes: int  # of a look, and of the end
    envs_per_actor: int | None = None  # none: as the preset has it
    num_actors: int | None = None  # on Ray; none: one, with all else in one thread
    settings: tuple[str, ...] = ()

    def command(self, seed: int) -> list[str]:
        """The arguments of `launch.py` for one seed, all but its folder."""
        args = [] if self.agent == DEFAULT_AGENT else ["--agent", self.agent]
        args += ["--env", self.env]
        if self.num_actors is None:
            args += ["--local", "--num-actors", "1"]
        else:
            args += ["--num-actors", str(self.num_actors)]
        if self.envs_per_actor is not None:
            args += ["--envs-per-actor", str(self.envs_per_actor)]
        args += ["--seed", str(seed), "--steps", str(self.steps)]
        looks = (f"train.eval_every={self.every}", f"train.eval_episodes={self.episodes}")
        return args + [word for item in (*looks, *self.settings) for word in ("--set", item)]


@dataclass(frozen=True)
class Seed:
    """One seed of the curve `name`: where it runs, and what is kept of it."""

    training: Training
    name: str
    seed: int
    run: Path
    kept: Path

    def finish(self) -> None:
        """Bring it to its end from wherever it is, score it and keep that."""
        args = self.training.command(self.seed)
        if not train(args, self.run, self.training.steps) and self.scored():
            return
        found = score(self.run, self.training.episodes)
        figures = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        made = {"method": self.name, "agent": self.training.agent, "env": self.training.env}
        keep(
            {**made, "seed": self.seed, **about(args, self.run)},
            read_events(self.run / "metrics.jsonl"),
            self.kept,
            {"kind": "final", **figures},
        )

    def scored(self) -> bool:
        return self.kept.is_file() and bool(read_curve(self.kept).final)


def seeds(training: Training, name: str, count: int, out: Path, group: str = "") -> list[Seed]:
    """Seeds 0, 1, … of a curve, kept in `out`. `group`: a folder of runs, apart from others'."""
    runs = RUNS / training.env / group / name
    return [
        Seed(training, name, seed, runs / f"seed-{seed}", out / name / f"seed-{seed}.jsonl")
        for seed in range(count)
    ]


def finish(jobs: Sequence[Seed], at_once: int) -> None:
    """Bring all to their end, so many at a time, one core each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(job.finish) for job in jobs]
        try:
            for job, its in zip(jobs, running, strict=True):
                its.result()
                print(f"{job.name}, seed {job.seed}: {job.run.relative_to(ROOT)}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def train(args: Sequence[str], run: Path, steps: int) -> bool:
    """Bring one seed to its end, from wherever its folder says it is. False: it was there."""
    newest, said = checkpoint.newest(run / "checkpoints"), run.with_suffix(".command")
    asked = but_steps(args)
    if run.exists() and said.is_file() and (made := said.read_text()) != asked:
        raise SystemExit(
            f"{run} was made with {made!r}, and {asked!r} is asked for; remove it to start again"
        )
    if newest is not None:
        if checkpoint.manifest(newest)["env_steps"] >= steps:
            return False
        args = ["--resume", str(run), "--steps", str(steps)]
    elif run.exists():
        raise SystemExit(f"{run} has no checkpoint to go on from; remove it to start again")
    else:
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(asked)
        args = [*args, "--run-dir", str(run)]
    Launched(args, run.with_suffix(".log")).finish()
    return True


def but_steps(args: Sequence[str]) -> str:
    """All that must not change when a seed goes on."""
    at = args.index("--steps")
    return " ".join([*args[:at], *args[at + 2 :]])


def about(args: Sequence[str], run: Path) -> Event:
    """How a seed was made."""
    versions = json.loads((run / "versions.json").read_text())
    return {
        "command": " ".join(["python launch.py", *args]),
        **{name: versions[name] for name in ("git", "python", "torch")},
        "cpus": os.cpu_count(),
    }


def parser(
    description: str | None,
    seeds: int,
    steps: int,
    agent: str,
    env: str,
    among: Iterable[str] = agents.REGISTRY,
) -> argparse.ArgumentParser:
    """The arguments of a script that trains several seeds of an agent, with its defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agent", choices=tuple(among), default=agent)
    parser.add_argument("--env", choices=TASKS, default=env)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"0, 1, … (default {seeds})")
    parser.add_argument("--steps", type=int, default=steps, help=f"of a seed (default {steps})")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one core each")
    parser.add_argument("--num-actors", type=int, help="on Ray; default: one, without Ray")
    parser.add_argument("--envs-per-actor", type=int, help="default: as the preset has it")
    parser.add_argument("--eval-every", type=int, help="steps between looks; default: by env")
    parser.add_argument(
        "--eval-episodes", type=int, help="of a look and of the end; default: by env"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ENV")
    return parser


def training(args: argparse.Namespace) -> Training:
    """What `parser` was given."""
    task = TASKS[args.env]
    return Training(
        args.agent,
        args.env,
        args.steps,
        args.eval_every or task.every,
        args.eval_episodes or task.episodes,
        args.envs_per_actor,
        args.num_actors,
        tuple(args.set),
    )


def main() -> None:
    of = parser(__doc__, seeds=5, steps=10_000, agent=DEFAULT_AGENT, env="CartPole-v1")
    of.add_argument("--name", help="of the curve, when settings make it another; default: AGENT")
    args = of.parse_args()
    out = args.out or ROOT / "benchmarks" / "results" / args.env
    finish(seeds(training(args), args.name or args.agent, args.seeds, out), args.jobs)
    print(report(args.env, out))


if __name__ == "__main__":
    main()
