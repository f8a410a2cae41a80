"""What a run keeps account of in every wiring: metrics, display, checkpoints, faults, signals."""

from __future__ import annotations

import signal
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import numpy as np

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import WorkerFailed
from dreamfleet.core.metrics import MetricsWriter
from dreamfleet.core.types import Event
from dreamfleet.replay_server.budget import sized
from dreamfleet.runtime.blueprint import Progress
from dreamfleet.runtime.display import Display, Status, clock_time
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.tensorboard import TensorBoard
from dreamfleet.runtime.turns import Fault, Report

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
PERIOD_S: Final = 10.0  # between two "run" lines of metrics; shares of time are of the last period
FRUITLESS_STARTS: Final = 5  # of one worker in a row, after which the run gives up


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
        self.interrupted_by: int | None = None  # a signal's number
        self._earlier_s = float(earlier.get("wall_s", 0.0))
        self._began = time.monotonic()
        self._metrics = MetricsWriter(folder.metrics)
        self._board = TensorBoard(folder.path / "tensorboard")
        self._unmirrored: list[Event] = []
        self._returns: deque[float] = deque(maxlen=100)
        self._last_eval: Event | None = None
        self._learned: dict[str, float] = {}  # the newest of every metric of learner and dreamer
        self._stats: Mapping[str, float] = {}
        self._published: Counter[str] = Counter()
        self._lags: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=500))
        self._faults: Counter[str] = Counter(restarts=0, refused=0)
        self._fruitless: Counter[str] = Counter()  # starts of a worker since it last was of use
        self._starts: Counter[str] = Counter(earlier.get("starts", {}))
        self._envs: dict[str, Any] = dict(earlier.get("envs", {}))  # actor → state of its envs
        self._resumes = int(earlier.get("resumes", -1)) + 1
        self._spent: dict[str, dict[str, float]] = defaultdict(  # role → whom, "" when busy → s
            lambda: defaultdict(float)
        )
        self._waits: dict[str, float] = {}
        self._period_ends = self._began + PERIOD_S
        self._next_save = self._multiple_after(self.env_steps)
        self._handlers: dict[int, Any] = {}
        self._announced = False  # that it was interrupted

    # ------------------------------------------------------------------------------ the loop

    @property
    def over(self) -> bool:
        """Enough steps, or somebody asked to stop."""
        return self.interrupted_by is not None or self.env_steps >= self.config.steps

    @property
    def elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

    def progress(self, worker: str) -> Progress:
        """Where a worker that is started now takes up its work."""
        starts = self._starts[worker] + self._resumes
        return Progress(self.env_steps, dict(self.updates), starts, self._envs.get(worker, {}))

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
            for whom, seconds in (("", report.busy_s), *report.waits_s.items()):
                self._spent[role][whom] += seconds
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
        """One line of metrics.jsonl, and soon of TensorBoard."""
        stamped = {"kind": event["kind"], "env_steps": self.env_steps, **event}
        stamped["wall_s"] = round(self.elapsed_s, 3)
        self._metrics.write(stamped)
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

    def broke(self, worker: str, fault: Fault) -> None:
        """A worker broke. Returns when it is to be started again, else raises WorkerFailed."""
        self._fruitless[worker] += 1
        self.record({"kind": "fault", "worker": worker, "error": fault.error})
        role, starts = worker.partition("-")[0], self._fruitless[worker]
        if fault.final:
            raise WorkerFailed(f"{worker}: {fault.error}")
        if role not in ("actor", "evaluator"):
            raise WorkerFailed(f"{fault.text}\n{worker} broke: {fault.error}")
        if starts == FRUITLESS_STARTS:
            vain = "before it handed over a single row" if role == "actor" else "at once"
            raise WorkerFailed(
                f"{fault.text}\n{worker} broke {starts} times in a row {vain}: {fault.error}"
            )
        self._starts[worker] += 1
        self._faults["restarts"] += 1
        self._faults["refused"] += fault.environment
        self.display.note(f"{worker} restarted: {fault.error}")

    def refresh(self) -> None:
        """Whatever the clock says is due: a line of "run" metrics, the display."""
        if self.interrupted_by is not None and not self._announced:
            self._announced = True
            name = signal.Signals(self.interrupted_by).name
            self.display.note(f"{name}: saving, then leaving (once more to leave at once)")
        if time.monotonic() >= self._period_ends:
            self._period_ends = time.monotonic() + PERIOD_S
            self._close_period()
        if self.display.due():
            self.display.update(self.status())

    def _close_period(self) -> None:
        """Sum up who waited for whom in the period that is over, and write it down."""
        self._waits = {
            f"{role} → {whom}": seconds / total
            for role, spent in self._spent.items()
            if (total := sum(spent.values()))
            for whom, seconds in spent.items()
            if whom
        }
        self._spent.clear()
        self.record({"kind": "run", **self._numbers()})
        if (
            self.learning
        ):  # the first one takes a second of imports, which learning shall not wait for
            self._mirror()

    def _mirror(self) -> None:
        for event in self._unmirrored:
            self._board.write(event)
        self._unmirrored.clear()

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

    def save(self, agent: Mapping[str, Any], replay: Mapping[str, Any]) -> Path:
        """Write a checkpoint: the agent's state by weight group, and the replay's."""
        began = time.monotonic()
        session = {
            "env_steps": self.env_steps,
            "wall_s": self.elapsed_s,
            "updates": dict(self.updates),
            "starts": dict(self._starts),
            "resumes": self._resumes,
            "envs": self._envs,
        }
        path = checkpoint.save(
            self.folder.checkpoints,
            self.env_steps,
            {"agent": agent, "replay": replay, "session": session},
            agent=self.config.agent,
            env=self.config.env,
        )
        self._next_save = self._multiple_after(self.env_steps)
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        self.display.note(f"saved {path} ({size:.1f} MB, {time.monotonic() - began:.1f} s)")
        return path

    def _multiple_after(self, env_steps: int) -> int:
        every = self.config.train.checkpoint_every
        return (env_steps // every + 1) * every

    # -------------------------------------------------------------------------------- the end

    def __enter__(self) -> Self:
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        at_once = kind is KeyboardInterrupt
        if not at_once:
            self._mirror()
        self._metrics.close()
        self._board.close()
        if at_once and self.interrupted_by is not None:
            raise SystemExit(128 + self.interrupted_by)

    def listen(self) -> None:
        """Take the signals that end a run, once more from whoever took them since."""
        for number in SIGNALS:
            signal.signal(number, self._interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def hold(self) -> None:
        """Keep a Ctrl-C waiting until `listen`; processes started meanwhile ignore it for good."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends the run in order; a second one ends it at once."""
        if self.interrupted_by is not None:
            raise KeyboardInterrupt
        self.interrupted_by = number  # no more than this: a handler may interrupt a print

    def finish(self) -> int:
        """Say how it ended → the exit code."""
        self._close_period()
        self.display.finish(self.status())
        run = self.folder.path
        if self.interrupted_by is not None:
            self.display.note(f"stopped at {self.env_steps:,} steps. Go on: --resume {run}")
            return 128 + self.interrupted_by
        scored = ""
        if self._last_eval:
            mean, std = self._last_eval["return_mean"], self._last_eval["return_std"]
            scored = f" · eval {mean:.1f} ± {std:.1f} ({self._last_eval['episodes']} episodes)"
        self.display.note(
            f"done {self.env_steps:,} steps in {clock_time(self.elapsed_s)}{scored}"
            f" · next: python launch.py eval {run}"
        )
        return 0
