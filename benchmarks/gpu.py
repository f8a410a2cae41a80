"""Measures on a GPU, with one command, all that the project claims about GPUs; can be interrupted.

    python benchmarks/gpu.py [--rows ROW …] [--peer "python bench_r2dreamer.py --src FOLDER"]
    python benchmarks/gpu.py --device cpu --tiny --out FOLDER       a rehearsal without a GPU

The rows are measured in this order, the most valuable first. Each row is printed, and written to
`gpu-ROW.json` in the folder `--out`, as soon as it is measured. Rows that have such a file are
skipped.

    barlow-dreamer   the settings of the preset Atari-100k with 18 actions and batches of 16 x 64:
                     milliseconds of acting in one environment, update of the world model, dream,
                     update of the policy, and all of these but acting together, captured and eager;
                     kernels and their work. The same with compiled steps, with the objective
                     `reconstruction`, and with size 25M. Beside it the lines that the command
                     `--peer` prints (r2dreamer on the same card)
    AGENT            the same for each other agent, with its default settings
    tests            the contract tests and the tests marked `cuda`
    breakout, space-invaders, pong
                     a run of Atari-100k for at most 10 minutes, then 100 greedy episodes. A run
                     that is not finished in time is continued by the next call.

Captured: the method is replayed from a CUDA graph, as in every run on a GPU. Eager: Python starts
each operation. On a CPU there are no kernels to count; `operations` are those of PyTorch that would
launch a kernel or more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.processes import RESULTS, ROOT, RUNS, evaluate
from dreamfleet import agents
from dreamfleet.agents.blocks.captured import WARM_UP_CALLS, captured_methods
from dreamfleet.core.config import apply
from dreamfleet.core.types import EnvSpec, Sample, Space
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime import presets
from dreamfleet.runtime.run_folder import versions
from dreamfleet.runtime.trial import STREAMS, Synthetic, rollout

BARLOW: Final = "barlow-dreamer"
FRAMES: Final = (64, 64, 3)  # of the preset Atari-100k
OBSERVATIONS: Final = {  # of the other agents
    "vector": Space((24,), "float32"),
    "image": Space((84, 84, 1), "uint8"),
}
ACTIONS: Final = {"discrete": Space((), "int64", n=18), "continuous": Space((4,), "float32")}
ROWS_PER_STREAM: Final = 256  # rows of each synthetic environment
GAMES: Final = {
    "breakout": "ALE/Breakout-v5",
    "space-invaders": "ALE/SpaceInvaders-v5",
    "pong": "ALE/Pong-v5",
}
PRESET: Final = "Atari-100k"
REHEARSED: Final = {
    "size": "1M",
    "batch": 2,
    "window": 8,
    "warmup": 100,
    "capacity": 4096,
}  # in place of PRESET's
# No kernel is launched by these operations, nor by views.
NO_KERNEL: Final = re.compile(r"aten::(new_)?empty.*|aten::(detach|_unsafe_view|lift_fresh)")
GAME_STEPS: Final = 100_000  # agent steps, 400,000 frames
LAST_STEPS: Final = 2_500  # agent steps whose training returns count: the last 10,000 frames
GAME_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Options:
    """The options of one call of this script."""

    device: str
    tiny: bool
    out: Path
    peer: str  # a command; "": none
    settings: Mapping[str, Any]  # of the agent `barlow-dreamer`
    game_flags: tuple[str, ...]  # of `launch.py`, for runs of Atari games


def main() -> None:
    names = [BARLOW, *(name for name in agents.REGISTRY if name != BARLOW), "tests", *GAMES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="few repetitions: a rehearsal")
    parser.add_argument("--peer", default="", help="a command that measures r2dreamer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help=f"settings of {BARLOW}, such as its size; values are JSON or text",
    )
    parser.add_argument(
        "--game-flags",
        default=f"--agent {BARLOW} --preset {PRESET}",
        help="flags of launch.py for the runs of Atari games (default: %(default)s)",
    )
    args = parser.parse_args()
    settings = dict(map(setting, args.set))
    flags = tuple(shlex.split(args.game_flags))
    options = Options(args.device, args.tiny, args.out, args.peer, settings, flags)
    if args.device == "cpu":
        torch.set_num_threads(1)
    run(args.rows, options)


def setting(text: str) -> tuple[str, Any]:
    """Returns name and value of a setting `KEY=VALUE`; the value is JSON, or else text."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def run(rows: Iterable[str], options: Options) -> None:
    """Measures the rows that have no file yet; prints each and writes it to its file.

    A row that fails is printed and has no file, so the next call tries it again.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = options.out / f"gpu-{row}.json"
        if path.is_file():
            print(f"{row}: measured before, in {path}", flush=True)
            continue
        began = time.monotonic()
        try:
            found = measurement(row)(options)
        except Exception as error:  # of any kind: the other rows must still be measured
            print(f"{row}: failed: {type(error).__name__}: {error}", flush=True)
            continue
        found = {"row": row, **machine(options.device), **found}
        found["measured_in_s"] = round(time.monotonic() - began, 1)
        print(json.dumps(found), flush=True)
        if found.get("finished", True):
            path.write_text(json.dumps(found, indent=1) + "\n")


def measurement(row: str) -> Callable[[Options], dict[str, Any]]:
    """Returns the function that measures a row."""
    if row in GAMES:
        return partial(game, row)
    return tests if row == "tests" else partial(updates, row)


def machine(device: str) -> dict[str, Any]:
    """Returns a description of the machine: its device and versions of packages."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "cpus": os.cpu_count(), "versions": versions()}


