"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LIVE_EVERY_S: Final = 0.25
PLAIN_EVERY_S: Final = 5.0
SPEED_OVER_S: Final = 15.0  # speeds are means over this long
GROUPS: Final = ("loss", "model", "dream", "gate", "policy", "explore")  # of metrics that are shown


@dataclass(frozen=True)
class Status:
    """A run at one moment, in counters and shares; the display derives speeds and the ETA."""

    env_steps: int
    steps: int  # env steps to reach
    elapsed_s: float
    updates: int = 0  # of the policy
    replay_ratio: float | None = None  # samples for the policy per env step
    episodes: int = 0  # finished while training
    return_mean: float | None = None  # of the last 100 of them
    eval_return: float | None = None  # mean of the last evaluation
    metrics: Mapping[str, float] = field(default_factory=dict)  # `group/name`, the newest of each
    lag: Mapping[str, tuple[float, float]] = field(
        default_factory=dict
    )  # group → p50, p95 versions
    waits: Mapping[str, float] = field(default_factory=dict)  # "actor → replay" → share of its time
    faults: Mapping[str, int] = field(default_factory=dict)  # "restarts", "refused", … → count


class Display:
    """Shows a run on stderr. Use as a context; the last status stays on the screen.

    `title` names the run. `clock`: seconds, for the pace of refreshing only.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._history: deque[Status] = deque()
        self._shown: Status | None = None
        self._next = float("-inf")
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False) if live else None

    def due(self) -> bool:
        """Tells whether `update` would show anything now: building a status costs more."""
        return self._clock() >= self._next

    def update(self, status: Status) -> None:
        """Show `status`, unless the last one was a moment ago."""
        if not self.due():
            return
        self._next = self._clock() + (LIVE_EVERY_S if self._live else PLAIN_EVERY_S)
        self._show(status)

    def finish(self, status: Status) -> None:
        """Show `status` whatever the pace: the run is over."""
        if status != self._shown:
            self._show(status)

    def note(self, line: str) -> None:
        """One line that stays: an address, a saved checkpoint, a fault."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves the screen as it is."""
        if self._live:
            self._live.stop()

    def _show(self, status: Status) -> None:
        self._shown = status
        self._history.append(status)
        while (
            len(self._history) > 2 and status.elapsed_s - self._history[1].elapsed_s > SPEED_OVER_S
        ):
            self._history.popleft()
        speeds = _speeds(self._history[0], status)
        if self._live:
            self._live.update(panel(self._title, status, *speeds), refresh=True)
        else:
            self._console.print(plain(status, *speeds), markup=False, soft_wrap=True)


def panel(
    title: str, status: Status, env_speed: float | None, update_speed: float | None
) -> RenderableType:
    """Returns the live view. Speeds are per second."""
    share = min(1.0, status.env_steps / status.steps)
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=1.0, completed=share, width=24, complete_style="cyan"),
        Text.assemble((f"{status.env_steps:,}", "bold"), f" / {status.steps:,} steps"),
        Text(f"{share:.0%}", "bold cyan"),
        Text.assemble(clock_time(status.elapsed_s), ("  ETA ", "dim"), _eta(status, env_speed)),
    )
    body = Table.grid(padding=(0, 2))
    body.add_column(style="dim")
    body.add_column()
    body.add_row(
        "return",
        Text.assemble(
            (_number(status.return_mean), "bold green"),
            (f" mean of {min(100, status.episodes)} episodes   eval ", "dim"),
            (_number(status.eval_return), "bold green"),
        ),
    )
    body.add_row(
        "speed",
        f"{_number(env_speed)} env steps/s   {_number(update_speed)} updates/s"
        f"   {status.updates:,} updates",
    )
    body.add_row("replay", f"ratio {_number(status.replay_ratio)}")
    for group, parts in _by_group(status.metrics).items():
        body.add_row(group, "   ".join(parts))
    if status.lag:
        parts = [f"{name} {p50:g} / {p95:g}" for name, (p50, p95) in status.lag.items()]
        body.add_row("lag", Text.assemble("   ".join(parts), ("  versions, p50 / p95", "dim")))
    if status.waits:
        parts = [f"{who} {part:.0%}" for who, part in _longest(status.waits)]
        body.add_row("waits", Text("   ".join(parts)))
    if status.faults:
        parts = [f"{name} {count}" for name, count in status.faults.items()]
        style = "yellow" if any(status.faults.values()) else "dim"
        body.add_row("faults", Text("   ".join(parts), style))
    return Panel(
        Group(head, Text(), body),
        title=Text(title, "bold"),
        title_align="left",
        border_style="cyan",
        padding=(0, 1),
        expand=False,
    )


def plain(status: Status, env_speed: float | None, update_speed: float | None) -> str:
    """Returns the same as `panel` shows, on one line."""
    words = [
        f"step {status.env_steps}/{status.steps} {min(1.0, status.env_steps / status.steps):.0%}",
        f"env {_number(env_speed)}/s",
        f"learn {_number(update_speed)}/s",
        f"ratio {_number(status.replay_ratio)}",
        f"return {_number(status.return_mean)} (eval {_number(status.eval_return)})",
        f"dream {_share(status.metrics.get('dream/share'))}",
    ]
    if status.lag:
        words.append(f"lag p95 {max(p95 for _, p95 in status.lag.values()):g}")
    if status.waits:
        who, part = _longest(status.waits)[0]
        words.append(f"waits {who} {part:.0%}")
    words += [f"{name} {count}" for name, count in status.faults.items() if count]
    words.append(f"{clock_time(status.elapsed_s)} ETA {_eta(status, env_speed)}")
    return "  ".join(words)


def clock_time(seconds: float) -> str:
    """`75` → `1:15`, `3675` → `1:01:15`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _speeds(before: Status, now: Status) -> tuple[float | None, float | None]:
    """Env steps and updates a second; unknown at the first status, as a run may be resumed."""
    span = now.elapsed_s - before.elapsed_s
    if span <= 0:
        return None, None
    return (now.env_steps - before.env_steps) / span, (now.updates - before.updates) / span


def _eta(status: Status, env_speed: float | None) -> str:
    left = max(0, status.steps - status.env_steps)
    return clock_time(left / env_speed) if env_speed else "–" if left else clock_time(0)


def _longest(waits: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(waits.items(), key=lambda item: -item[1])[:4]


def _by_group(metrics: Mapping[str, float]) -> dict[str, list[str]]:
    """Returns the metrics of the groups that are shown, in words; empty groups are left out."""
    shown: dict[str, list[str]] = {group: [] for group in GROUPS}
    for key, value in metrics.items():
        group, _, name = key.partition("/")
        if group in shown:
            shown[group].append(f"{name.replace('_', ' ')} {value:.3g}")
    return {group: parts for group, parts in shown.items() if parts}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
