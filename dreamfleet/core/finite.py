"""Checks losses, gradient norms, published weights and actions for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dreamfleet.core.errors import Diverged
from dreamfleet.core.types import Array, Batch, Space, Weights

CHECK_EVERY: Final = 50  # updates between two checks, each of which may wait for the device
MOST_BAD_UPDATES: Final = 100  # in a row without a finite loss and gradient


class UpdateMonitor:
    """Ends a run after many consecutive bad updates.

    An update is bad if its loss or a gradient norm is not finite. part: the name of the trained
    networks in messages. updates: the number of updates that a resumed run has already taken; 0 for
    a new run.
    """

    def __init__(self, part: str, updates: int = 0) -> None:
        self._part = part
        self._last_good = updates  # the newest update that was checked and found good

    def check(self, metrics: Mapping[str, Any], updates: int) -> None:
        """Checks the metrics of update number `updates`, if this is a multiple of `CHECK_EVERY`.

        An update is bad if a loss or a gradient norm is not finite. Raises Diverged after
        `MOST_BAD_UPDATES` consecutive bad updates.
        """
        if updates % CHECK_EVERY:
            return
        bad = [
            f"{name} is {float(value)}"
            for name, value in metrics.items()
            if name.startswith(("loss/", "grad_norm/")) and not math.isfinite(value)
        ]
        if not bad:
            self._last_good = updates
        in_a_row = int(metrics.get("fault/in_a_row", updates - self._last_good))
        if in_a_row >= MOST_BAD_UPDATES:
            raise Diverged(
                f"the {self._part} has stopped learning: its last {in_a_row} updates were skipped, "
                f"as loss and gradient were not finite ({', '.join(bad[:2])}). Look at the "
                "observations and rewards of the environment, or lower the learning rate "
                "(--set agent.lr…)."
            )


def check_weights(group: str, weights: Weights) -> Weights:
    """Returns `weights` unchanged. Raises Diverged if one of them is NaN.

    group: the name of the weight group ("world" or "policy"), for the message.
    """
    for name, value in weights.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise Diverged(
                f"the weights of {group!r} cannot be published: {name} holds NaN. The agent took a "
                "gradient step on a loss that was not finite; Optimizer of "
                "agents/blocks/optimizer.py skips such steps."
            )
    return weights


def check_actions(action: Array, extras: Batch, space: Space) -> None:
    """Raises Diverged unless an agent's actions (N, …) are finite and within the action space.

    extras: other columns that the agent adds to the rows; they must be finite too.
    """
    for name, value in {"action": action, **extras}.items():
        found = np.asarray(value)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise Diverged(
                f"the agent's {name!r} is not finite (found {found[~np.isfinite(found)][0]}): its "
                "weights or its recurrent state hold NaN or infinity. Go on from an older "
                "checkpoint with a lower learning rate."
            )
    if not isinstance(action, np.ndarray):
        wrong = type(action).__name__
    elif action.shape[1:] != space.shape or action.dtype.kind != np.dtype(space.dtype).kind:
        wrong = f"{action.dtype} {action.shape}"
    elif (outside := _outside(action, space)).any():
        wrong = str(action[outside][0])
    else:
        return
    if space.choices:
        expected = f"whole numbers (N, {len(space.choices)}) from 0, less than {space.choices}"
    elif space.discrete:
        expected = f"whole numbers from 0 to {space.n - 1}, (N,)"
    else:
        expected = f"floats (N, {space.shape[0]})"
    raise Diverged(f"the agent's actions must be numpy arrays of {expected}; found {wrong}.")


def _outside(action: Array, space: Space) -> Array:
    """Returns which numbers of whole-number actions (N, …) are no choice of their action space.

    For continuous actions, whose range is not checked, all values are False.
    """
    if not (space.discrete or space.choices):
        return np.zeros(action.shape, bool)
    return (action < 0) | (action >= (np.array(space.choices) if space.choices else space.n))