# ---------------------------------------------------------------------------------- updates


def updates(name: str, options: Options) -> dict[str, Any]:
    """Measures acting, updates and dreams of an agent in each of its cases."""
    found: dict[str, Any] = {}
    for case, (spec, settings) in cases(name, options).items():
        print(f"{name}, {case} …", flush=True)
        found[case] = update_times(name, spec, settings, options)
    if name == BARLOW and options.peer:
        found["peer"] = peer(options.peer)
    return {"cases": found}


def cases(name: str, options: Options) -> dict[str, tuple[EnvSpec, dict[str, Any]]]:
    """Returns the cases to measure, by name: the spaces of an environment, and the settings.

    Barlow Dreamer is measured on frames with the settings of the preset Atari-100k, and with single
    settings changed. The other agents have a case for each kind of observations (vectors, images)
    and actions (discrete, continuous) that they support.
    """
    if name == BARLOW:
        preset = presets.find(BARLOW, "", PRESET).items()
        settings = {key.removeprefix("agent."): each for key, each in preset if "agent." in key}
        settings |= (REHEARSED if options.tiny else {}) | dict(options.settings)
        changes: dict[str, dict[str, Any]] = {
            "preset": {},
            "compiled": {"compile": True},
            "reconstruction": {"objective": "reconstruction"},
            "25M": {"size": "25M"},
        }
        if options.tiny:
            del changes["compiled"], changes["25M"]  # minutes on a CPU
        spec = EnvSpec("Synthetic-v0", Space(FRAMES, "uint8"), ACTIONS["discrete"])
        return {case: (spec, settings | change) for case, change in changes.items()}
    entry = agents.find(name)
    return {
        f"{observation}-{action}": (EnvSpec("Synthetic-v0", space, ACTIONS[action]), {})
        for observation, space in OBSERVATIONS.items()
        for action in ACTIONS
        if observation in entry.observations and action in entry.actions
    }


