"""Draws learning curves from the records in `benchmarks/results`.

    python benchmarks/learning/plots.py

Draws `curves.png` of every environment, and the picture of the README.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.learning.curves import TASKS, WINDOW, Curve, read_methods
from benchmarks.processes import RESULTS, ROOT
from dreamfleet.core.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

README_PICTURE: Final = ROOT / "docs" / "images" / "ours-and-sb3.png"
README_METHODS: Final = {  # environment → methods in the picture of the README → label
    "CartPole-v1": {"dreamer-lite": "dreamer-lite (ours)", "sb3-dqn": "DQN (SB3)"},
    "Pendulum-v1": {"dreamer-lite": "dreamer-lite (ours)", "sb3-sac": "SAC (SB3)"},
}
COLOURS: Final = {  # of a method, the same in every picture
    "dreamer-lite": "#0072B2",
    "dreamer-lite-long": "#56B4E9",
    "gated-rainbow": "#009E73",
    "gated-rainbow-on-ray": "#8FBC3B",
    "dreamwalker": "#7B3FA0",
    "dreamwalker-on-ray": "#CC79A7",
    "dreamwalker-without-dreams": "#7F7F7F",
    "sb3-dqn": "#D55E00",
    "sb3-sac": "#E69F00",
}
OTHER_COLOURS: Final = ("#8B4513", "#4B0082", "#B8860B", "#2F4F4F")  # of methods without an entry
LEAST_MINUTES: Final = 0.01  # the time axis begins here or later


def main() -> None:
    for path in sorted(RESULTS.glob("*/curves.png")):
        env = path.parent.name
        plot_curves(env, read_methods(path.parent, TASKS[env].ours), path)
        print(path.relative_to(ROOT))
    plot_readme_picture(README_PICTURE)
    print(README_PICTURE.relative_to(ROOT))


def plot_curves(env: str, methods: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draws the learning curves of all methods in one environment, and saves the picture to `path`.

    The left panel shows returns against environment steps, the right panel returns against minutes.
    """
    figure = new_figure(9.2, 4.6)
    by_steps, by_minutes = figure.subplots(1, 2, sharey=True)
    colours = colours_of(methods)
    for name, curves in reversed(list(methods.items())):  # ours last, hence on top
        seeds = f"{len(curves)} seeds" if len(curves) > 1 else "1 seed"
        draw(by_steps, by_minutes, curves, colours[name], f"{name} ({seeds})")
        if TASKS[env].training_episodes:
            for curve in curves:
                by_steps.plot(*curve.running_mean, color=colours[name], lw=0.8, ls=":")
    finish_panels(env, by_steps, by_minutes)
    by_steps.set_title(env, loc="left", fontweight="bold")
    lines, labels = by_steps.get_legend_handles_labels()
    lines, labels = list(reversed(lines)), list(reversed(labels))
    add_explanations(lines, labels, methods, TASKS[env].training_episodes)
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


