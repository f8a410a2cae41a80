"""Sends the new values of an update back to the replay."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.types import Array, Feedback, Replay, Sample


def write_back(replay: Replay, consumer: str, real: Sample, feedback: Feedback) -> None:
    """Sends new priorities and rows of an update to the replay, if the update has computed any.

    consumer: the sampler of table "real" that drew `real`. real: the sample of the update.
    feedback: the results of the update, which may hold tensors of any device.
    """
    if feedback.rows:
        rows = {name: on_host(values) for name, values in feedback.rows.items()}
        replay.update("real", real.keys, rows, consumer)


def on_host(value: Any) -> Array:
    """Returns a tensor or an array as a numpy array in CPU memory."""
    return value.cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
