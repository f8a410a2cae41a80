"""Updates a second of Gated Rainbow's learner, against eager PyTorch at equal networks.

    python benchmarks/updates.py

An update is a prioritized sample, the gradient step and the new priorities; ours is what `Learner`
does in a run, weights published. All sides live in one process, take turns and have one thread,
whose time on the processor counts: what else the machine does matters less.
The peers, and what they leave out: `benchmarks/rainbow_peer.py`. The rows are NumberGame's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

from agents.gated_rainbow.agent import GatedRainbow
from agents.gated_rainbow.config import CONTEXT, RANGE, Config
from benchmarks.processes import ROOT
from benchmarks.rainbow_peer import Learner as Peer
from benchmarks.rainbow_peer import OurReplay, Sizes, Step, TreeReplay, of_n_steps
from benchmarks.report import markdown
from benchmarks.rounds import Side, each, interleaved
from core.config import TrainConfig
from core.types import Agent, Array, Batch, EnvSpec, TableSpec
from envs.vector import GymVector
from learner.learner import Learner
from learner.weight_store import LocalWeights
from replay_server import ReplayServer
from runtime.run_folder import versions

ENV: Final = "NumberGame-v1"
GAMES: Final = 64  # played together to fill the replays
CHUNK: Final = 8  # rows of each that are added at once
OURS: Final = ("gated-rainbow", "gated-rainbow, compiled")
EQUAL: Final = Config(gate="none", share=0.0, values="c51", noise=0.5, n=3, batch=256)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a side in a round")
    parser.add_argument("--eager", action="store_true", help="ours not compiled: no C++ compiler")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/updates.json")
    args = parser.parse_args()
    names = [name for name in SIDES if not args.eager or name != OURS[1]]
    found = measure(EQUAL, args.rounds, args.seconds, names)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{table(found)}\n\n{footing(found)}")


def measure(
    config: Config, rounds: int, seconds: float, names: Iterable[str] | None = None
) -> dict[str, Any]:
    """Updates a second of the sides of these names, or all, in each round."""
    torch.set_num_threads(1)
    played = Games(config.capacity, config.gamma)
    racing = [
        Side(name, each(SIDES[name](config, played)), 1, time.process_time)  # of one update
        for name in names or SIDES
    ]
    rates = zip(*interleaved(racing, rounds, seconds), strict=True)
    mine = versions()
    return {
        "rounds": rounds,
        "cpus": os.cpu_count(),
        **{name: mine[name] for name in ("git", "platform", "python", "torch", "numpy")},
        "batch": config.batch,
        "capacity": config.capacity,
        "rates": {side.name: list(of) for side, of in zip(racing, rates, strict=True)},
    }


def table(found: Mapping[str, Any]) -> str:
    """Medians over rounds, and how many times a peer's rate each of ours is, round by round."""
    rates = found["rates"]
    mine = [name for name in OURS if name in rates]
    rows = [
        (
            name,
            f"{statistics.median(of):,.0f}",
            *("" if name.startswith(OURS[0]) else times(rates[one], of) for one in mine),
        )
        for name, of in rates.items()
    ]
    heads = ("who", f"updates/s of batch {found['batch']}", *(f"{one} against it" for one in mine))
    return markdown(heads, rows)


