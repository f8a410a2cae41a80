"""Reads and writes records of training runs, and computes results of learning curves from them.

The record of one seed is the file `<results>/<method>/seed-<seed>.jsonl`. A method is an agent with
its settings, or a baseline of another library. The first line of a record has the command and the
versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.formatting import median
from dreamfleet.core.types import Array, Event

DEFAULT_AGENT: Final = "dreamer-lite"
RECORDED: Final = {  # kind of event → fields that the record keeps
    "eval": ("return_mean", "return_std", "return_min", "wall_s", "took_s"),
    "episode": ("return",),
}
MAX_EPISODES: Final = 1_000  # in a record; of more, every second, third, … is kept
WINDOW: Final = 100  # training episodes in a running mean
# Settings in records that were written before the settings were renamed → present names.
RENAMED_SETTINGS: Final = {
    "agent.share": "agent.dream_share",
    "agent.dreams": "agent.dreams_per_update",
    "agent.recent": "agent.emphasize_recent",
    "agent.clock": "agent.observe_time",
    "agent.n": "agent.n_step",
    "agent.noise": "agent.noisy_sigma",
}


@dataclass(frozen=True)
class Task:
    """Settings of one environment's benchmark: evaluations, and returns that count as solved."""

    thresholds: tuple[float, ...]  # mean returns of an evaluation that count as solved
    ours: str = DEFAULT_AGENT  # the method that all methods are compared with
    eval_every: int = 500  # environment steps between evaluations
    eval_episodes: int = 100  # episodes of each evaluation, and of the evaluation after training
    training_episodes: bool = False  # whether the returns of training episodes are reported too


TASKS: Final = {
    "CartPole-v1": Task((475.0,)),
    "Pendulum-v1": Task((-200.0, -160.0)),
    "PixelCatch-v1": Task((9.0,), "barlow-dreamer", eval_every=5_000),
    "NumberGame-v1": Task(
        (350.0, 390.0, 420.0), "gated-rainbow", eval_every=20_000, eval_episodes=5_000
    ),
    "BipedalWalker-v3": Task(
        (300.0, 310.0), "dreamwalker", eval_every=10_000, training_episodes=True
    ),
    "BipedalWalkerHardcore-v3": Task(
        (100.0,), "dreamwalker", eval_every=40_000, training_episodes=True
    ),
}


@dataclass(frozen=True)
class Curve:
    """The learning curve of one seed: E evaluations and N training episodes, in order of time."""

    steps: Array  # (E,) environment steps of training before each evaluation
    returns: Array  # (E,) mean return of each evaluation
    wall_s: Array  # (E,) seconds since the start of the run at the end of each evaluation
    eval_s: Array  # (E,) seconds that each evaluation took
    final: Event = field(default_factory=dict)  # the evaluation after training; may be empty
    agent: str = DEFAULT_AGENT
    command: str = ""  # the command that made the run
    episode_ends: Array = field(default_factory=lambda: np.zeros(0, int))  # (N,) environment steps
    episode_returns: Array = field(default_factory=lambda: np.zeros(0))  # (N,)

    @property
    def final_return(self) -> float:
        """The mean return of the evaluation after training.

        Without an evaluation after training, it is the mean return of the last evaluation during
        training.
        """
        return float(self.final.get("return_mean", self.returns[-1]))

    @property
    def mean_return(self) -> float:
        """The mean return of all evaluations during training (normalised area under the curve)."""
        return float(self.returns.mean())

    @property
    def training_minutes(self) -> Array:
        """Minutes of training until each of the E evaluations, shape (E,).

        The duration of evaluations is subtracted, except in a run on Ray.
        """
        beside = "launch.py" in self.command and "--local" not in self.command
        waiting = 0.0 if beside else np.cumsum(self.eval_s)
        return np.asarray((self.wall_s - waiting) / 60)

    def first_steps_at(self, threshold: float) -> int | None:
        """Returns the environment steps until the first evaluation that reaches `threshold`.

        An evaluation reaches the threshold if its mean return is ≥ `threshold`. Returns None if no
        evaluation reaches it.
        """
        above = self.returns >= threshold
        return int(self.steps[above.argmax()]) if above.any() else None

    def later_share_at(self, threshold: float) -> float | None:
        """Returns which fraction of later evaluations has a mean return ≥ `threshold`.

        Later evaluations are all evaluations after the first one with a mean return ≥ `threshold`.
        Returns None if there are no later evaluations.
        """
        above = self.returns >= threshold
        later = above[above.argmax() + 1 :] if above.any() else above[:0]
        return float(later.mean()) if later.size else None

    def lasting_steps_at(self, threshold: float) -> int | None:
        """Returns the environment steps after which no evaluation is below `threshold` any more.

        The evaluation at these steps and all later ones have a mean return ≥ `threshold`. Returns
        None if the last evaluation is below the threshold.
        """
        below = np.flatnonzero(self.returns < threshold)
        first = int(below[-1]) + 1 if below.size else 0
        return int(self.steps[first]) if first < self.steps.size else None

    def first_episode_at(self, threshold: float) -> tuple[int, int] | None:
        """Returns the first training episode with a return ≥ `threshold`, or None if there is none.

        The episode is returned as a pair: its number, counted from 1, and the environment steps at
        its end.
        """
        above = np.flatnonzero(self.episode_returns >= threshold)
        return (int(above[0]) + 1, int(self.episode_ends[above[0]])) if above.size else None

    @property
    def running_mean(self) -> tuple[Array, Array]:
        """The running mean of training returns over the last WINDOW episodes.

        The value is a pair of arrays: environment steps, and mean returns. Both have one entry per
        training episode, from episode number WINDOW on.
        """
        if self.episode_returns.size < WINDOW:
            return self.episode_ends[:0], self.episode_returns[:0]
        windows = np.lib.stride_tricks.sliding_window_view(self.episode_returns, WINDOW)
        return self.episode_ends[WINDOW - 1 :], windows.mean(-1)


