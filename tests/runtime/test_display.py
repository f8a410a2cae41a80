from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dreamfleet.runtime.display import Display, Status, clock_time, panel, plain

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
    """What a person sees of statuses that come `pace` seconds apart."""
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
def test_everything_a_status_says_is_shown(terminal):
    said = show(terminal, [STATUS])
    for word in ("41%", "ratio 4.0", "187", "203", "learner → dreamer 40%", "restarts 1"):
        assert word in said, word
    assert "saved [1, 2]" in said


def test_groups_of_metrics_are_rows_in_one_order_and_the_rest_is_left_out():
    metrics = {"explore/epsilon": 0.25, "gate/std_over_units": 0.017, "grad_norm/value": 3.0}
    metrics |= {"loss/value": 0.0794, "dream/share": 0.8, "loss/transition": 12.0}
    out = io.StringIO()
    status = replace(STATUS, metrics=metrics)
    Console(file=out, width=100).print(panel("a run", status, None, None))
    lines = out.getvalue().splitlines()
    rows = [line.strip("│ ").split("  ")[0] for line in lines]
    begin = rows.index("loss")
    assert rows[begin : begin + 4] == ["loss", "dream", "gate", "explore"]
    said = "\n".join(lines)
    for word in (
        "value 0.0794   transition 12",
        "share 0.8",
        "std over units 0.017",
        "epsilon 0.25",
    ):
        assert word in said, word
    assert "grad" not in said
    assert "dream 80%" in show(False, [status])


def test_a_pipe_gets_plain_lines_without_any_control_codes():
    said = show(False, [at(100, 10), at(300, 20, 50)])
    assert "\x1b" not in said
    first, second = said.splitlines()[:2]
    assert "env –/s" in first  # nothing is known of the speed yet
    assert "env 20.0/s  learn 5.0/s" in second
    assert second.endswith("0:20 ETA 4:45")


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in show(True, [STATUS])
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[36m" in show(True, [STATUS], color_system="standard")


def test_updates_in_quick_succession_are_shown_once():
    said = show(False, [at(i, i * 0.01) for i in range(100)], pace=0.01)
    assert len([line for line in said.splitlines() if line.startswith("step")]) == 2  # and the last


def test_speed_forgets_what_was_long_ago():
    fast_then_slow = [at(1000 * i, 10.0 * i) for i in range(6)] + [
        at(5000 + 10 * i, 50.0 + 10 * i) for i in range(1, 6)
    ]
    assert "env 1.0/s" in show(False, fast_then_slow).splitlines()[-3]


def test_a_narrow_or_fresh_run_still_renders():
    out = io.StringIO()
    console = Console(file=out, width=30)
    console.print(panel("a very long name of a run indeed", at(0, 0.0), None, None))
    assert all(len(line) <= 30 for line in out.getvalue().splitlines())
    assert "ETA –" in plain(at(0, 0.0), None, None)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (75.9, "1:15"), (3675, "1:01:15"), (360000, "100:00:00")]
)
def test_clock_time(seconds, said):
    assert clock_time(seconds) == said
