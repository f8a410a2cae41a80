"""Keeps the records of a run: metrics, display, checkpoints, faults and signals."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError, WorkerFailed
from dreamfleet.core.metrics import MetricsWriter
from dreamfleet.core.types import BestEvaluation, Event
from dreamfleet.replay_server.budget import sized
from dreamfleet.runtime.blueprint import Progress
from dreamfleet.runtime.display import Display, Status, clock_time
from dreamfleet.runtime.gauges import Gauges
from dreamfleet.runtime.interrupts import Interrupts
from dreamfleet.runtime.run_folder import TENSORBOARD, RunFolder
from dreamfleet.runtime.tensorboard import TensorBoard
from dreamfleet.runtime.worker_runner import Fault, Report

PERIOD_S: Final = 10.0  # between two "run" lines of metrics; waits are fractions of one period
WARN_EVERY_S: Final = 60.0  # between two warnings that something cannot be written
MOST_FAILED_STARTS: Final = 5  # of one worker in a row; after these the run ends
RESTART_DELAY_S: Final = (0.2, 10.0)  # shortest and longest delay before a failed start is repeated


class Session:
    """Records the reports of all workers, and decides when the run saves and ends.

    Used as a context manager around the training loop. resumed: the state of the checkpoint from
    which the run continues; None for a new run.
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
        self.learning = False  # whether an update was made since this start of the run
        self.interrupts = Interrupts()
        self._earlier_s = float(earlier.get("wall_s", 0.0))
        self._began = time.monotonic()
        self._metrics = MetricsWriter(folder.metrics)
        self._board = TensorBoard(folder.path / TENSORBOARD)
        self._not_on_tensorboard: list[Event] = []
        self._last_eval: Event | None = None
        self._best_score = self._best_so_far() if resumed else None
        self.saved_at = self.env_steps if resumed else None  # env steps of the newest checkpoint
        self._problem = ""  # the reason of the last failure to write a checkpoint
        self._unsaved = ""  # the same, if the newest checkpoint is the one that failed
        self._next_warning = float("-inf")
        self._learned: dict[str, float] = {}  # newest value of each metric of learner and dreamer
        self._stats: Mapping[str, float] = {}
        self._gauges = Gauges(self.env_steps, self.updates["learner"])
        self._faults: Counter[str] = Counter(restarts=0, refused=0)
        self._failed_starts: Counter[str] = Counter()  # of a worker, since it last did any work
        self._starts: Counter[str] = Counter(earlier.get("starts", {}))
        self._envs: dict[str, Any] = dict(earlier.get("envs", {}))  # actor → state of its envs
        self._resumes = int(earlier.get("resumes", -1)) + 1
        self._period_ends = self._began + PERIOD_S
        self._first_step = self.env_steps
        self._next_save = self._multiple_after(self.env_steps)
        self._announced = False  # whether the display has shown that the run was interrupted
        display.wait_for(self._starting())

    # ------------------------------------------------------------------------------ the loop

    @property
    def over(self) -> bool:
        """Whether the run has taken all its steps or was interrupted by a signal."""
        return self.interrupted or self.env_steps >= self.config.steps

    @property
    def interrupted(self) -> bool:
        """Whether a signal (Ctrl-C or SIGTERM) has asked the run to stop."""
        return self.interrupts.number is not None

    @property
    def elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def progress(self, worker: str) -> Progress:
        """Returns the counters and the saved environment state with which a worker starts now.

        worker: the name of the worker, such as `actor-3`.
        """
        starts = self._starts[worker] + self._resumes
        env = self._envs.get(worker, {})
        return Progress(self.env_steps, dict(self.updates), starts, env, self._best_score)

    def take(self, report: Report, stats: Mapping[str, float]) -> None:
        """Records a worker's report: its metrics, updates, waiting times, and its error if any.

        stats: the newest counters of the replay. Raises WorkerFailed if the worker had an error and
        a restart cannot help.
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
        self._gauges.take(report)
        # A start has not failed once the replay has rows of the actor, or the evaluator reports.
        if report.chunks or (role == "evaluator" and not report.fault):
            self._failed_starts[report.worker] = 0
        if report.fault:
            self.broke(report.worker, report.fault)
        self.refresh()

    def _introduce(self, stats: Mapping[str, float]) -> None:
        """Prints the size of each replay table, at the first report of a worker.

        stats: the counters of the replay.
        """
        for name in stats:
            table, _, what = name.rpartition("/")
            if what == "bytes":
                rows = f"{stats[f'{table}/capacity']:,.0f} rows"
                self.display.note(f"replay: table {table!r}, {rows}, {sized(stats[name])}")

    def record(self, event: Event) -> None:
        """Writes an event (a dict of metrics) to metrics.jsonl at once, and to TensorBoard later.

        If the disk is full, the event is lost and a warning is shown.
        """
        stamped = {"kind": event["kind"], "env_steps": self.env_steps, **event}
        stamped["wall_s"] = round(self.elapsed_s, 3)
        try:
            self._metrics.write(stamped)
        except OSError as error:
            self._warn(f"metrics are lost: {error}")
        self._not_on_tensorboard.append(stamped)
        if event["kind"] == "episode":
            self._gauges.add_return(event["return"])
        elif event["kind"] == "eval":
            self._last_eval = event
        elif event["kind"] in ("learn", "world"):
            self._learned |= {key: value for key, value in event.items() if "/" in key}
            for name, value in event.items():
                if name.startswith("fault/skipped") and value:
                    self._faults[name.removeprefix("fault/")] = int(value)

    def broke(self, worker: str, fault: Fault, useful: bool = False) -> None:
        """Counts a worker's failure. Raises WorkerFailed if the worker must not be restarted.

        fault: the error as text. useful: True if the worker has worked since its last start; its
        failures in a row are then counted anew.
        """
        if useful:
            self._failed_starts[worker] = 0
        self._failed_starts[worker] += 1
        self.record({"kind": "fault", "worker": worker, "error": fault.error})
        role, starts = worker.partition("-")[0], self._failed_starts[worker]
        if fault.final:
            raise WorkerFailed(f"{worker}: {fault.error}")
        if role not in ("actor", "evaluator"):
            raise WorkerFailed(f"{fault.text}\n{worker} broke: {fault.error}".lstrip())
        if starts == MOST_FAILED_STARTS:
            when = "before it handed over a single row" if role == "actor" else "at once"
            line = f"{worker} broke {starts} times in a row {when}: {fault.error}"
            raise WorkerFailed(f"{fault.text}\n{line}".lstrip())
        self._starts[worker] += 1
        self._faults["restarts"] += 1
        self._faults["refused"] += fault.environment
        self.display.note(f"{worker} restarted: {fault.error}")

    def rest_s(self, worker: str) -> float:
        """Returns the delay in seconds before a failed worker is started again.

        The delay is 0 after the first of several failures in a row. The delay then doubles each
        time, from the shorter to the longer one of `RESTART_DELAY_S`.
        """
        repeated = self._failed_starts[worker] - 1
        shortest, longest = RESTART_DELAY_S
        return min(shortest * 2 ** (repeated - 1), longest) if repeated > 0 else 0.0

    def refresh(self) -> None:
        """Updates the display if it is due, and writes a line of metrics every ten seconds."""
        self.announce()
        if time.monotonic() >= self._period_ends:
            self._period_ends = time.monotonic() + PERIOD_S
            self._close_period()
        if self.display.due():
            self.display.update(self.status())

    def announce(self) -> None:
        """Prints, after Ctrl-C or SIGTERM, that the run saves and ends. Prints it only once."""
        if self.interrupted and not self._announced:
            self._announced = True
            name = self.interrupts.name
            self.display.note(f"{name}: saving, then leaving (once more to leave at once)")

    def _close_period(self) -> None:
        """Writes the metrics of the last ten seconds. Writes all new metrics to TensorBoard."""
        self.record({"kind": "run", **self._numbers()})
        # The first write imports TensorBoard's format, which takes a second: not before learning.
        if self.learning:
            self._write_to_tensorboard()

    def _write_to_tensorboard(self) -> None:
        try:
            for event in self._not_on_tensorboard:
                self._board.write(event)
        except OSError as error:
            self._warn(f"TensorBoard's lines are lost: {error}")
        self._not_on_tensorboard.clear()

    def _warn(self, what: str) -> None:
        """Prints a warning that a file could not be written, at most once a minute."""
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_EVERY_S
            self.display.note(f"warning: {what}. Training goes on.")

    def _begin_learning(self) -> None:
        if self.learning:
            return
        self.learning = True
        self._gauges.forget_waits()
        self.record({"kind": "milestone", "what": "first gradient step"})
        self.display.note(f"first gradient step after {time.monotonic() - self._began:.1f} s")

    def status(self) -> Status:
        """Returns the present counters and metrics of the run, for the display."""
        ratio = self._stats.get("real/ratio_policy", self._stats.get("real/ratio_start"))
        return Status(
            env_steps=self.env_steps,
            steps=self.config.steps,
            elapsed_s=self.elapsed_s,
            updates=self.updates["learner"],
            replay_ratio=ratio,
            episodes=self._gauges.episodes,
            return_mean=self._gauges.return_mean,
            eval_return=self._last_eval["return_mean"] if self._last_eval else None,
            phase=self._phase(),
            metrics=dict(self._learned),
            lag=self._gauges.lag,
            # In one thread all parts take turns, so that no wait slows another part down.
            waits={} if self.config.local else self._gauges.waits,
            faults=dict(self._faults),
        )

    def _starting(self) -> str:
        """Returns a text for the display: what the run does before the first report of a worker."""
        config = self.config
        if config.local:
            return "building the agent and the replay"
        if config.address:
            return f"joining the Ray cluster at {config.address}, and building the agent"
        return "starting Ray, and building the agent"

    def _phase(self) -> str:
        """Returns a text for the display: what the run does or waits for; "" while it learns."""
        if self.interrupted:
            return "stopping"
        if self.over and self.saved_at == self.env_steps:
            return self._last_evaluation()
        if self.over:
            return "all steps taken: collecting the last reports, then saving"
        if self.learning:
            return ""
        if self.env_steps == self._first_step:
            return "waiting for the first rows"
        return "collecting rows until learning starts"

    def _last_evaluation(self) -> str:
        train = self.config.train
        return f"playing {train.eval_episodes} evaluation episodes" if train.eval_every else ""

    def _numbers(self) -> dict[str, float]:
        """Returns the metrics of the last ten seconds: speeds, waiting times, faults and others."""
        updates = self.updates["learner"]
        numbers: dict[str, float] = {"updates": updates}
        numbers |= self._gauges.close_period(self.env_steps, updates)
        numbers |= {f"fault/{name}": count for name, count in self._faults.items()}
        return numbers | {f"replay/{name}": value for name, value in self._stats.items()}

    # ---------------------------------------------------------------------------- checkpoints

    @property
    def save_due(self) -> bool:
        return self.env_steps >= self._next_save

    def save(self, agent: Mapping[str, Any], replay: Mapping[str, Any]) -> Path | None:
        """Writes a checkpoint and returns its path.

        agent: weight group (`world` or `policy`) → saved state. replay: the state of the replay. If
        the disk is full or the agent's state contains NaN, shows a warning and returns None.
        """
        self.display.wait_for("saving a checkpoint")
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
        self.display.wait_for("")
        self._unsaved = "" if path else self._problem
        if path is None:
            return None
        self.saved_at = self.env_steps
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        self.display.note(f"saved {path} ({size:.1f} MB, {time.monotonic() - began:.1f} s)")
        if self.over and not self.interrupted:
            self.display.wait_for(self._last_evaluation())
        return path

    def _keep(self, best: BestEvaluation) -> None:
        """Saves the policy of an evaluation, unless an earlier evaluation of the run scored higher.

        best: the score and the weights of the evaluation.
        """
        if self._best_score is not None and best.score < self._best_score:
            return
        state = {"score": best.score, "episodes": best.episodes, "weights": best.weights}
        if self._write(self.folder.best, best.at, state, kept=1):
            self._best_score = best.score

    def _best_so_far(self) -> float | None:
        """Returns the best evaluation score before the run was resumed; None if there is none."""
        try:
            best = checkpoint.read_newest(
                self.folder.best, agent=self.config.agent, env=self.config.env
            )
        except UserError as error:
            self.display.note(f"warning: {error} The next evaluation counts as the best so far.")
            return None
        score = best.state.get("score") if best else None
        return float(score) if isinstance(score, (int, float)) else None

    def _write(
        self, folder: Path, env_steps: int, state: Mapping[str, Any], kept: int
    ) -> Path | None:
        """Writes a checkpoint. Returns its path, or None and shows a warning if writing fails.

        folder: the folder of the checkpoints. state: the content. kept: how many of the newest
        checkpoints are kept.
        """
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
            self._write_to_tensorboard()
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
        """A sentence for the user: how to continue a run that ended early."""
        if any(self.folder.checkpoints.glob("ckpt-*")):
            return f"Go on: --resume {self.folder.path}"
        return "It has no checkpoint yet: start a new run."

    def leave(self, line: str, code: int) -> NoReturn:
        """Prints a line and ends this process at once with the exit code `code`, from any thread.

        line: the reason, for the user.
        """
        self.display.note(line)
        self.display.stop()
        self._metrics.close()
        sys.stdout.flush()
        os._exit(code)

    def take_last_evaluation(self, report: Report) -> None:
        """Records the evaluation of the policy in the run's last checkpoint.

        report: the report of the evaluator, with the metrics of the evaluation or its error.
        """
        if report.fault:
            self.broke_in_last_evaluation(report.fault)
        for event in report.events:
            self.record(event)
        if report.best:
            self._keep(report.best)

    def broke_in_last_evaluation(self, fault: Fault) -> None:
        """Records that the evaluation at the end of the run failed.

        The run still counts as complete.
        """
        self.record({"kind": "fault", "worker": "evaluator", "error": fault.error})
        self.display.note(f"the last evaluation broke: {fault.error}")

    def finish(self) -> int:
        """Prints how the run ended, and returns the exit code."""
        self._close_period()
        self.display.wait_for("")
        self.display.finish(replace(self.status(), phase=""))
        if not self.config.local:  # takes seconds, but the last line shall say how the run ended
            self.display.note("stopping the processes …")
        return self._say_how_it_ended()

    def _say_how_it_ended(self) -> int:
        if self._unsaved:
            self.display.note(self._not_saved())
            return 1
        run = self.folder.path
        if self.interrupted:
            done = self.env_steps >= self.config.steps  # only the last evaluation is missing
            then = f"Next: python launch.py eval {run}" if done else self.go_on
            self.display.note(f"stopped at {self.env_steps:,} steps. {then}")
            return self.interrupts.exit_code
        scored = ""
        if self._last_eval and self._last_eval.get("at") == self.saved_at:
            mean, std = self._last_eval["return_mean"], self._last_eval["return_std"]
            scored = f" · eval {mean:.1f} ± {std:.1f} ({self._last_eval['episodes']} episodes)"
            if truncated := self._last_eval.get("reached_step_limit"):
                scored += f", {truncated} truncated at {self.config.train.eval_steps:,} steps"
            rate = self._last_eval.get("success_mean", self._last_eval.get("is_success_mean"))
            scored += "" if rate is None else f", success {rate:.0%}"
            if self._best_score is not None and self._best_score > mean + std:
                scored += f" · best eval {self._best_score:.1f}: eval --checkpoint best"
        self.display.note(
            f"done {self.env_steps:,} steps in {clock_time(self.elapsed_s)}{scored}"
            f" · next: python launch.py eval {run}"
        )
        return 0

    def _not_saved(self) -> str:
        """Returns a message for a run whose last save failed. It names the newest checkpoint."""
        lost = f"stopped at {self.env_steps:,} steps, not saved: {self._unsaved}."
        if self.saved_at is None:
            return f"{lost} There is no checkpoint."
        return (
            f"{lost} The newest checkpoint is of {self.saved_at:,} steps. "
            f"Go on from there: --resume {self.folder.path}"
        )


def _steps_in(replay: Mapping[str, Any]) -> int:
    """Returns the number of env steps in a replay's saved state, summed over all its shards."""
    shards = [state for name, state in replay.items() if name.startswith("shard-")] or [replay]
    return sum(int(shard.get("real", {}).get("limiter", {}).get("steps", 0)) for shard in shards)
