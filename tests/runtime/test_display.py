from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from dreamfleet.runtime import display as display_module
from dreamfleet.runtime.display import Display, Status, clock_time, panel, plain, telling

STATUS = Status(
    env_steps=2480,
    steps=6000,
    elapsed_s=75,
    updates=3100,
    replay_ratio=4.0,
    episodes=88,
    return_mean=187.3,
    eval_return=203.1,
    metrics={"loss/value": 0.0794, "dream/share": 0.8, "explore/epsilon": 0.25},
    lag={"world": (1, 3), "policy": (0, 2)},
    waits={"actor → replay": 0.12, "learner → dreamer": 0.4},
    faults={"restarts": 1, "refused": 0},
)


def show(terminal: bool, statuses, pace: float = 60.0, **console) -> str:
    """Shows statuses on a fake screen and returns the text that was printed.

    terminal: whether the screen is a terminal. pace: seconds between two statuses.
    """
    out = io.StringIO()
    clock = [0.0]
    display = Display(
        "a run",
        Console(file=out, force_terminal=terminal, width=100, **console),
        clock=lambda: clock[0],
    )
    with display:
        for status in statuses:
            display.update(status)
            clock[0] += pace
        display.note("saved [1, 2]")
        display.finish(statuses[-1])
    return out.getvalue()


def at(env_steps: int, elapsed_s: float, updates: int = 0) -> Status:
    return Status(env_steps, 6000, elapsed_s, updates)


@pytest.mark.parametrize("terminal", [True, False])
def test_every_part_of_a_status_is_shown(terminal):
    text = show(terminal, [STATUS])
    for words in ("41%", "replay ratio 4.0", "187", "203", "learner waits for dreams 40%"):
        assert words in text, words
    assert "restarts 1" in text and "refused" not in text
    assert "saved [1, 2]" in text


def lines(status: Status, width: int) -> list[str]:
    """Returns the lines of the panel for a status on a screen of `width` columns."""
    out = io.StringIO()
    Console(file=out, width=width).print(panel("a run", status, 33.3, 41.0))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 60, 40])
def test_no_line_is_too_long_and_no_value_is_apart_from_its_name(width):
    metrics = {"dream/share": 0.8, "value/td_error": 1.97e-06, "policy/entropy": 0.69}
    status = replace(STATUS, metrics=metrics, phase="waiting for the first rows")
    shown = lines(status, width)
    assert all(len(line) <= width for line in shown), shown
    for words in (
        "dreamed part of learning 80%",
        "TD error 1.97e-06 reward",
        "entropy of actions 0.69 nats",
        "2,480 of 6,000 steps",
        "last evaluation 203",
        "41.0 updates/s",
        "learner waits for dreams 40%",
        "world 1 version old",
    ):
        assert any(words in line for line in shown), (words, shown)
    assert not set("".join(shown)) & set("│╭╰─") - {"─"}  # no border


def test_the_metrics_reference_decides_which_metrics_are_shown():
    metrics = {"loss/reward": 0.1, "dream/share": 0.8, "explore/epsilon": 0.25, "my/own": 7.0}
    assert telling(metrics) == [
        "dreamed part of learning 80%",
        "random actions 25%",
        "my/own 7",
    ]
    many = {f"my/own_{i}": float(i) for i in range(9)}
    assert telling(many) == ["my/own_0 0", "my/own_1 1", "my/own_2 2", "my/own_3 3"]


def test_a_pipe_gets_plain_lines_without_any_control_codes():
    text = show(False, [at(100, 10), at(300, 20, 50)])
    assert "\x1b" not in text
    first, second = text.splitlines()[:2]
    assert "– steps/s" in first  # no speed is known yet
    assert "20.0 steps/s  5.0 updates/s" in second
    assert second.endswith("0:20 passed  4:45 left")


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in show(True, [STATUS])
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[36m" in show(True, [STATUS], color_system="standard")


def test_updates_in_quick_succession_are_shown_once():
    text = show(False, [at(i, i * 0.01) for i in range(100)], pace=0.01)
    shown = [line for line in text.splitlines() if re.match(r"\d+/6,000 steps", line)]
    assert len(shown) == 2  # the first and the last status


def test_speed_is_a_mean_over_the_last_seconds():
    fast_then_slow = [at(1000 * i, 10.0 * i) for i in range(6)] + [
        at(5000 + 10 * i, 50.0 + 10 * i) for i in range(1, 6)
    ]
    assert "  1.0 steps/s" in show(False, fast_then_slow).splitlines()[-3]


def test_a_very_narrow_screen_and_a_fresh_run_are_shown():
    assert all(len(line) <= 30 for line in lines(at(0, 0.0), 30))
    assert "– left" in plain(at(0, 0.0), None, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_pause_is_explained_while_the_run_is_busy(terminal, monkeypatch):
    monkeypatch.setattr(display_module, "SAY_AFTER_S", 0.05)
    monkeypatch.setattr(display_module, "LIVE_EVERY_S", 0.02)
    out = io.StringIO()
    with Display(console=Console(file=out, force_terminal=terminal, width=80)) as display:
        display.wait_for("starting Ray")
        until = time.monotonic() + 10
        while "starting Ray …" not in out.getvalue() and time.monotonic() < until:
            time.sleep(0.02)
    assert "starting Ray …" in out.getvalue()
    if not terminal:
        assert out.getvalue().count("starting Ray") == 1


def test_a_short_pause_leaves_no_line():
    out = io.StringIO()
    with Display(console=Console(file=out, width=80)) as display:
        display.wait_for("starting Ray")
        display.wait_for("")
    assert out.getvalue() == ""


def test_advice_is_printed_when_it_changes_and_stands_in_the_panel():
    busy = replace(STATUS, waits={"actor → replay": 1.0})
    text = show(False, [STATUS, busy, busy])
    assert text.count("advice: Learning is the limit") == 1
    shown = " ".join(" ".join(lines(busy, 60)).split())
    assert "more actors do not" in shown
    assert "advice" not in " ".join(lines(replace(busy, updates=0), 60))  # it does not learn yet


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (75.9, "1:15"), (3675, "1:01:15"), (360000, "100:00:00")]
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text
