"""Trains an agent with several seeds, and reports how many environment steps learning takes.

    python benchmarks/learning/train.py --env CartPole-v1 --seeds 5 --steps 10000
    python benchmarks/learning/train.py --env NumberGame-v1 --agent gated-rainbow --steps 600000

Finished seeds are not trained again, and interrupted seeds are resumed. The records of the seeds, a
summary and a plot are written to `--out`.
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

from benchmarks.learning.curves import DEFAULT_AGENT, TASKS, read_curve, read_events, write_record
from benchmarks.learning.report import report
from benchmarks.processes import RESULTS, ROOT, RUNS, LaunchedRun, evaluate
from dreamfleet import agents
from dreamfleet.core import checkpoint
from dreamfleet.core.types import Event


@dataclass(frozen=True)
class Training:
    """Training settings that are the same for all seeds: agent, environment, steps, evaluations."""

    agent: str
    env: str
    steps: int
    eval_every: int  # environment steps between evaluations
    eval_episodes: int  # of each evaluation, and of the evaluation after training
    envs_per_actor: int | None = None  # None: the value of the preset
    num_actors: int | None = None  # on Ray; None: one actor in one thread, without Ray
    settings: tuple[str, ...] = ()  # KEY=VALUE

    def command(self, seed: int) -> list[str]:
        """Returns the arguments of `launch.py` that train one seed, without `--run-dir`."""
        args = [] if self.agent == DEFAULT_AGENT else ["--agent", self.agent]
        args += ["--env", self.env]
        if self.num_actors is None:
            args += ["--local", "--num-actors", "1"]
        else:
            args += ["--num-actors", str(self.num_actors)]
        if self.envs_per_actor is not None:
            args += ["--envs-per-actor", str(self.envs_per_actor)]
        args += ["--seed", str(seed), "--steps", str(self.steps)]
        evaluations = (
            f"train.eval_every={self.eval_every}",
            f"train.eval_episodes={self.eval_episodes}",
        )
        for setting in (*evaluations, *self.settings):
            args += ["--set", setting]
        return args


@dataclass(frozen=True)
class SeedRun:
    """The training run of one seed.

    training: settings that all seeds share. name: name of the method (an agent with its settings).
    record: the file for the results.
    """

    training: Training
    name: str
    seed: int
    run: Path  # run folder
    record: Path

    def finish(self) -> None:
        """Trains the seed to its last step, evaluates the final policy and writes the record.

        Nothing is done if the seed has already been trained and evaluated.
        """
        args = self.training.command(self.seed)
        if not train(args, self.run, self.training.steps) and self.evaluated():
            return
        found = evaluate(self.run, self.training.eval_episodes)
        figures = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        about = {
            "method": self.name,
            "agent": self.training.agent,
            "env": self.training.env,
            "seed": self.seed,
            **provenance(args, self.run),
        }
        events = read_events(self.run / "metrics.jsonl")
        write_record(about, events, self.record, {"kind": "final", **figures})

    def evaluated(self) -> bool:
        """Returns whether the record (file of the results) has an evaluation after training."""
        return self.record.is_file() and bool(read_curve(self.record).final)


def seed_runs(
    training: Training, name: str, count: int, out: Path, group: str = ""
) -> list[SeedRun]:
    """Returns the training runs of the seeds 0 to count - 1.

    name: name of the method (an agent with its settings). out: folder of the records. group: name
    of a subfolder for the run folders.
    """
    runs = RUNS / training.env / group / name
    return [
        SeedRun(training, name, seed, runs / f"seed-{seed}", out / name / f"seed-{seed}.jsonl")
        for seed in range(count)
    ]


def finish_all(runs: Sequence[SeedRun], at_once: int) -> None:
    """Trains, evaluates and records all runs, `at_once` of them in parallel.

    Each run uses one CPU core.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run.finish) for run in runs]
        try:
            for run, future in zip(runs, futures, strict=True):
                future.result()
                print(f"{run.name}, seed {run.seed}: {run.run.relative_to(ROOT)}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def train(args: Sequence[str], run: Path, steps: int) -> bool:
    """Trains the run in the folder `run` until `steps` environment steps.

    args: arguments of `launch.py`. Returns False if the run has already finished. Raises SystemExit
    if the run folder was made by a different command, or has no checkpoint.
    """
    newest, command_file = checkpoint.newest(run / "checkpoints"), run.with_suffix(".command")
    command = without_steps(args)
    if run.exists() and command_file.is_file() and (found := command_file.read_text()) != command:
        raise SystemExit(
            f"{run} was made by the command {found!r}, but the command now is {command!r}. "
            "Remove the folder to start again."
        )
    if newest is not None:
        if checkpoint.manifest(newest)["env_steps"] >= steps:
            return False
        args = ["--resume", str(run), "--steps", str(steps)]
    elif run.exists():
        raise SystemExit(f"{run} has no checkpoint to resume. Remove the folder to start again.")
    else:
        command_file.parent.mkdir(parents=True, exist_ok=True)
        command_file.write_text(command)
        args = [*args, "--run-dir", str(run)]
    LaunchedRun(args, run.with_suffix(".log")).finish()
    return True


def without_steps(args: Sequence[str]) -> str:
    """Returns the arguments `args` of a command as text, without `--steps N`.

    If two commands give the same text, one command may resume the run of the other.
    """
    at = args.index("--steps")
    return " ".join([*args[:at], *args[at + 2 :]])


def provenance(args: Sequence[str], run: Path) -> Event:
    """Returns how a run was made: command, git commit, versions, number of CPUs.

    args: the arguments of `launch.py` that made the run. run: the run folder.
    """
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
    """Returns the argument parser of a script that trains several seeds.

    seeds, steps, agent, env: default values of the options `--seeds`, `--steps`, `--agent` and
    `--env`. among: the agents that `--agent` accepts.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agent", choices=tuple(among), default=agent)
    parser.add_argument("--env", choices=TASKS, default=env)
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"number of seeds: 0, 1, … (default {seeds})"
    )
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"environment steps of a seed (default {steps})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at a time, a core each")
    parser.add_argument(
        "--num-actors", type=int, help="actors on Ray; default: one actor, without Ray"
    )
    parser.add_argument("--envs-per-actor", type=int, help="default: the value of the preset")
    parser.add_argument(
        "--eval-every", type=int, help="steps between evaluations; default: by environment"
    )
    parser.add_argument(
        "--eval-episodes", type=int, help="episodes of an evaluation; default: by environment"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ENV")
    return parser


def training(args: argparse.Namespace) -> Training:
    """Converts command-line arguments, as parsed by `parser`, to the settings of a training run."""
    task = TASKS[args.env]
    return Training(
        args.agent,
        args.env,
        args.steps,
        args.eval_every or task.eval_every,
        args.eval_episodes or task.eval_episodes,
        args.envs_per_actor,
        args.num_actors,
        tuple(args.set),
    )


def main() -> None:
    parsing = parser(__doc__, seeds=5, steps=10_000, agent=DEFAULT_AGENT, env="CartPole-v1")
    parsing.add_argument(
        "--name", help="name of the method, where settings differ from the preset; default: AGENT"
    )
    args = parsing.parse_args()
    out = args.out or RESULTS / args.env
    finish_all(seed_runs(training(args), args.name or args.agent, args.seeds, out), args.jobs)
    print(report(args.env, out))


if __name__ == "__main__":
    main()