def update_times(
    name: str, spec: EnvSpec, settings: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    """Measures acting, updates and dreams of a new agent, captured and eager.

    Returns for each part (see `parts`) and each way a dict of measurements.
    """
    agent_class = agents.load(name)
    config = apply(agent_class.Config(), settings)
    ways = {"captured": False, "eager": True} if options.device == "cuda" else {"eager": True}
    found: dict[str, Any] = {}
    for way, eager in ways.items():
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        agent = agent_class(config, spec, 0, options.device)
        if eager:
            never_capture(agent)
        for part, update in parts(agent).items():
            found.setdefault(part, {})[way] = time_of(update, options)
        if options.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            found.setdefault("peak_mib", {})[way] = round(peak)
    return found


def never_capture(agent: Any) -> None:
    """Lets an agent call its captured methods as they are."""
    for name in captured_methods(agent):
        setattr(agent, name, partial(getattr(type(agent), name).__wrapped__, agent))


def parts(agent: Any) -> dict[str, Callable[[], Any]]:
    """Returns functions that let an agent act, learn and dream, always from the same samples.

    act: one step with exploration in one environment. world, dream, policy: `learn_world`, `dream`
    and `learn_policy`, if the agent has them. together: all of these but acting.
    """
    rows = Synthetic(agent.spec, 1).rows()
    found: dict[str, Callable[[], Any]] = {
        "act": partial(agent.act, rows, agent.initial_state(1), explore=True)
    }
    samples = {name: sample(agent, name) for name in ("world", "start", "policy")}
    world, starts, real = (samples[name] for name in ("world", "start", "policy"))
    if world is not None:
        found["world"] = partial(agent.learn_world, world)
        agent.learn_world(world)
    dreams = None if starts is None else agent.dream(starts)
    if starts is not None:
        found["dream"] = partial(agent.dream, starts)
    found["policy"] = partial(agent.learn_policy, real, dreams)

    def together() -> None:
        if world is not None:
            agent.learn_world(world)
        agent.learn_policy(real, None if starts is None else agent.dream(starts))

    return {**found, "together": together}


def sample(agent: Any, consumer: str) -> Sample | None:
    """Returns a batch of synthetic rows for one consumer (use) of the agent's real rows."""
    table = agent.tables["real"]
    if consumer not in table.consumers:
        return None
    unlimited = {
        name: replace(each, samples_per_step=None, min_steps=1)
        for name, each in table.consumers.items()
    }
    replay = ReplayServer({"real": replace(table, consumers=unlimited)}, seed=0)
    rows = rollout(agent, Synthetic(agent.spec, STREAMS), ROWS_PER_STREAM)
    assert replay.add("real", rows, np.arange(STREAMS))
    found = replay.sample("real", consumer)
    assert isinstance(found, Sample)
    return found


def time_of(update: Callable[[], Any], options: Options) -> dict[str, Any]:
    """Measures one update or dream after a warm-up, which includes the capture.

    Returns `ms`, the median time until the device has finished; `ms_in_a_row`, the time per update
    if nothing waits for the device in between; and on a GPU the number of `kernels`, their summed
    time `work_ms`, and `gaps_ms`, the time between them.
    """
    repetitions = 2 if options.tiny else 30
    for _ in range(WARM_UP_CALLS + 2):
        update()
    times = []
    for _ in range(repetitions):
        wait(options.device)
        began = time.perf_counter()
        update()
        wait(options.device)
        times.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    for _ in range(repetitions):
        update()
    wait(options.device)
    in_a_row = 1e3 * (time.perf_counter() - began) / repetitions
    found = {"ms": round(statistics.median(times), 3), "ms_in_a_row": round(in_a_row, 3)}
    if options.device == "cuda":
        return found | kernels(update)
    with Operations() as operations:
        update()
    return found | {"operations": operations.count}


class Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that would launch a kernel or more on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aliases = [each.alias_info for each in operation._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not view and NO_KERNEL.fullmatch(operation._schema.name) is None
        return operation(*args, **(kwargs or {}))


def wait(device: str) -> None:
    """Waits until the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def kernels(update: Callable[[], Any]) -> dict[str, Any]:
    """Returns the number of kernels and copies of one update on a GPU, their time and the gaps."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        update()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    if not events:
        return {}
    ranges = [event.time_range for event in events]
    work = sum(each.end - each.start for each in ranges) / 1e3  # µs → ms
    span = (max(each.end for each in ranges) - min(each.start for each in ranges)) / 1e3
    gaps = max(span - work, 0.0)
    return {"kernels": len(events), "work_ms": round(work, 3), "gaps_ms": round(gaps, 3)}


def peer(command: str) -> list[Any]:
    """Runs a command that measures r2dreamer, and returns the JSON lines that it prints."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print("\n".join(lines) or done.stderr[-2000:], flush=True)
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------ tests


def tests(options: Options) -> dict[str, Any]:
    """Runs the contract tests on the device, and the tests marked `cuda`; returns the last lines.

    In a rehearsal only the tests are listed.
    """
    picked = ["-k", "cuda"] if options.device == "cuda" else ["-k", "dreamwalker"]
    collect = ["--collect-only"] if options.tiny else []
    calls = {
        "contracts": ["dreamfleet/contracts.py", *picked],
        "marked": ["tests/agents", "-m", "cuda"],
    }
    found = {}
    for name, words in calls.items():
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, *collect]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        found[name] = {"exit_code": done.returncode, "end": done.stdout.splitlines()[-12:]}
    return found


# ------------------------------------------------------------------------------------ games


def game(name: str, options: Options) -> dict[str, Any]:
    """Trains on an Atari game for at most `GAME_SECONDS`, from where an earlier call stopped.

    Returns both scores of the final checkpoint: the mean return of training episodes that ended in
    the last 10,000 frames, and of 100 greedy episodes.
    """
    path = RUNS / f"gpu-{name}" if options.out == RESULTS else options.out / f"run-{name}"
    steps = 200 if options.tiny else GAME_STEPS
    words = ["--env", GAMES[name], *options.game_flags, "--steps", str(steps), "--local"]
    words += ["--device", options.device, "--run-dir", str(path)]
    if options.tiny:
        settings = {"train.eval_every": 0, **{f"agent.{key}": x for key, x in REHEARSED.items()}}
        words += [word for key in settings for word in ("--set", f"{key}={settings[key]}")]
    if path.exists():
        words = ["--resume", str(path)]
    process = subprocess.Popen([sys.executable, "launch.py", *words], cwd=ROOT)
    began = time.monotonic()
    try:
        code = process.wait(GAME_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
    seconds = round(time.monotonic() - began, 1)
    if code != 0:
        return {"finished": False, "exit_code": code, "seconds": seconds, "command": words}
    greedy = evaluate(path, 1, max_steps=50) if options.tiny else evaluate(path, 100)
    sampled = last_returns(path / "metrics.jsonl")
    return {"command": words, "seconds": seconds, "sampled": sampled, "greedy": greedy}


def last_returns(metrics: Path) -> dict[str, Any]:
    """Returns the mean return of the training episodes that ended in a run's last 10,000 frames."""
    events = list(map(json.loads, metrics.read_text(encoding="utf-8").splitlines()))
    episodes = [event for event in events if event["kind"] == "episode"]
    end = max((event["env_steps"] for event in events if "env_steps" in event), default=0)
    returns = [each["return"] for each in episodes if each["env_steps"] > end - LAST_STEPS]
    return {"mean": statistics.fmean(returns) if returns else None, "episodes": len(returns)}


if __name__ == "__main__":
    main()