def plot_readme_picture(path: Path) -> None:
    """Draws the README's picture (`dreamer-lite` and Stable-Baselines3), and saves it to `path`.

    Each of two environments has a row of two panels: returns against environment steps, and against
    minutes.
    """
    figure = new_figure(8.0, 6.0)
    panels = figure.subplots(len(README_METHODS), 2, sharey="row")
    legend: dict[str, Line2D] = {}  # label → line
    for (env, labels), (by_steps, by_minutes) in zip(README_METHODS.items(), panels, strict=True):
        methods = read_methods(RESULTS / env, TASKS[env].ours)
        for name, label in reversed(labels.items()):
            curves = methods[name]
            draw(by_steps, by_minutes, curves, COLOURS[name], f"{label}, {len(curves)} seeds")
        finish_panels(env, by_steps, by_minutes)
        by_steps.set_title(env, loc="left", fontweight="bold")
        lines, texts = by_steps.get_legend_handles_labels()
        legend |= dict(zip(reversed(texts), reversed(lines), strict=True))
    columns = {"loc": "outside upper center", "ncols": len(legend), "frameon": False}
    figure.legend(legend.values(), legend.keys(), **columns)
    figure.supxlabel(
        "Line: mean of the seeds. Band: lowest to highest seed. Evaluations are not counted as "
        "training time. Two CPU cores.",
        fontsize=9,
        color="#444444",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


# ---------------------------------------------------------------------------------- parts


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty matplotlib figure that needs no display. width, height: in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours_of(methods: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """Returns the line colours of methods (agents and baselines), by name of the method.

    The colour of a method is its entry in COLOURS. Methods without an entry get the colours of
    OTHER_COLOURS, one after the other.
    """
    unknown = [name for name in methods if name not in COLOURS]
    spare = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(unknown)}
    return {name: COLOURS.get(name) or spare[name] for name in methods}


def over_seeds(curves: Sequence[Curve]) -> tuple[Array, Array, Array]:
    """Interpolates the learning curves of S seeds at E common numbers of environment steps.

    Returns (steps, minutes of training, returns), of shapes (E,), (E,) and (S, E). Minutes are
    means over the seeds.
    """
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    steps = np.unique(curves[0].steps.clip(first, last))
    returns = [np.interp(steps, curve.steps, curve.returns) for curve in curves]
    minutes = [np.interp(steps, curve.steps, curve.training_minutes) for curve in curves]
    return steps, np.mean(minutes, axis=0), np.stack(returns)


def draw(
    by_steps: Axes, by_minutes: Axes, curves: Sequence[Curve], colour: str, label: str
) -> None:
    """Draws the returns of one method (an agent or a baseline) against steps, and against minutes.

    by_steps, by_minutes: the two panels. curves: one learning curve per seed. label: the text in
    the legend.
    """
    steps, minutes, returns = over_seeds(curves)
    single = len(curves) == 1
    style = {"ls": "--", "marker": "o", "ms": 4, "mfc": "white"} if single else {"lw": 1.6}
    for axes, x in ((by_steps, steps), (by_minutes, minutes)):
        axes.plot(x, returns.mean(0), color=colour, label=label, **style)
        if not single:
            band: dict[str, Any] = {"color": colour, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(x, returns.min(0), returns.max(0), **band)


def finish_panels(env: str, by_steps: Axes, by_minutes: Axes) -> None:
    """Draws an environment's threshold lines into both panels, and labels and scales the axes.

    by_steps, by_minutes: the panels of returns against environment steps, and against minutes.
    """
    thresholds = TASKS[env].thresholds
    by_steps.set(xscale="log", xlabel="environment steps (log scale)")
    by_steps.set_ylabel("mean return of an evaluation")
    by_minutes.set(xscale="log", xlabel="training time in minutes (log scale)")
    by_minutes.set_xlim(left=max(by_minutes.get_xlim()[0], LEAST_MINUTES))
    for axes in (by_steps, by_minutes):
        label_powers(axes)
        axes.spines[["top", "right"]].set_visible(False)
        for threshold in thresholds:
            axes.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
            lower = len(thresholds) == 2 and threshold == min(thresholds)  # below: they are close
            place: dict[str, Any] = {"ha": "left", "va": "top" if lower else "bottom"}
            place["transform"] = axes.get_yaxis_transform()
            axes.text(0.01, threshold, f"threshold {threshold:g}", fontsize=8, **place)


def label_powers(axes: Axes) -> None:
    """Labels a logarithmic x-axis with 1, 2, 5, 10, …, or with 1, 10, 100, … if the axis is long.

    An axis is long if it spans more than a factor of 300.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    left, right = axes.get_xlim()
    long = right / left > 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if long else (1, 2, 5)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def add_explanations(
    lines: list[object],
    labels: list[str],
    methods: Mapping[str, Sequence[Curve]],
    training_episodes: bool,
) -> None:
    """Adds entries to a plot's legend that explain the lines, bands and dots of this plot.

    lines, labels: the entries so far; new entries are appended. methods: a list of learning curves
    for each method. training_episodes: whether the plot also shows training returns.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if any(len(curves) > 1 for curves in methods.values()):
        lines.append(Patch(color="gray", alpha=0.3, linewidth=0))
        labels.append("line: mean of the seeds; band: lowest to highest seed")
    if len({len(curves) == 1 for curves in methods.values()}) == 2:
        lines.append(Line2D([], [], color="gray", ls="--", marker="o", ms=4, mfc="white"))
        labels.append("circles: evaluations of a single seed")
    if training_episodes:
        lines.append(Line2D([], [], color="gray", lw=0.8, ls=":"))
        labels.append(f"mean of the last {WINDOW} training episodes, a line per seed")


if __name__ == "__main__":
    main()
