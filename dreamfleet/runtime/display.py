"""Shows a run on the screen: as a live panel on a terminal, otherwise as plain lines."""

from __future__ import annotations

import signal
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from dreamfleet.runtime import metric_reference
from dreamfleet.runtime.advice import advice, in_words
from dreamfleet.runtime.interrupts import SIGNALS
from dreamfleet.runtime.terminal import without_echo_of_control_keys

LIVE_EVERY_S: Final = 0.25
PLAIN_EVERY_S: Final = 5.0
SPEED_OVER_S: Final = 15.0  # speeds are means over this time
SAY_AFTER_S: Final = 1.0  # a pause that is longer is explained in the plain output
REPEAT_EVERY_S: Final = 30.0  # a pause that goes on is mentioned again
MOST_METRICS: Final = 4  # of the agent, in the panel
MOST_WAITS: Final = 3
BAR: Final = 20  # characters
LABEL: Final = 10  # columns before the values of a row
SPACE: Final = "\u00a0"  # a space at which no line is broken


@dataclass(frozen=True)
class Status:
    """The counters and metrics of a run at one moment, which the display shows.

    Speeds and the time left are not included: the display computes them.
    """

    env_steps: int
    steps: int  # env steps at which the run ends
    elapsed_s: float
    updates: int = 0  # of the policy
    replay_ratio: float | None = None  # samples for the policy, or for its dreams, per env step
    episodes: int = 0  # training episodes in `return_mean`
    return_mean: float | None = None  # of the last 100 training episodes
    eval_return: float | None = None  # mean return of the last evaluation
    phase: str = ""  # what the run does or waits for, unless it is learning
    metrics: Mapping[str, float] = field(default_factory=dict)  # newest values by `group/name`
    lag: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # weight group → median and 95th percentile, in versions
    waits: Mapping[str, float] = field(default_factory=dict)  # "actor → replay" → share of its time
    faults: Mapping[str, int] = field(default_factory=dict)  # "restarts", "refused", … → count


