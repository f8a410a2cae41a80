"""What a run keeps account of in every wiring: metrics, display, checkpoints, faults, signals."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.metrics import MetricsWriter
from dreamfleet.core.types import BestEvaluation, Event
from dreamfleet.replay_server.budget import sized
from dreamfleet.runtime.blueprint import Progress
from dreamfleet.runtime.display import Display, Status, clock_time
from dreamfleet.runtime.interrupts import Interrupts
from dreamfleet.runtime.run_folder import TENSORBOARD, RunFolder
from dreamfleet.runtime.tensorboard import TensorBoard
from dreamfleet.runtime.turns import Fault, Report

PERIOD_S: Final = 10.0  # between two "run" lines of metrics; shares of time are of the last period
WARN_EVERY_S: Final = 60.0  # between two warnings that something cannot be written
FRUITLESS_STARTS: Final = 5  # of one worker in a row, after which the run gives up
REST_S: Final = (0.2, 10.0)  # the shortest and the longest rest between two fruitless starts


class Session:
    """Takes the reports of all workers. Use as a context around the training loop.

    Its clock starts when it is made. `resumed`: the state of the checkpoint the run goes on from.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        display: Display,
        resumed: Mapping[str, Any] | None,
    ) -> None:
        self.config, self.folder, self.display = config, folder, display
        earlier = resumed["session"] if resumed else {}
        self.updates: Counter[str] = Counter(earlier.get("updates", {}))  # role → gradient steps
        self.env_steps = int(earlier.get("env_steps", 0))
        self.learning = False  # a gradient step was taken, since this start of the run
        self.interrupts = Interrupts()
        self._earlier_s = float(earlier.get("wall_s", 0.0))
        self._began = time.monotonic()
        self._metrics = MetricsWriter(folder.metrics)
        self._board = TensorBoard(folder.path / TENSORBOARD)
        self._unmirrored: list[Event] = []
        self._returns: deque[float] = deque(maxlen=100)
        self._last_eval: Event | None = None
        self._best_score = self._best_so_far() if resumed else None
        self.saved_at = self.env_steps if resumed else None  # env steps of the newest checkpoint
        self._problem = ""  # why the last thing that could not be written was not
        self._unsaved = ""  # why the last checkpoint was not
        self._next_warning = float("-inf")
        self._learned: dict[str, float] = {}  # the newest of every metric of learner and dreamer
        self._stats: Mapping[str, float] = {}
        self._published: Counter[str] = Counter()
        self._lags: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=500))
        self._faults: Counter[str] = Counter(restarts=0, refused=0)
        self._fruitless: Counter[str] = Counter()  # starts of a worker since it last was of use
        self._starts: Counter[str] = Counter(earlier.get("starts", {}))
        self._envs: dict[str, Any] = dict(earlier.get("envs", {}))  # actor → state of its envs
        self._resumes = int(earlier.get("resumes", -1)) + 1
        # Role → the partner that it waited for, "" when busy → seconds.
        self._spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._waits: dict[str, float] = {}
        self._period_ends = self._began + PERIOD_S
        self._next_save = self._multiple_after(self.env_steps)
        self._announced = False  # that it was interrupted

    # ------------------------------------------------------------------------------ the loop

    @property
    def over(self) -> bool:
        """Enough steps, or somebody asked to stop."""
        return self.interrupted or self.env_steps >= self.config.steps

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked to stop."""
        return self.interrupts.number is not None

    @property
    def elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def progress(self, worker: str) -> Progress:
        """Returns where a worker that is started now takes up its work."""
        starts = self._starts[worker] + self._resumes
        env = self._envs.get(worker, {})
        return Progress(self.env_steps, dict(self.updates), starts, env, self._best_score)

    def take(self, report: Report, stats: Mapping[str, float]) -> None:
        """Account for what a worker did; `stats` are the replay's, from now.

        Raises WorkerFailed when the worker broke and a restart cannot help.
        """
        if not self._stats:
            self._introduce(stats)
        self._stats = stats
        self.env_steps = int(stats["env_steps"])
        for event in report.events:
            self.record(event)
        if report.best:
            self._keep(report.best)
        if report.env:
            self._envs[report.worker] = report.env
        role = report.worker.partition("-")[0]
        if report.updates > self.updates[role]:
            self.updates[role] = report.updates
            self._begin_learning()
        if report.published:
            self._published["policy" if role == "learner" else "world"] = report.published
        if role == "actor":
            for group, version in report.versions.items():
                self._lags[group].append(max(0, self._published[group] - version))
        if role != "evaluator":  # it is meant to wait
            for partner, seconds in (("", report.busy_s), *report.waits_s.items()):
                self._spent[role][partner] += seconds
        # An evaluator is of use while it lives, an actor once the replay has taken rows from it.
        if report.chunks or (role == "evaluator" and not report.fault):
            self._fruitless[report.worker] = 0
        if report.fault:
            self.broke(report.worker, report.fault)
        self.refresh()

    def _introduce(self, stats: Mapping[str, float]) -> None:
        """Say once how much memory the replay takes."""
        for name in stats:
            table, _, what = name.rpartition("/")
            if what == "bytes":
                rows = f"{stats[f'{table}/capacity']:,.0f} rows"
                self.display.note(f"replay: table {table!r}, {rows}, {sized(stats[name])}")

    def record(self, event: Event) -> None:
        """Writes a line of metrics.jsonl, and soon of TensorBoard; lost where the disk is full."""
        stamped = {"kind": event["kind"], "env_steps": self.env_steps, **event}
        stamped["wall_s"] = round(self.elapsed_s, 3)
        try:
            self._metrics.write(stamped)
        except OSError as error:
            self._warn(f"metrics are lost: {error}")
        self._unmirrored.append(stamped)
        if event["kind"] == "episode":
            self._returns.append(event["return"])
        elif event["kind"] == "eval":
            self._last_eval = event
        elif event["kind"] in ("learn", "world"):
            self._learned |= {key: value for key, value in event.items() if "/" in key}
            for name, value in event.items():
                if name.startswith("fault/skipped") and value:
                    self._faults[name.removeprefix("fault/")] = int(value)

    def broke(self, worker: str, fault: Fault, useful: bool = False) -> None:
        """Counts a worker's fault. Raises WorkerFailed unless the worker is to be restarted.

        useful: whether it was of use since its last start though no report of it came.
        """
        if useful:
            self._fruitless[worker] = 0
        self._fruitless[worker] += 1
        self.record({"kind": "fault", "worker": worker, "error": fault.error})
        role, starts = worker.partition("-")[0], self._fruitless[worker]
        if fault.final:
            raise WorkerFailed(f"{worker}: {fault.error}")
        if role not in ("actor", "evaluator"):
            raise WorkerFailed(f"{fault.text}\n{worker} broke: {fault.error}".lstrip())
        if starts == FRUITLESS_STARTS:
            vain = "before it handed over a single row" if role == "actor" else "at once"
            line = f"{worker} broke {starts} times in a row {vain}: {fault.error}"
            raise WorkerFailed(f"{fault.text}\n{line}".lstrip())
        self._starts[worker] += 1
        self._faults["restarts"] += 1
        self._faults["refused"] += fault.environment
        self.display.note(f"{worker} restarted: {fault.error}")

    def rest_s(self, worker: str) -> float:
        """Returns how many seconds a worker that broke rests before it is started again."""
        in_vain = self._fruitless[worker] - 1  # starts, before the last one
        return min(REST_S[0] * 2 ** (in_vain - 1), REST_S[1]) if in_vain > 0 else 0.0

    def refresh(self) -> None:
        """Does what the clock says is due: a line of "run" metrics, the display."""
        self.announce()
        if time.monotonic() >= self._period_ends:
            self._period_ends = time.monotonic() + PERIOD_S
            self._close_period()
        if self.display.due():
            self.display.update(self.status())

    def announce(self) -> None:
        """Says once that an interrupt was heard."""
        if self.interrupted and not self._announced:
            self._announced = True
            name = self.interrupts.name
            self.display.note(f"{name}: saving, then leaving (once more to leave at once)")

    def _close_period(self) -> None:
        """Writes down which part of the period each role waited for another one."""
        self._waits = {
            f"{role} → {partner}": seconds / total
            for role, spent in self._spent.items()
            if (total := sum(spent.values()))
            for partner, seconds in spent.items()
            if partner
        }
        self._spent.clear()
        self.record({"kind": "run", **self._numbers()})
        if self.learning:  # the first time imports for a second, which learning shall not wait for
            self._mirror()

    def _mirror(self) -> None:
        try:
            for event in self._unmirrored:
                self._board.write(event)
        except OSError as error:
            self._warn(f"TensorBoard's lines are lost: {error}")
        self._unmirrored.clear()

    def _warn(self, what: str) -> None:
        """Say that something could not be written, once a minute at most."""
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_EVERY_S
            self.display.note(f"warning: {what}. Training goes on.")

    def _begin_learning(self) -> None:
        if self.learning:
            return
        self.learning = True
        self.record({"kind": "milestone", "what": "first gradient step"})
        self.display.note(f"learning since {time.monotonic() - self._began:.1f} s")

    def status(self) -> Status:
        ratio = self._stats.get("real/ratio_policy", self._stats.get("real/ratio_start"))
        return Status(
            env_steps=self.env_steps,
            steps=self.config.steps,
            elapsed_s=self.elapsed_s,
            updates=self.updates["learner"],
            replay_ratio=ratio,
            episodes=len(self._returns),
            return_mean=float(np.mean(self._returns)) if self._returns else None,
            eval_return=self._last_eval["return_mean"] if self._last_eval else None,
            metrics=dict(self._learned),
            lag={
                group: (float(np.percentile(lag, 50)), float(np.percentile(lag, 95)))
                for group, lag in self._lags.items()
            },
            waits=self._waits,
            faults=dict(self._faults),
        )

    def _numbers(self) -> dict[str, float]:
        status = self.status()
        numbers: dict[str, float] = {"updates": status.updates}
        for pair, share in status.waits.items():  # "actor → replay" is wait/actor_for_replay
            numbers["wait/" + pair.replace(" → ", "_for_").replace(" + ", "_")] = share
        numbers |= {f"fault/{name}": count for name, count in status.faults.items()}
        for group, (p50, p95) in status.lag.items():
            numbers |= {f"lag/{group}_p50": p50, f"lag/{group}_p95": p95}
        return numbers | {f"replay/{name}": value for name, value in self._stats.items()}

    # ---------------------------------------------------------------------------- checkpoints

    @property
    def save_due(self) -> bool:
        return self.env_steps >= self._next_save

    def save(self, agent: Mapping[str, Any], replay: Mapping[str, Any]) -> Path | None:
        """Write a checkpoint of the agent's state by weight group and the replay's → its path.

        None: the disk refused, or the agent holds NaN; older checkpoints stay, and a warning says
        so.
        """
        self.env_steps = max(self.env_steps, _steps_in(replay))  # newer than the last report
        self._next_save = self._multiple_after(self.env_steps)
        began = time.monotonic()
        session = {
            "env_steps": self.env_steps,
            "wall_s": self.elapsed_s,
            "updates": dict(self.updates),
            "starts": dict(self._starts),
            "resumes": self._resumes,
            "envs": self._envs,
        }
        state = {"agent": agent, "replay": replay, "session": session}
        path = self._write(self.folder.checkpoints, self.env_steps, state, checkpoint.KEPT)
        self._unsaved = "" if path else self._problem
        if path is None:
            return None
        self.saved_at = self.env_steps
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        self.display.note(f"saved {path} ({size:.1f} MB, {time.monotonic() - began:.1f} s)")
        return path

    def _keep(self, best: BestEvaluation) -> None:
        """Keep the policy of the best evaluation of the run; of equal ones, of the newer."""
        if self._best_score is not None and best.score < self._best_score:
            return
        state = {"score": best.score, "episodes": best.episodes, "weights": best.weights}
        if self._write(self.folder.best, best.at, state, kept=1):
            self._best_score = best.score

    def _best_so_far(self) -> float | None:
        """Returns the score of the best evaluation of the run that is resumed."""
        try:
            best = checkpoint.read_newest(
                self.folder.best, agent=self.config.agent, env=self.config.env
            )
        except UserError as error:
            self.display.note(f"warning: {error} The best evaluation is counted anew.")
            return None
        score = best.state.get("score") if best else None
        return float(score) if isinstance(score, (int, float)) else None

    def _write(
        self, folder: Path, env_steps: int, state: Mapping[str, Any], kept: int
    ) -> Path | None:
        """Write a checkpoint → its path; None, and a warning, where that cannot be."""
        about = {"agent": self.config.agent, "env": self.config.env}
        try:
            return checkpoint.save(folder, env_steps, state, kept=kept, **about)
        except (OSError, checkpoint.NotFinite) as error:
            self._problem = str(error)
            self._warn(f"no checkpoint at {env_steps:,} steps: {error}")
            return None

    def _multiple_after(self, env_steps: int) -> int:
        every = self.config.train.checkpoint_every
        return (env_steps // every + 1) * every

    # -------------------------------------------------------------------------------- the end

    def __enter__(self) -> Self:
        self.interrupts.open()
        if self._resumes:
            self.record({"kind": "resume", "resumes": self._resumes})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.interrupts.close()
        at_once = kind is KeyboardInterrupt and self.interrupted
        if kind is not KeyboardInterrupt:
            self._mirror()
        self._metrics.close()
        self._board.close()
        if at_once:
            self.display.note(f"left at once, nothing saved. {self.go_on}")
            raise SystemExit(self.interrupts.exit_code)
        if isinstance(error, WorkerFailed):
            raise WorkerFailed(f"{str(error).rstrip('.')}. {self.go_on}") from None
        if isinstance(error, Exception) and not isinstance(error, UserError):
            self.display.note(self.go_on)

    @property
    def go_on(self) -> str:
        """How to go on after the run has ended early."""
        if any(self.folder.checkpoints.glob("ckpt-*")):
            return f"Go on: --resume {self.folder.path}"
        return "It has no checkpoint yet: start a new run."

    def leave(self, line: str, code: int) -> NoReturn:
        """Ends this process now, from whatever thread, with one line of why."""
        self.display.note(line)
        self.display.stop()
        self._metrics.close()
        sys.stdout.flush()
        os._exit(code)

    def take_last_evaluation(self, report: Report) -> None:
        """Account for the evaluation of the policy that was saved."""
        if report.fault:
            self.broke_in_last_evaluation(report.fault)
        for event in report.events:
            self.record(event)
        if report.best:
            self._keep(report.best)

    def broke_in_last_evaluation(self, fault: Fault) -> None:
        """Notes a fault of the last evaluation, which ends nothing: the run is done and saved."""
        self.record({"kind": "fault", "worker": "evaluator", "error": fault.error})
        self.display.note(f"the last evaluation broke: {fault.error}")

    def finish(self) -> int:
        """Say how it ended → the exit code."""
        self._close_period()
        self.display.finish(self.status())
        if self._unsaved:
            self.display.note(self._not_saved())
            return 1
        run = self.folder.path
        if self.interrupted:
            done = self.env_steps >= self.config.steps  # the last evaluation was interrupted
            then = f"Next: python launch.py eval {run}" if done else self.go_on
            self.display.note(f"stopped at {self.env_steps:,} steps. {then}")
            return self.interrupts.exit_code
        scored = ""
        if self._last_eval and self._last_eval.get("at") == self.saved_at:
            mean, std = self._last_eval["return_mean"], self._last_eval["return_std"]
            scored = f" · eval {mean:.1f} ± {std:.1f} ({self._last_eval['episodes']} episodes)"
            if truncated := self._last_eval.get("reached_step_limit"):
                scored += f", {truncated} truncated at {self.config.train.eval_steps:,} steps"
        self.display.note(
            f"done {self.env_steps:,} steps in {clock_time(self.elapsed_s)}{scored}"
            f" · next: python launch.py eval {run}"
        )
        return 0

    def _not_saved(self) -> str:
        """Says that the end of the run is lost, and what is left of it."""
        lost = f"stopped at {self.env_steps:,} steps, not saved: {self._unsaved}."
        if self.saved_at is None:
            return f"{lost} There is no checkpoint."
        return (
            f"{lost} The newest checkpoint is of {self.saved_at:,} steps. "
            f"Go on from there: --resume {self.folder.path}"
        )


def _steps_in(replay: Mapping[str, Any]) -> int:
    """Returns the env steps that the replay's state holds."""
    shards = [state for name, state in replay.items() if name.startswith("shard-")] or [replay]
    return sum(int(shard.get("real", {}).get("limiter", {}).get("steps", 0)) for shard in shards)
