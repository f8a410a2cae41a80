"""Checks that what an agent learns, publishes and does is made of finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dreamfleet.core.errors import Diverged
from dreamfleet.core.types import Array, Batch, Space, Weights

CHECK_EVERY: Final = 50  # updates between two looks at their metrics, each of which may wait
HOPELESS: Final = 100  # updates in a row without a finite loss and gradient


class Soundness:
    """Ends the run when a part of an agent takes no good gradient step for a long time.

    part: what the message calls it. updates: those taken before a resume. Agents that count skipped
    steps report `fault/in_a_row`; of others the losses themselves are looked at.
    """

    def __init__(self, part: str, updates: int = 0) -> None:
        self._part = part
        self._good = updates  # the last update that was seen to be good

    def check(self, metrics: Mapping[str, Any], updates: int) -> None:
        """Raise Diverged when the last `HOPELESS` updates had no finite loss and gradient."""
        if updates % CHECK_EVERY:
            return
        bad = [
            f"{name} is {float(value)}"
            for name, value in metrics.items()
            if name.startswith(("loss/", "grad_norm/")) and not math.isfinite(value)
        ]
        if not bad:
            self._good = updates
        in_a_row = int(metrics.get("fault/in_a_row", updates - self._good))
        if in_a_row >= HOPELESS:
            raise Diverged(
                f"the {self._part} has stopped learning: its last {in_a_row} updates were skipped, "
                f"as loss and gradient were not finite ({', '.join(bad[:2])}). Look at the "
                "observations and rewards of the environment, or lower the learning rate "
                "(--set agent.lr…)."
            )


def check_weights(group: str, weights: Weights) -> Weights:
    """Return the weights. Raises Diverged when one of them is not a number."""
    for name, value in weights.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise Diverged(
                f"the weights of {group!r} cannot be published: {name} holds NaN. The agent took a "
                "gradient step on a loss that was not finite; Optimizer of "
                "agents/blocks/optimizer.py skips such steps."
            )
    return weights


def check_choice(action: Array, extras: Batch, space: Space) -> None:
    """Raise Diverged when what an agent chose is not finite, or not of the space of actions; no
    environment is to blame.
    """
    for name, value in {"action": action, **extras}.items():
        found = np.asarray(value)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise Diverged(
                f"the agent's {name!r} is not finite (found {found[~np.isfinite(found)][0]}): its "
                "weights, or what it carries along, hold such numbers. Go on from an older "
                "checkpoint with a lower learning rate."
            )
    whole = space.discrete
    if not isinstance(action, np.ndarray):
        found_is = type(action).__name__
    elif action.shape[1:] != space.shape or action.dtype.kind != np.dtype(space.dtype).kind:
        found_is = f"{action.dtype} {action.shape}"
    elif whole and not ((action >= 0) & (action < space.n)).all():
        found_is = str(action[(action < 0) | (action >= space.n)][0])
    else:
        return
    due = (
        f"whole numbers from 0 to {space.n - 1}, (N,)" if whole else f"floats (N, {space.shape[0]})"
    )
    raise Diverged(f"the agent's actions must be numpy's {due}; found {found_is}.")
