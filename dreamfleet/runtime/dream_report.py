"""Compares dreams with the real episodes from which they start: for how long they stay true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dreamfleet.core.types import Array, Batch

TRUE_BELOW: Final = 0.5  # a dream is true while its error is at most this; the mean's error is 1
ZERO_REWARD: Final = 0.1  # a reward below this part of the typical reward counts as zero
END: Final = 0.5  # a dream predicts the end of an episode from this probability on


@dataclass(frozen=True)
class Windows:
    """Windows of real episodes, of `context` known rows and H rows that a dream predicts.

    The predicted rows of the windows of an episode do not overlap.
    """

    rows: Batch  # (W, context + H, …); a window that reaches past its episode repeats the last row
    inside: Array  # (W, H) bool, whether a predicted row is a row of the episode
    episode: Array  # (W,) number of the episode, from 0
    begin: Array  # (W,) step of the episode at which the dream begins: that of its first row
    context: int

    def __len__(self) -> int:
        return len(self.inside)

    def spread(self, count: int) -> list[int]:
        """Returns up to `count` windows, spread evenly over all windows, in order.

        Windows of less than a third of the longest length are left out.
        """
        lengths = self.inside.sum(1)
        long = np.flatnonzero(3 * lengths >= lengths.max())
        places = np.linspace(0, len(long) - 1, count).round().astype(int)
        return [int(w) for w in long[np.unique(places)]]

    def real(self, column: str) -> Array:
        """Returns the real values of a column in the rows that dreams predict, (W, H, …)."""
        return np.asarray(self.rows[column][:, self.context :])


def cut(episodes: Sequence[Batch], context: int, steps: int) -> Windows:
    """Cuts episodes into windows of `context` known rows and `steps` rows to predict.

    episodes: columns (T, …) each. An episode of at most `context` rows has no window.
    """
    offsets, parts, inside, places = np.arange(context + steps), [], [], []
    for number, rows in enumerate(episodes):
        length = len(rows["reward"])
        for begin in range(0, length - context, steps):
            index = begin + offsets
            parts.append({key: value[index.clip(max=length - 1)] for key, value in rows.items()})
            inside.append(index[context:] < length)
            places.append((number, begin + context))
    rows = {key: np.stack([part[key] for part in parts]) for key in parts[0]} if parts else {}
    episode, begin_at = np.array(places, np.int64).reshape(-1, 2).T
    shape = (len(parts), steps)
    return Windows(rows, np.array(inside, bool).reshape(shape), episode, begin_at, context)


def observed_parts(predicted: Mapping[str, Array]) -> list[str]:
    """Returns the names of those predicted columns that are observations: `obs` and `obs.…`."""
    return [name for name in predicted if name == "obs" or name.startswith("obs.")]


def compare(windows: Windows, predicted: Batch, episodes: Sequence[Batch]) -> dict[str, Any]:
    """Returns the report on W dreams, as a dict for JSON.

    predicted: columns (W, H, …), as `Agent.predict` returns them. episodes: the rows from which the
    windows were cut; they give the standard deviation of observations.

    Lists have a value for each step of a dream, or null for a step that no window reaches:

    - `obs_error`: for each part of the observation, the root mean square error over windows, in
      standard deviations of the real observations. Predicting the mean has an error of 1.
    - `posterior_error`: the same of observations that are decoded from the posterior.
    - `true_for`: the number of steps before the first one with an error above `true_below`, for the
      worst part of the observation; null without predicted observations.
    - `kl`: the mean KL divergence of posterior and prediction.
    - `reward_error`: the mean absolute error of the reward.
    - `reward_sign`: the fraction of windows in which the reward has the right sign. A reward counts
      as zero below a tenth of the root mean square of the real rewards that are not 0.
    - `end_right`: the fraction of windows in which the end is predicted where it is, and not where
      it is not.
    """
    inside = windows.inside
    squares, floors = {}, {}
    for part in observed_parts(predicted):
        unit = deviation(np.concatenate([rows[part] for rows in episodes]))
        if unit is None:
            continue
        squares[part] = squared_error(predicted[part], windows.real(part), unit)
        if f"posterior_{part}" in predicted:
            posterior = predicted[f"posterior_{part}"]
            floors[part] = squared_error(posterior, windows.real(part), unit)
    worst = np.max([*squares.values()], axis=0) if squares else None  # (W, H)
    reward, real_reward = predicted["reward"].astype(float), windows.real("reward").astype(float)
    ends, real_ends = predicted["terminal"] > END, windows.real("terminal")
    signs = [sign(value, real_reward[inside]) for value in (reward, real_reward)]
    errors = {part: over_windows(square, inside, root=True) for part, square in squares.items()}
    return {
        "windows": len(windows),
        "windows_per_step": inside.sum(0).tolist(),
        "true_below": TRUE_BELOW,
        "true_for": min(map(true_for, errors.values())) if errors else None,
        "obs_error": errors,
        "posterior_error": {
            part: over_windows(square, inside, root=True) for part, square in floors.items()
        },
        "kl": over_windows(predicted["kl"], inside) if "kl" in predicted else None,
        "reward_error": over_windows(np.abs(reward - real_reward), inside),
        "reward_sign": over_windows(signs[0] == signs[1], inside),
        "end_right": over_windows(ends == real_ends, inside),
        "ends": count_ends(ends & inside, real_ends & inside),
        "each": [
            {
                "episode": int(windows.episode[w]) + 1,
                "step": int(windows.begin[w]),
                "steps": int(inside[w].sum()),
                "true_for": None if worst is None else true_for(np.sqrt(worst[w][inside[w]])),
            }
            for w in range(len(windows))
        ],
    }


def deviation(obs: Array) -> Array | None:
    """Returns the unit of errors: the standard deviation of each number of real observations.

    obs: (R, *O). The unit of an image is one number for all its pixels: the root mean square
    deviation of pixels from their mean over time. Numbers that never change have the unit infinity,
    so that they count 0. Returns None if no number changes.
    """
    values = obs.astype(np.float32 if obs.dtype == np.uint8 else float)
    unit = values.std(0)
    if values.ndim == 4:
        unit = np.sqrt(np.mean(np.square(unit)))
    constant = unit <= 1e-6 * np.abs(values).max(0).clip(min=1e-6)
    return None if constant.all() else np.where(constant, np.inf, unit)


def squared_error(predicted: Array, real: Array, unit: Array) -> Array:
    """Returns the mean squared error of observations in units of `unit`, (W, H).

    predicted, real: (W, H, *O). unit: `deviation` of the real observations. The mean is over the
    numbers of an observation whose unit is finite.
    """
    counted = np.isfinite(np.broadcast_to(unit, real.shape[2:])).sum()
    each = [  # one window at a time: all windows of images as floats take gigabytes
        np.square((guess.astype(float) - seen) / unit).reshape(len(seen), -1).sum(-1) / counted
        for guess, seen in zip(predicted, real, strict=True)
    ]
    return np.stack(each)


def over_windows(values: Array, inside: Array, root: bool = False) -> list[float | None]:
    """Returns the mean over windows for each of H steps; None for a step without windows.

    values, inside: (W, H). root: whether to return the root of the mean.
    """
    count = inside.sum(0)
    means = np.where(inside, values, 0).sum(0) / count.clip(min=1)
    means = np.sqrt(means) if root else means
    return [float(mean) if n else None for mean, n in zip(means, count, strict=True)]


def true_for(errors: Sequence[float | None] | Array) -> int:
    """Returns the number of steps before the first one whose error exceeds `TRUE_BELOW`."""
    for step, error in enumerate(errors):
        if error is None or error > TRUE_BELOW:
            return step
    return len(errors)


def sign(reward: Array, real: Array) -> Array:
    """Returns -1, 0 or 1 for each reward; 0 for a reward much smaller than typical real rewards.

    real: the real rewards; the root mean square of those that are not 0 is the typical reward.
    """
    paid = real[real != 0]
    typical = np.sqrt(np.mean(np.square(paid))) if len(paid) else 1.0
    return np.where(np.abs(reward) < ZERO_REWARD * typical, 0, np.sign(reward))


def count_ends(predicted: Array, real: Array) -> dict[str, int]:
    """Counts the windows that end, whose end is predicted at the right step, or at a wrong step.

    predicted, real: (W, H) bools. The first predicted end of a window counts.
    """
    first = [np.where(ends.any(1), ends.argmax(1), -1) for ends in (predicted, real)]
    return {
        "real": int((first[1] >= 0).sum()),
        "right": int(((first[1] >= 0) & (first[0] == first[1])).sum()),
        "wrong": int(((first[0] >= 0) & (first[0] != first[1])).sum()),
    }


# ----------------------------------------------------------------------------------- as text


def in_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns the report as lines of text: a sentence, and a table with a row for some steps."""
    steps, true_steps = len(report["end_right"]), report["true_for"]
    first = (
        "The agent predicts no observations: reward, end and KL alone are compared."
        if true_steps is None
        else f"Dreams stay true for {true_steps} of {steps} steps: until then their error is at "
        "most half of that of predicting the mean observation."
    )
    columns = {
        **{f"{part} error": errors for part, errors in report["obs_error"].items()},
        **{f"{part} floor": errors for part, errors in report["posterior_error"].items()},
        **({"KL": report["kl"]} if report["kl"] else {}),
        "reward error": report["reward_error"],
        "reward sign": report["reward_sign"],
        "end right": report["end_right"],
    }
    shown = [step for step in (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 100) if step < steps] + [steps]
    shown = [step for step in shown if report["windows_per_step"][step - 1]]
    table = [["step", "windows", *columns]]
    for step in shown:
        values = [_shown(name, values[step - 1]) for name, values in columns.items()]
        table.append([str(step), str(report["windows_per_step"][step - 1]), *values])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = ["  ".join(map(str.rjust, row, widths)) for row in table]
    ends = report["ends"]
    last = (
        f"Ends: {ends['right']} of {ends['real']} predicted at the right step, "
        f"{ends['wrong']} predicted at a wrong step."
    )
    return [first, *rows, last]


def _shown(name: str, value: float) -> str:
    return f"{value:.0%}" if name in ("reward sign", "end right") else f"{value:.3g}"
