"""Measures a run while it trains: waiting times, age of weights, speeds and returns."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque

import numpy as np

from dreamfleet.runtime.worker_runner import Report


class Gauges:
    """Measurements of a run since it was started or resumed: waiting times, speeds, returns, ….

    env_steps, updates: the run's env steps and policy updates at that moment; 0 for a new run.
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
        """Adds a worker's report to the measurements: waiting times and versions of weights."""
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
        """Forgets all waiting times so far. Called at the first gradient step.

        Until then the learner only waits for rows, which says nothing about its speed.
        """
        self.waits = {}
        self._spent.clear()

    def add_return(self, episode_return: float) -> None:
        """Records the return of a training episode, for the mean of the last 100 returns."""
        self._returns.append(episode_return)

    @property
    def episodes(self) -> int:
        """The number of training episodes in the mean `return_mean`; at most 100."""
        return len(self._returns)

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last 100 training episodes; None before the first episode ends."""
        return float(np.mean(self._returns)) if self._returns else None

    @property
    def lag(self) -> dict[str, tuple[float, float]]:
        """The age of the actors' weights: a dict, weight group → (median, 95th percentile).

        The age is the number of newer versions that have been published. A weight group is `world`
        or `policy`.
        """
        return {
            group: (float(np.percentile(lag, 50)), float(np.percentile(lag, 95)))
            for group, lag in self._lags.items()
        }

    def close_period(self, env_steps: int, updates: int) -> dict[str, float]:
        """Returns metrics of the time since the last call: waiting times, age of weights, speeds.

        Also sets `waits` to these waiting times. env_steps, updates: the env steps and the policy
        updates of the run so far.
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
