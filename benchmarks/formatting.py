"""Formats benchmark results as text: Markdown tables, and cells such as `median (min to max)`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table. heads: the column names. rows: the cells of each row."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median_and_range(
    values: Sequence[float | None], form: str = ",.0f", limit: float = np.inf
) -> str:
    """Returns `median (min to max)` as text, or one number if all values are equal.

    form: format specification of a number. The value None means "more than `limit`": it counts as
    infinity, and is shown as `> limit`.
    """

    def text(value: float) -> str:
        return format(value, form) if np.isfinite(value) else f"> {limit:{form}}"

    known = [np.inf if value is None else value for value in values]
    if min(known) == max(known):
        return text(known[0])
    return f"{text(median(known))} ({text(min(known))} to {text(max(known))})"


def mean_and_range(values: Sequence[float], form: str) -> str:
    """Returns `mean (min to max)` as text. form: format specification of a number."""
    mean = format(float(np.mean(values)), form)
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def median(values: Sequence[float | None]) -> float:
    """Returns the median of `values`, where None counts as infinity."""
    return float(np.median([np.inf if value is None else value for value in values]))