def times(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """`median (worst)` of the ratios of rounds."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}×)"


def footing(found: Mapping[str, Any]) -> str:
    """How it was measured."""
    return (
        f"{found['rounds']} interleaved rounds after a warm-up, processor seconds of one thread, "
        f"{found['capacity']:,} rows to draw from; {found['cpus']} CPUs, torch {found['torch']}, "
        f"Python {found['python']}"
    )


# ------------------------------------------------------------------------------------ sides


class Games:
    """Random play of `steps` agent steps and more, as rows (N, T, …) with histories and traces."""

    def __init__(self, steps: int, gamma: float) -> None:
        env, random = GymVector(ENV, GAMES, seed=0), np.random.default_rng(0)
        self.spec: EnvSpec = env.spec
        rows, played = env.reset(), []
        history = np.zeros((GAMES, CONTEXT + 1, *env.spec.obs.shape), np.float32)
        trace = np.zeros(GAMES, np.float32)
        taken = 0
        while taken < steps:
            first, obs = rows["first"], rows["obs"][:, None]
            moved = np.concatenate([history[:, 1:], obs], 1)
            history = np.where(first[:, None, None], obs, moved)
            trace = np.where(first, 0, gamma * trace + rows["reward"]).astype(np.float32)
            action = random.integers(0, env.spec.action.n - 1, GAMES)  # a draw would end them all
            played.append({**rows, "action": action, "history": history, "trace": trace})
            taken += int((~rows["last"]).sum())
            rows = env.step(action)
        env.close()
        self.rows: Batch = {key: np.stack([row[key] for row in played], 1) for key in played[0]}

    def transitions(self, unit: float) -> Iterator[list[Step]]:
        """The steps of each environment, rewards divided by `unit`."""
        rows = self.rows
        history: Array = rows["history"].reshape(*rows["last"].shape, -1)
        for i in range(GAMES):
            yield [
                Step(
                    history[i, t],
                    int(rows["action"][i, t]),
                    float(rows["reward"][i, t + 1]) / unit,
                    history[i, t + 1],
                    bool(rows["terminal"][i, t + 1]),
                )
                for t in np.flatnonzero(~rows["last"][i, :-1])
            ]


def ours(config: Config, played: Games, **options: Any) -> Callable[[], object]:
    """Our learner, with a replay that holds as much as it can."""
    agent = cast(Agent, GatedRainbow(replace(config, **options), played.spec, 0, "cpu"))
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    policy = replace(real.consumers["policy"], samples_per_step=None)  # as fast as it can
    spec = replace(real, consumers={**real.consumers, "policy": policy})
    replay = ReplayServer({**agent.tables, "real": spec}, seed=0)
    rows = {name: of for name, of in played.rows.items() if name in spec.columns}
    rows["held_out"] = np.zeros_like(rows["last"])
    for begin in range(0, rows["last"].shape[1], CHUNK):
        chunk = {name: of[:, begin : begin + CHUNK] for name, of in rows.items()}
        assert replay.add("real", chunk, np.arange(GAMES))
    rhythm = TrainConfig()
    learner = Learner(
        agent,
        replay,
        LocalWeights(),
        pulls=(),
        publish_every=rhythm.publish_every,
        log_every=rhythm.log_every,
    )

    def once() -> None:
        assert learner.step()

    return once


def peer(
    config: Config, played: Games, replay: type[TreeReplay] | type[OurReplay], tidy: bool
) -> Callable[[], object]:
    """A peer with the same networks, the same batches, and as much to draw from."""
    unit = float(np.abs(played.rows["trace"]).max()) / RANGE
    obs = played.spec.obs.shape
    sizes = Sizes(
        inputs=(CONTEXT + 1) * int(np.prod(obs)),
        actions=played.spec.action.n,
        hidden=config.hidden,
        atoms=config.atoms,
        span=RANGE,
        sigma=config.noise,
        batch=config.batch,
        capacity=config.capacity,
        n=config.n,
        gamma=config.gamma,
        lr=config.lr,
    )
    holds = replay(sizes, seed=0)
    holds.fill(
        step
        for steps in played.transitions(unit)
        for step in of_n_steps(steps, sizes.n, sizes.gamma)
    )
    return Peer(sizes, holds, tidy)


SIDES: Final[dict[str, Callable[[Config, Games], Callable[[], object]]]] = {
    OURS[0]: ours,
    OURS[1]: partial(ours, compile=True),
    "gated-rainbow with its gate": partial(ours, gate="mlp"),
    "eager, as CleanRL writes it": partial(peer, replay=TreeReplay, tidy=False),
    "eager, tidied up, on our replay": partial(peer, replay=OurReplay, tidy=True),
}


if __name__ == "__main__":
    main()