class Display:
    """Shows the status of a run on stderr: a live panel on a terminal, plain lines elsewhere.

    Used as a context manager. title: the first line of the panel. clock: a function that returns
    the time in seconds.
    """

    def __init__(
        self,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._history: deque[Status] = deque()
        self._shown: Status | None = None
        self._next = float("-inf")
        self._waits_for, self._waits_since, self._said_at = "", 0.0, 0.0
        self._advice = ""
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        # Without a status there is nothing to keep on the screen: the live view is transient.
        self._live = (
            Live(Group(), console=self._console, auto_refresh=False, transient=True)
            if live
            else None
        )
        self._stopping = threading.Event()
        self._restore_echo: Callable[[], None] = lambda: None

    def due(self) -> bool:
        """Returns whether enough time has passed for `update` to show the next status.

        A caller asks this before it computes a status, which takes time.
        """
        return self._clock() >= self._next

    def update(self, status: Status) -> None:
        """Shows the status of the run, at most once in `LIVE_EVERY_S` or `PLAIN_EVERY_S` seconds.

        `LIVE_EVERY_S` applies to a live panel, `PLAIN_EVERY_S` to plain lines. A call that comes
        earlier does nothing.
        """
        if not self.due():
            return
        self._next = self._clock() + (LIVE_EVERY_S if self._live else PLAIN_EVERY_S)
        self._waits_for = ""
        self._show(status)

    def finish(self, status: Status) -> None:
        """Shows the last status of the run at once, unless the screen already shows this status."""
        if status != self._shown:
            self._show(status)

    def note(self, line: str) -> None:
        """Prints one line that stays on the screen, such as the path of a saved checkpoint."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def wait_for(self, what: str) -> None:
        """Shows what the run waits for.

        what: the text to show, such as `starting Ray`; "" when the wait has ended. Plain output
        shows the text after `SAY_AFTER_S` seconds.
        """
        self._waits_since = self._said_at = time.monotonic()
        self._waits_for = what
        self._refresh()

    def __enter__(self) -> Self:
        if self._live:
            self._restore_echo = without_echo_of_control_keys(self._console.file)
            self._live.start()
        threading.Thread(target=self._tick, daemon=True, name="display").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops refreshing the screen. The last status of the run stays visible."""
        self._stopping.set()
        self._waits_for = ""
        if self._live:
            self._refresh()
            self._live.stop()
        self._restore_echo()

    def _show(self, status: Status) -> None:
        self._shown = status
        self._history.append(status)
        while (
            len(self._history) > 2 and status.elapsed_s - self._history[1].elapsed_s > SPEED_OVER_S
        ):
            self._history.popleft()
        if self._live:
            self._live.transient = False
            self._refresh()
            return
        speeds = _speeds(self._history[0], status)
        self._console.print(plain(status, *speeds), markup=False, soft_wrap=True)
        found = _advice(status)
        if found != self._advice:
            self._advice = found
            if found:
                self.note(f"advice: {found}")

    def _refresh(self) -> None:
        """Draws the live panel again: the last status, and below it the text of `wait_for`."""
        if not self._live:
            return
        parts: list[RenderableType] = []
        if self._shown:
            speeds = _speeds(self._history[0], self._shown)
            parts.append(panel(self.title, self._shown, *speeds))
        if self._waits_for:
            seconds = time.monotonic() - self._waits_since
            text = f"{self._waits_for} …" + (f" {seconds:.0f} s" if seconds >= 2 else "")
            parts.append(Spinner("dots", Text(text, no_wrap=True, overflow="ellipsis")))
        self._live.update(Group(*parts), refresh=True)

    def _tick(self) -> None:
        """Runs in a thread: shows again and again how many seconds the present wait has lasted.

        The wait is the one that `wait_for` began to show.
        """
        # While Ray starts, `Interrupts` ignores Ctrl-C but blocks it in the main thread, where it
        # stays pending. In a thread that did not block Ctrl-C, it would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while not self._stopping.wait(LIVE_EVERY_S):
            what, now = self._waits_for, time.monotonic()
            if not what:
                continue
            if self._live:
                self._refresh()
                continue
            first = self._said_at == self._waits_since
            if now - self._said_at > (SAY_AFTER_S if first else REPEAT_EVERY_S):
                seconds = "" if first else f" {now - self._waits_since:.0f} s"
                self._said_at = now
                self.note(f"{what} …{seconds}")


# -------------------------------------------------------------------------------------- the texts


def panel(
    title: str, status: Status, env_speed: float | None, update_speed: float | None
) -> RenderableType:
    """Returns the live panel for a terminal: the title and the status of a run, line by line.

    status: the counters and metrics of the run. env_speed: env steps per second; None: unknown.
    update_speed: policy updates per second; None: unknown.
    """
    return _View(title, status, env_speed, update_speed)


@dataclass(frozen=True)
class _View:
    title: str
    status: Status
    env_speed: float | None
    update_speed: float | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for line in textwrap.wrap(self.title, width):
            yield Text(line, "bold")
        for label, items in _rows(self.status, self.env_speed, self.update_speed):
            for line in wrapped(label, items, width):
                text = Text(line, no_wrap=True, overflow="crop")
                text.stylize("dim", 0, LABEL)
                text.highlight_regex("━+", "cyan")
                if label in ("return", "advice", "faults"):
                    text.stylize("green" if label == "return" else "yellow", LABEL)
                yield text


def wrapped(label: str, items: Sequence[str], width: int) -> list[str]:
    """Returns a row of the panel (a label and its values) as lines of at most `width` columns.

    label: the word at the beginning of the row. items: the values as text.
    """
    room = max(width - LABEL, 10)
    text = "   ".join(_unbroken(item, room) for item in items)
    lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
    starts = [label, *[""] * (len(lines) - 1)]
    return [
        (start.ljust(LABEL) + line.replace(SPACE, " ")).rstrip()
        for start, line in zip(starts, lines, strict=True)
    ]


def _unbroken(item: str, room: int) -> str:
    """Replaces spaces in `item` by non-breaking spaces, so that no line is broken inside `item`.

    item: a name and a value, such as `replay ratio 1.0`. A sentence (with a full stop at the end)
    is returned unchanged. If `item` is longer than `room` columns, only its last space is replaced.
    """
    if item.endswith("."):
        return item
    if len(item) <= room:
        return item.replace(" ", SPACE)
    name, _, value = item.rpartition(" ")
    return f"{name}{SPACE}{value}"


def _rows(
    status: Status, env_speed: float | None, update_speed: float | None
) -> Iterator[tuple[str, list[str]]]:
    """Yields the rows of the panel that shows a run: a label and a list of values for each row.

    env_speed: env steps per second; None: unknown. update_speed: policy updates per second; None:
    unknown.
    """
    share = _progress(status)
    done = round(BAR * share)
    yield (
        "progress",
        [
            "━" * done + "─" * (BAR - done),
            f"{status.env_steps:,} of {status.steps:,} steps",
            f"{share:.0%}",
            f"{clock_time(status.elapsed_s)} passed",
            f"{_time_left(status, env_speed)} left",
        ],
    )
    if status.phase:
        yield "now", [status.phase]
    elif not status.updates and status.env_steps < status.steps:
        yield "now", ["collecting rows before the first policy update"]
    n = min(100, status.episodes)
    over = f" (mean of {n} episode{'s' * (n > 1)})" if n else ""
    yield (
        "return",
        [
            f"training {_number(status.return_mean)}{over}",
            f"last evaluation {_number(status.eval_return)}",
        ],
    )
    yield (
        "speed",
        [
            f"{_number(env_speed)} steps/s",
            f"{_number(update_speed)} updates/s",
            f"replay ratio {_number(status.replay_ratio)}",
        ],
    )
    if metrics := telling(status.metrics):
        yield "learning", metrics
    if status.lag:
        ages = [f"{name} {_versions(median)}" for name, (median, _) in status.lag.items()]
        yield "weights", [f"{age} old" for age in ages]
    if waits := _waits(status):
        yield "waiting", waits
    if found := _advice(status):
        yield "advice", [found]
    if faults := _faults(status):
        yield "faults", faults


def plain(status: Status, env_speed: float | None, update_speed: float | None) -> str:
    """Returns the status of a run (its counters and metrics) as one line of plain text.

    env_speed: env steps per second. update_speed: policy updates per second. None: unknown.
    """
    words = [
        f"{status.env_steps:,}/{status.steps:,} steps {_progress(status):.0%}",
        *([status.phase] if status.phase else []),
        f"return {_number(status.return_mean)}",
        f"evaluation {_number(status.eval_return)}",
        f"{_number(env_speed)} steps/s",
        f"{_number(update_speed)} updates/s",
        f"replay ratio {_number(status.replay_ratio)}",
        *telling(status.metrics)[:2],
        *_waits(status)[:1],
        *_faults(status),
        f"{clock_time(status.elapsed_s)} passed",
        f"{_time_left(status, env_speed)} left",
    ]
    return "  ".join(words)


def telling(metrics: Mapping[str, float]) -> list[str]:
    """Returns up to `MOST_METRICS` metrics as texts for the panel, each with a name and a value.

    Metrics that have a name for the panel in `metrics.yaml` come first. Metrics that `metrics.yaml`
    does not describe follow. Other metrics are left out.
    """
    known, own = [], []
    for name, value in metrics.items():
        described = metric_reference.find(name)
        if described is None:
            own.append(f"{name} {value:.3g}")
        elif described.panel:
            known.append(f"{described.panel} {described.shown(value)}")
    return [*known, *own][:MOST_METRICS]


def clock_time(seconds: float) -> str:
    """Returns a duration with minutes and seconds: 75 seconds are `1:15`, 3675 are `1:01:15`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _progress(status: Status) -> float:
    return min(1.0, status.env_steps / status.steps)


def _advice(status: Status) -> str:
    """Returns advice on how to make a run faster, or "" before the first update and at the end.

    Before the first policy update the learner always waits for rows, which says nothing about its
    speed.
    """
    going_on = status.updates and status.env_steps < status.steps
    return advice(status.waits) if going_on else ""


def _waits(status: Status) -> list[str]:
    longest = sorted(status.waits.items(), key=lambda item: -item[1])[:MOST_WAITS]
    return [f"{in_words(pair)} {share:.0%}" for pair, share in longest if share >= 0.01]


def _faults(status: Status) -> list[str]:
    return [f"{name.replace('_', ' ')} {n}" for name, n in status.faults.items() if n]


def _speeds(before: Status, now: Status) -> tuple[float | None, float | None]:
    """Returns (env steps per second, policy updates per second) between two statuses of a run.

    A status holds the run's counters at one moment. Returns (None, None) if no time has passed
    between `before` and `now`.
    """
    span = now.elapsed_s - before.elapsed_s
    if span <= 0:
        return None, None
    return (now.env_steps - before.env_steps) / span, (now.updates - before.updates) / span


def _time_left(status: Status, env_speed: float | None) -> str:
    left = max(0, status.steps - status.env_steps)
    return clock_time(left / env_speed) if env_speed else "–" if left else clock_time(0)


def _versions(count: float) -> str:
    return f"{count:g} version" + "s" * (count != 1)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
