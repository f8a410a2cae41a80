"""Sends the new values of an update back to the replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dreamfleet.core.types import PRIORITY, Array, Feedback, Replay, Sample


def write_back(replay: Replay, consumer: str, real: Sample, feedback: Feedback) -> None:
    """Sends new priorities and rows of an update to the replay, if the update has computed any.

    consumer: the sampler of table "real" that drew `real`. real: the sample of the update.
    feedback: the results of the update, which may hold tensors of any device.
    """
    if feedback.rows:
        rows = {name: on_host(values) for name, values in feedback.rows.items()}
        replay.update("real", real.keys, rows, consumer)


def rewritten(real: Sample, feedback: Feedback) -> Sample:
    """Returns the sample of an update with the new values of its rows in place of the old ones.

    A new column may have fewer or more rows than the old one, and may be a tensor of any device.
    """
    new = {name: values for name, values in feedback.rows.items() if name != PRIORITY}
    return replace(real, data=real.data | new)


def on_host(value: Any) -> Array:
    """Returns a tensor or an array as a numpy array in CPU memory."""
    return value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
