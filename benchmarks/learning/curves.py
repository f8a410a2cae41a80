"""Learning curves: what is kept of a run, and when it was good enough.

`<out>/<method>/seed-<s>.jsonl` holds what is kept of one seed: a line `about` its making, its
evaluations and its episodes. Everything else is computed from these files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamfleet.core.types import Array, Event

DEFAULT_AGENT: Final = "dreamer-lite"
KEPT: Final = {
    "eval": ("return_mean", "return_std", "return_min", "wall_s", "took_s"),
    "episode": ("return",),
}
EPISODES_KEPT: Final = 1_000  # of a seed; of more, every second, third, … unless they are reported
WINDOW: Final = 100  # training episodes that are averaged


@dataclass(frozen=True)
class Task:
    """An environment, and how learning in it is looked at."""

    thresholds: tuple[float, ...]  # greedy means over a look's episodes that count as solved
    ours: str = DEFAULT_AGENT  # whom all methods are compared with
    every: int = 500  # env steps between looks
    episodes: int = 100  # fresh ones of a look; at the end as many, the same for all
    training: bool = False  # returns of training episodes are reported too


TASKS: Final = {
    "CartPole-v1": Task((475.0,)),
    "Pendulum-v1": Task((-200.0, -160.0)),
    "NumberGame-v1": Task((350.0, 390.0, 420.0), "gated-rainbow", every=20_000, episodes=5_000),
    "BipedalWalker-v3": Task((300.0, 310.0), "dreamwalker", every=10_000, training=True),
    "BipedalWalkerHardcore-v3": Task((100.0,), "dreamwalker", every=40_000, training=True),
}


@dataclass(frozen=True)
class Curve:
    """The greedy evaluations of one seed, in order: `steps` and `returns` are (looks,)."""

    steps: Array  # env steps of training before each look
    returns: Array  # mean over the look's episodes
    wall_s: float  # of the whole run
    looking_s: float  # of it, spent on evaluations
    final: Event = field(default_factory=dict)  # of the end, on fixed episodes; empty: unknown
    agent: str = DEFAULT_AGENT
    command: str = ""  # that made it
    ended: Array = field(default_factory=lambda: np.zeros(0, int))  # env steps, by episode
    scores: Array = field(default_factory=lambda: np.zeros(0))  # returns of training episodes

    @property
    def final_return(self) -> float:
        """The greedy mean at the end; the last look's where that is all there is."""
        return float(self.final.get("return_mean", self.returns[-1]))

    @property
    def area(self) -> float:
        """The mean greedy return over all of training: the area under the curve, by its length."""
        return float(self.returns.mean())

    def reached(self, threshold: float) -> int | None:
        """The steps of the first look at or above `threshold`."""
        above = self.returns >= threshold
        return int(self.steps[above.argmax()]) if above.any() else None

    def stays(self, threshold: float) -> float | None:
        """The share of looks after the first one above `threshold` that are so too."""
        above = self.returns >= threshold
        later = above[above.argmax() + 1 :] if above.any() else above[:0]
        return float(later.mean()) if later.size else None

    def first_episode(self, threshold: float) -> tuple[int, int] | None:
        """The first training episode at or above `threshold`, from 1, and the steps at its end."""
        above = np.flatnonzero(self.scores >= threshold)
        return (int(above[0]) + 1, int(self.ended[above[0]])) if above.size else None

    @property
    def trained(self) -> tuple[Array, Array]:
        """Env steps and the mean return of the last `WINDOW` training episodes, from there on."""
        if self.scores.size < WINDOW:
            return self.ended[:0], self.scores[:0]
        means = np.lib.stride_tricks.sliding_window_view(self.scores, WINDOW).mean(-1)
        return self.ended[WINDOW - 1 :], means

    def settled(self, threshold: float) -> int | None:
        """The steps of the first look from which on all are at or above `threshold`."""
        below = np.flatnonzero(self.returns < threshold)
        first = int(below[-1]) + 1 if below.size else 0
        return int(self.steps[first]) if first < self.steps.size else None


# ----------------------------------------------------------------------------------- files


def read_events(path: Path) -> list[Event]:
    """The lines of a metrics file as an uninterrupted run would have written them.

    A resumed run does again what came after its checkpoint; the second time counts.
    """
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        while events and events[-1]["env_steps"] > event["env_steps"]:
            events.pop()
        events.append(event)
    return events


