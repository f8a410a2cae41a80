"""Converts observations for an agent, and the agent's actions for the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamfleet.core.types import Array, Batch
from dreamfleet.envs import registry, spaces


class Codec:
    """Converts observations for an agent, and the agent's actions for the environment.

    It builds one environment with the arguments `options`, to read its spaces, and closes it.
    """

    def __init__(self, env_id: str, options: Mapping[str, Any]) -> None:
        env = registry.make(env_id, **options)
        try:
            self._encode = spaces.Encoder(env_id, env.observation_space)
            self._decode = spaces.decoder(env.action_space)
        finally:
            registry.close(env)

    def encode(self, obs: Any) -> tuple[Batch, bool]:
        """Converts N observations to columns (N, …). Also returns whether `obs` was a batch.

        obs: one observation (then N is 1), or a batch. In a batch, each array has one more axis in
        front. Raises ValueError for a wrong shape, and for NaN or infinity.
        """
        rows = {}
        try:
            n = self._number(obs)
            found = self._encode(obs, () if n is None else (n,))
            for name, space in self._encode.observations.items():
                with np.errstate(over="ignore"):  # the next lines refuse numbers too large
                    column = found[name].astype(space.dtype, order="C")
                rows[name] = column[None] if n is None else column
                if not np.isfinite(rows[name]).all():
                    _, *place = np.argwhere(~np.isfinite(rows[name]))[0].tolist()
                    where = self._encode.where(place[0])
                    raise spaces.Mismatch(f"an observation that is not finite{where}")
        except spaces.Mismatch as error:
            raise ValueError(f"this policy cannot see {error}".rstrip(",")) from None
        return rows, n is not None

    def decode(self, action: Array) -> Any:
        """Converts actions (N, …) of an agent to actions (N, …) of the environment."""
        return self._decode(action)

    def _number(self, obs: Any) -> int | None:
        """Returns the batch size of `obs`; None if it is a single observation.

        Raises Mismatch if the batch is empty, or if parts of `obs` (such as entries of a Dict) have
        different batch sizes.
        """
        parts = self._encode.parts
        numbers = [_leading(part, spaces.follow(part, obs)) for part in parts]
        n = numbers[0]
        if any(other != n for other in numbers):
            found = zip(parts, numbers, strict=True)
            sizes = ", ".join(f"{part.name}: {'one' if k is None else k}" for part, k in found)
            raise spaces.Mismatch(f"parts of different numbers of observations ({sizes})")
        if n == 0:
            raise spaces.Mismatch("a batch without observations")
        return n


def _leading(part: spaces.Part, seen: Any) -> int | None:
    """Returns the batch size of one part of an observation; None if it is a single value.

    part: name and space of the part. seen: the value of the part. Raises Mismatch if the number of
    axes is wrong.
    """
    axes, name = len(part.space.shape or ()), f" {part.name}:" if part.name else ""
    try:
        shape = np.shape(seen)
    except ValueError:  # lists of different lengths
        raise spaces.Mismatch(f"an observation{name} that is no array") from None
    if len(shape) == axes:
        return None
    if len(shape) != axes + 1:
        raise spaces.Mismatch(f"an observation{name} with {len(shape)} axes, not {axes}")
    return int(shape[0])
