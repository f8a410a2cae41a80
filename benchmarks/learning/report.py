"""Sums up learning curves over seeds: writes `summary.json`, and makes Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.formatting import markdown_table, median_and_range
from benchmarks.learning.curves import (
    TASKS,
    WINDOW,
    final_by_category,
    ratio,
    read_methods,
    summarise,
    summarise_training,
)
from benchmarks.learning.plots import plot_curves

RETURNS: Final = ("Environment", "Method", "Seeds", "Return", "Training steps", "Wall time (min)")
RETURNS_MEANING: Final = (
    "The table shows the result of each method (an agent with certain settings, or a baseline). "
    "Return: mean of 100 greedy episodes after training (NumberGame-v1: 5,000). Wall time: time of "
    "the whole run, evaluations included. Cells are medians over seeds (min to max)."
)
THRESHOLDS: Final = (
    "Environment",
    "Method",
    "Threshold",
    "Steps to threshold",
    "Relative to ours",
    "Seeds that reach it",
    "Later evaluations at or above",
    "Seeds at or above at the end",
)
THRESHOLDS_MEANING: Final = (
    "The table shows after how many environment steps each method (an agent or a baseline) reaches "
    "a return, the threshold. Steps to threshold: environment steps until the first evaluation "
    "whose mean return is at or above the threshold; median over seeds (min to max); `> N`: not "
    "reached in N steps. Relative to ours: the median of this method divided by the median of our "
    "agent, which is the first method of each environment. Later evaluations at or above: "
    "of the evaluations after the first one that reached the threshold, the percentage that is at "
    "or above the threshold. Seeds at or above at the end: seeds whose last evaluation is at or "
    "above the threshold."
)


TRAINING: Final = (
    "Environment",
    "Method",
    "Threshold",
    "First episode at or above",
    "Steps to that episode",
    f"Steps to a mean of {WINDOW} at or above",
    "Seeds that reach it",
    f"Highest mean of {WINDOW}",
)
TRAINING_MEANING: Final = (
    "The table shows the returns of training episodes, in which the agent explores. First episode "
    "at or above: number of the first training episode whose return is at or above the threshold. "
    f"Mean of {WINDOW}: mean return of {WINDOW} consecutive training episodes. Cells are "
    "medians over seeds (min to max)."
)


def report(env: str, results: Path) -> str:
    """Writes `summary.json` and `curves.png` of one environment, and returns its Markdown tables.

    results: the folder of the environment. It has the records, one file per training run. Both
    files are written into it.
    """
    task = TASKS[env]
    methods = read_methods(results, task.ours)
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
    finals = {name: final_by_category(curves) for name, curves in methods.items()}
    if any(finals.values()):
        summary["finals"] = {name: found for name, found in finals.items() if found}
    tables = [
        markdown_table(RETURNS, returns_rows(env, figures)),
        markdown_table(THRESHOLDS, threshold_rows(env, figures)),
    ]
    if task.training_episodes:
        training = {
            name: summarise_training(curves, task.thresholds[0]) for name, curves in methods.items()
        }
        summary["training"] = training
        tables.append(markdown_table(TRAINING, training_rows(env, training)))
    (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot_curves(env, methods, results / "curves.png")
    return "\n\n".join(tables)


def returns_rows(env: str, figures: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the rows of the table of returns, one per method (an agent or a baseline).

    env: the environment. figures: the list `figures` in its `summary.json`. RETURNS names the
    columns.
    """
    methods: dict[str, Mapping[str, Any]] = {}
    for row in figures:
        methods.setdefault(row["method"], row)
    return [
        (
            env,
            method,
            str(len(row["final_returns"])),
            median_and_range(row["final_returns"], ".1f"),
            f"{row['budget']:,}",
            median_and_range([seconds / 60 for seconds in row["wall_s"]], ".1f"),
        )
        for method, row in methods.items()
    ]


def threshold_rows(env: str, figures: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the rows of the table of steps to a threshold, one per threshold and method.

    A method is an agent or a baseline. env: the environment. figures: the list `figures` in its
    `summary.json`. THRESHOLDS names the columns.
    """
    rows: list[tuple[str, ...]] = []
    for row in figures:
        times, later = row["times_ours"], row["later_looks_above"]
        rows.append(
            (
                env,
                row["method"],
                f"{row['threshold']:g}",
                median_and_range(row["steps"], limit=row["budget"]),
                "–" if times is None else f"{times:g}×",
                reached(row["steps"]),
                "–" if later is None else f"{later:.0%}",
                reached(row["steps_for_good"]),
            )
        )
    return rows


def reached(steps: Sequence[int | None]) -> str:
    """Returns how many seeds reached a threshold, as text `k/n`: k of n seeds.

    steps: the environment steps that each seed needed; None for a seed that did not reach the
    threshold.
    """
    return f"{sum(value is not None for value in steps)}/{len(steps)}"


def training_rows(env: str, training: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Returns the rows of the table of training episodes, one per method (an agent or a baseline).

    training: name of a method → the result of `summarise_training`. TRAINING names the columns.
    """
    return [
        (
            env,
            method,
            f"{found['threshold']:g}",
            median_and_range(found["first_episode"], limit=max(found["episodes"])),
            median_and_range(found["first_episode_steps"], limit=found["budget"]),
            median_and_range(found["mean_steps"], limit=found["budget"]),
            reached(found["mean_steps"]),
            "–" if None in found["best_mean"] else median_and_range(found["best_mean"], ".1f"),
        )
        for method, found in training.items()
    ]