def keep(about: Event, events: Sequence[Event], path: Path, final: Event | None = None) -> None:
    """Write the slim copy of a seed's events, after what is said about their making.

    final: the evaluation at its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".part")
    ended = sum(event["kind"] == "episode" for event in events)
    task = TASKS.get(about.get("env", ""))
    every = 1 if task and task.training else max(1, -(-ended // EPISODES_KEPT))
    seen = 0
    with open(staging, "w", encoding="utf-8") as file:
        file.write(_line({"kind": "about", "env_steps": 0, **about}))
        for event in events:
            seen += event["kind"] == "episode"
            if event["kind"] in KEPT and (event["kind"] != "episode" or seen % every == 0):
                names = ("kind", "env_steps", *KEPT[event["kind"]])
                file.write(_line({name: _short(event[name]) for name in names}))
        if final is not None:
            file.write(_line({name: _short(value) for name, value in final.items()}))
    staging.replace(path)


def read_curve(path: Path) -> Curve:
    events = read_events(path)
    looks = [event for event in events if event["kind"] == "eval"]
    if not looks:
        raise SystemExit(f"{path} holds no evaluation")
    episodes = [event for event in events if event["kind"] == "episode"]
    return Curve(
        final=next((event for event in events if event["kind"] == "final"), {}),
        agent=events[0].get("agent", DEFAULT_AGENT),
        command=events[0].get("command", ""),
        steps=np.array([look["env_steps"] for look in looks]),
        returns=np.array([look["return_mean"] for look in looks]),
        wall_s=looks[-1]["wall_s"],
        looking_s=sum(look["took_s"] for look in looks),
        ended=np.array([event["env_steps"] for event in episodes], int),
        scores=np.array([event["return"] for event in episodes], float),
    )


def read_methods(out: Path, first: str) -> dict[str, list[Curve]]:
    """Every method kept under `out` and its seeds, `first` before all others."""
    found = {path.parent.name for path in out.glob("*/seed-*.jsonl")}
    return {
        name: [read_curve(path) for path in sorted((out / name).glob("seed-*.jsonl"))]
        for name in sorted(found, key=lambda name: (name != first, name))
    }


def _line(event: Event) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


# --------------------------------------------------------------------------------- figures


def summarise(curves: Sequence[Curve], threshold: float) -> dict[str, Any]:
    """Figures over seeds; a seed's `steps` are null when it never got there."""
    stays = [share for curve in curves if (share := curve.stays(threshold)) is not None]
    return {
        "steps": [curve.reached(threshold) for curve in curves],
        "steps_for_good": [curve.settled(threshold) for curve in curves],
        "later_looks_above": round(float(np.mean(stays)), 3) if stays else None,
        "final_returns": [round(curve.final_return, 1) for curve in curves],
        "budget": int(max(curve.steps[-1] for curve in curves)),
        "wall_s": [round(curve.wall_s, 1) for curve in curves],
        "wall_without_evaluations_s": [
            round(curve.wall_s - curve.looking_s, 1) for curve in curves
        ],
    }


def in_training(curves: Sequence[Curve], threshold: float) -> dict[str, Any]:
    """What training episodes, exploration included, came to; null where a seed never got there."""
    firsts = [curve.first_episode(threshold) for curve in curves]
    means = [curve.trained for curve in curves]
    above = [(ended, np.flatnonzero(mean >= threshold)) for ended, mean in means]
    return {
        "threshold": threshold,
        "first_episode": [first and first[0] for first in firsts],
        "first_episode_steps": [first and first[1] for first in firsts],
        "mean_steps": [int(ended[at[0]]) if at.size else None for ended, at in above],
        "best_mean": [round(float(mean.max()), 1) if mean.size else None for _, mean in means],
        "episodes": [len(curve.scores) for curve in curves],
        "budget": int(max(curve.steps[-1] for curve in curves)),
    }


def by_kind(curves: Sequence[Curve]) -> dict[str, dict[str, list[float]]]:
    """The evaluations at the end, of `all` episodes and of each kind → figure → a value a seed.

    Returns and whatever else the environment tells; empty where it tells nothing or no seed has
    such an evaluation.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for key in curves[0].final:
        kind, _, figure = key.rpartition("/")
        if figure.endswith("_mean") and figure != "length_mean":
            values = [curve.final[key] for curve in curves]
            found.setdefault(kind or "all", {})[figure.removesuffix("_mean")] = values
    return found if len(found) > 1 else {}


def median(values: Sequence[float | None]) -> float:
    """Seeds that never got there count as later than any other."""
    return float(np.median([np.inf if value is None else value for value in values]))


def ratio(theirs: Sequence[int | None], ours: Sequence[int | None]) -> float | None:
    """How many times our median steps they need; null when either median is out of reach."""
    if not ours:
        return None
    times = median(theirs) / median(ours)
    return round(times, 2) if np.isfinite(times) and times > 0 else None
