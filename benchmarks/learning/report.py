"""What the learning curves say: a table over seeds, and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.curves import (
    TASKS,
    WINDOW,
    Curve,
    by_kind,
    in_training,
    median,
    ratio,
    read_methods,
    summarise,
)


def report(env: str, out: Path) -> str:
    """Write `summary.json` and `curves.png` of what `out` holds → the table, as Markdown."""
    task = TASKS[env]
    methods = read_methods(out, task.ours)
    figures = [
        {
            "method": name,
            "agent": curves[0].agent,
            "command": curves[0].command,
            "threshold": threshold,
            **summarise(curves, threshold),
        }
        for threshold in task.thresholds
        for name, curves in methods.items()
    ]
    ours = {row["threshold"]: row["steps"] for row in figures if row["method"] == task.ours}
    for row in figures:
        row["times_ours"] = ratio(row["steps"], ours.get(row["threshold"], []))
    summary: dict[str, Any] = {"env": env, "figures": figures}
    if finals := {name: found for name, curves in methods.items() if (found := by_kind(curves))}:
        summary["finals"] = finals
    said = [table(figures)]
    if task.training:
        training = {name: in_training(of, task.thresholds[0]) for name, of in methods.items()}
        summary["training"] = training
        said.append(training_table(env, training))
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(env, methods, out / "curves.png")
    return "\n\n".join(said)


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a Markdown table, seeds as median (least to most)."""
    rows = []
    for row in figures:
        seeds, times, share = len(row["steps"]), row["times_ours"], row["later_looks_above"]
        rows.append(
            (
                row["method"],
                f"≥ {row['threshold']:g}",
                spread(row["steps"], beyond=row["budget"]),
                "–" if times is None else f"{times:g}",
                f"{sum(steps is not None for steps in row['steps'])}/{seeds}",
                spread(row["steps_for_good"], beyond=row["budget"]),
                f"{sum(steps is not None for steps in row['steps_for_good'])}/{seeds}",
                "–" if share is None else f"{share:.0%}",
                spread(row["final_returns"], ".1f"),
                spread(row["wall_s"]) + " s",
                spread(row["wall_without_evaluations_s"]) + " s",
            )
        )
    heads: tuple[str, ...] = (
        "method",
        "greedy mean",
        "steps to it",
        "× ours",
        "seeds there",
        "for good from",
    )
    heads += ("so at the end", "later looks so", "return at the end", "wall time", "without looks")
    return markdown(heads, rows)


def training_table(env: str, training: Mapping[str, Mapping[str, Any]]) -> str:
    """What training episodes came to, exploration included, seeds as median (least to most)."""
    rows = [
        (
            method,
            f"≥ {found['threshold']:g}",
            spread(found["first_episode"], beyond=max(found["episodes"])),
            spread(found["first_episode_steps"], beyond=found["budget"]),
            spread(found["mean_steps"], beyond=found["budget"]),
            f"{sum(steps is not None for steps in found['mean_steps'])}/{len(found['mean_steps'])}",
            "–" if None in found["best_mean"] else spread(found["best_mean"], ".1f"),
        )
        for method, found in training.items()
    ]
    heads = (
        f"training episodes of {env}",
        "return",
        "first such episode",
        "steps to it",
        f"steps until {WINDOW} such on average",
        "seeds there",
        f"best mean of {WINDOW}",
    )
    return markdown(heads, rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float | None], form: str = ",.0f", beyond: float = np.inf) -> str:
    """`median (least to most)`; what never came is `> beyond`."""

    def say(value: float) -> str:
        return format(value, form) if np.isfinite(value) else f"> {beyond:{form}}"

    known = [np.inf if value is None else value for value in values]
    if min(known) == max(known):
        return say(known[0])
    return f"{say(median(known))} ({say(min(known))} to {say(max(known))})"


def mean_and_range(values: Sequence[float], form: str) -> str:
    """`mean (least to most)`."""
    mean = format(float(np.mean(values)), form)
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def plot(env: str, methods: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Mean and full range over seeds of the greedy return against env steps.

    Where training episodes are reported, their running mean in each seed too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    said = f"each seed's last {WINDOW} training episodes"  # once
    for name, curves in reversed(list(methods.items())):  # ours last, hence on top
        looks = min(len(curve.steps) for curve in curves)
        steps = np.mean([curve.steps[:looks] for curve in curves], axis=0)
        returns = np.stack([curve.returns[:looks] for curve in curves])  # (seeds, looks)
        seeds = f"{len(curves)} seed{'s' * (len(curves) > 1)}"
        (line,) = axes.plot(steps, returns.mean(0), label=f"{name} ({seeds})")
        shade = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
        axes.fill_between(steps, returns.min(0), returns.max(0), **shade)
        if TASKS[env].training:
            for curve in curves:
                axes.plot(*curve.trained, color=line.get_color(), lw=0.8, ls=":", label=said)
                said = ""
    for threshold in TASKS[env].thresholds:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    axes.set_xscale("log")  # methods differ by multiples
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(env, loc="left")
    episodes = f"{TASKS[env].episodes:,} episodes"
    axes.set(xlabel="env steps of training", ylabel=f"greedy mean over {episodes}")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