# ----------------------------------------------------------------------------------- files


def read_events(path: Path) -> list[Event]:
    """Returns the events of a metrics file in order of environment steps, without repetitions.

    A resumed run repeats the steps after its last checkpoint. Only the later log of these steps is
    returned.
    """
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        while events and events[-1]["env_steps"] > event["env_steps"]:
            events.pop()
        events.append(event)
    return events


def write_record(
    about: Event, events: Sequence[Event], path: Path, final: Event | None = None
) -> None:
    """Writes the record of a training run with one seed to `path`, as JSON lines.

    about: how the run was made. events: all events; only evaluations and training episodes are
    written. final: the evaluation after training, or None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".part")
    episodes = sum(event["kind"] == "episode" for event in events)
    task = TASKS.get(about.get("env", ""))
    keep_all = task is not None and task.training_episodes
    every = 1 if keep_all else max(1, -(-episodes // MAX_EPISODES))
    seen = 0
    with open(staging, "w", encoding="utf-8") as file:
        file.write(_line({"kind": "about", "env_steps": 0, **about}))
        for event in events:
            kind = event["kind"]
            seen += kind == "episode"
            if kind in RECORDED and (kind != "episode" or seen % every == 0):
                names = ("kind", "env_steps", *RECORDED[kind])
                file.write(_line({name: _rounded(event[name]) for name in names}))
        if final is not None:
            file.write(_line({name: _rounded(value) for name, value in final.items()}))
    staging.replace(path)


def read_curve(path: Path) -> Curve:
    """Returns the learning curve of one seed from its record, the file `path`.

    Raises SystemExit if the record has no evaluation.
    """
    events = read_events(path)
    evaluations = [event for event in events if event["kind"] == "eval"]
    if not evaluations:
        raise SystemExit(f"{path} has no evaluation")
    episodes = [event for event in events if event["kind"] == "episode"]
    return Curve(
        steps=np.array([event["env_steps"] for event in evaluations]),
        returns=np.array([event["return_mean"] for event in evaluations]),
        wall_s=np.array([event["wall_s"] for event in evaluations]),
        eval_s=np.array([event["took_s"] for event in evaluations]),
        final=next((event for event in events if event["kind"] == "final"), {}),
        agent=events[0].get("agent", DEFAULT_AGENT),
        command=events[0].get("command", ""),
        episode_ends=np.array([event["env_steps"] for event in episodes], int),
        episode_returns=np.array([event["return"] for event in episodes], float),
    )


def read_methods(results: Path, first: str) -> dict[str, list[Curve]]:
    """Returns the learning curves of all methods in one environment, by name of the method.

    A method has a list of curves, one per seed. results: the folder of the environment's records.
    first: the method that is placed first.
    """
    found = {path.parent.name for path in results.glob("*/seed-*.jsonl")}
    return {
        name: [read_curve(path) for path in sorted((results / name).glob("seed-*.jsonl"))]
        for name in sorted(found, key=lambda name: (name != first, name))
    }


def with_present_settings(text: str) -> str:
    """Returns `text` with renamed settings under their present names.

    For example, `agent.share` becomes `agent.dream_share`. text: a command or a setting from a
    record.
    """
    return re.sub(
        r"\bagent\.\w+(?==)", lambda found: RENAMED_SETTINGS.get(found[0], found[0]), text
    )


def _line(event: Event) -> str:
    return json.dumps(event, separators=(",", ":")) + "\n"


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


# --------------------------------------------------------------------------------- figures


def summarise(curves: Sequence[Curve], threshold: float) -> dict[str, Any]:
    """Returns the results of one method (an agent or a baseline), most of them as lists over seeds.

    curves: one learning curve per seed. threshold: the mean return to reach.

    `steps`: environment steps until the first evaluation at or above the threshold.
    `steps_for_good`: environment steps after which no evaluation is below the threshold. A value is
    None for a seed that does not get there.
    """
    later = [share for curve in curves if (share := curve.later_share_at(threshold)) is not None]
    return {
        "steps": [curve.first_steps_at(threshold) for curve in curves],
        "steps_for_good": [curve.lasting_steps_at(threshold) for curve in curves],
        "later_looks_above": round(float(np.mean(later)), 3) if later else None,
        "final_returns": [round(curve.final_return, 1) for curve in curves],
        "budget": int(max(curve.steps[-1] for curve in curves)),
        "wall_s": [round(float(curve.wall_s[-1]), 1) for curve in curves],
        "wall_without_evaluations_s": [
            round(float(curve.wall_s[-1]) - sum(curve.eval_s.tolist()), 1) for curve in curves
        ],
    }


def summarise_training(curves: Sequence[Curve], threshold: float) -> dict[str, Any]:
    """Returns results of one method's training episodes, most of them as lists over seeds.

    curves: one learning curve per seed. Numbers of steps or episodes are None for a seed that never
    reaches the return `threshold`.
    """
    firsts = [curve.first_episode_at(threshold) for curve in curves]
    means = [curve.running_mean for curve in curves]
    above = [(steps, np.flatnonzero(mean >= threshold)) for steps, mean in means]
    return {
        "threshold": threshold,
        "first_episode": [first and first[0] for first in firsts],
        "first_episode_steps": [first and first[1] for first in firsts],
        "mean_steps": [int(steps[at[0]]) if at.size else None for steps, at in above],
        "best_mean": [round(float(mean.max()), 1) if mean.size else None for _, mean in means],
        "episodes": [len(curve.episode_returns) for curve in curves],
        "budget": int(max(curve.steps[-1] for curve in curves)),
    }


def final_by_category(curves: Sequence[Curve]) -> dict[str, dict[str, list[float]]]:
    """Returns the results of the evaluation after training, for each category of episodes.

    The result maps category → name of a statistic (such as `return`) → means, one per seed. The
    category `all` has all episodes. The result is empty if the environment has no categories.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for key in curves[0].final:
        category, _, figure = key.rpartition("/")
        if figure.endswith("_mean") and figure != "length_mean":
            values = [curve.final[key] for curve in curves]
            found.setdefault(category or "all", {})[figure.removesuffix("_mean")] = values
    return found if len(found) > 1 else {}


def ratio(theirs: Sequence[int | None], ours: Sequence[int | None]) -> float | None:
    """Returns the median of `theirs` divided by the median of `ours`.

    ours, theirs: environment steps to a threshold, one value per seed. None counts as infinity.
    Returns None if a median is infinite, or if `ours` is empty.
    """
    if not ours:
        return None
    times = median(theirs) / median(ours)
    return round(times, 2) if np.isfinite(times) and times > 0 else None
