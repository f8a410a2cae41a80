"""Measures a run while it trains: waiting times, age of weights, speeds and returns."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque

import numpy as np

from dreamfleet.runtime.worker_runner import Report


class Gauges:
    """Measurements of a run since the run was started or resumed.

    env_steps, updates: the env steps and the policy updates that the run had made by then.
    """

    def __init__(self, env_steps: int, updates: int) -> None:
        self.waits: dict[str, float] = {}  # "actor → replay" → fraction of the last period
        self._returns: deque[float] = deque(maxlen=100)
        self._published: Counter[str] = Counter()  # weight group → newest version
        self._lags: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=500))
        # Role → the partner that the role waited for ("" while it worked) → seconds.
        self._spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._before = (env_steps, updates, time.monotonic())  # at the end of the last period

    def take(self, report: Report) -> None:
        """Adds the times and versions of a worker's report to the measurements."""
        role = report.worker.partition("-")[0]
        if report.published:
            self._published["policy" if role == "learner" else "world"] = report.published
        if role == "actor":
            for group, version in report.versions.items():
                self._lags[group].append(max(0, self._published[group] - version))
        if role != "evaluator":  # an evaluator waits most of the time, by design
            for partner, seconds in (("", report.busy_s), *report.waits_s.items()):
                self._spent[role][partner] += seconds

    def forget_waits(self) -> None:
        """Forgets all waiting times so far. Called when learning begins.

        Before learning begins every learner waits for rows, which says nothing about speed.
        """
        self.waits = {}
        self._spent.clear()

    def add_return(self, episode_return: float) -> None:
        """Adds the return of a finished training episode to the mean of the last 100 returns."""
        self._returns.append(episode_return)

    @property
    def episodes(self) -> int:
        """The number of episodes over which `return_mean` is the mean; at most 100."""
        return len(self._returns)

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last 100 training episodes; None before the first episode ends."""
        return float(np.mean(self._returns)) if self._returns else None

    @property
    def lag(self) -> dict[str, tuple[float, float]]:
        """Weight group → median and 95th percentile of the age of the actors' weights.

        The age is the number of versions by which an actor's weights are older than the newest
        ones. A weight group is the set of networks that one process trains (`world` or `policy`).
        """
        return {
            group: (float(np.percentile(lag, 50)), float(np.percentile(lag, 95)))
            for group, lag in self._lags.items()
        }

    def close_period(self, env_steps: int, updates: int) -> dict[str, float]:
        """Ends a measuring period. Returns its waiting times, weight ages and speeds as metrics.

        Also sets `waits` to the waiting times of the period.

        env_steps, updates: the env steps and the policy updates of the run so far.
        """
        self.waits = {
            f"{role} → {partner}": seconds / total
            for role, spent in self._spent.items()
            if (total := sum(spent.values()))
            for partner, seconds in spent.items()
            if partner
        }
        self._spent.clear()
        metrics = self._speeds(env_steps, updates)
        for pair, share in self.waits.items():  # "actor → replay" is wait/actor_for_replay
            metrics["wait/" + pair.replace(" → ", "_for_").replace(" + ", "_")] = share
        for group, (median, high) in self.lag.items():
            metrics |= {f"lag/{group}_p50": median, f"lag/{group}_p95": high}
        if self.return_mean is not None:
            metrics["episode/return_mean_100"] = self.return_mean
        return metrics

    def _speeds(self, env_steps: int, updates: int) -> dict[str, float]:
        steps_before, updates_before, then = self._before
        now = time.monotonic()
        self._before = (env_steps, updates, now)
        seconds = max(now - then, 1e-3)
        return {
            "speed/env_steps_per_s": (env_steps - steps_before) / seconds,
            "speed/updates_per_s": (updates - updates_before) / seconds,
        }
