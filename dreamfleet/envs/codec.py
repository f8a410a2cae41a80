"""Between what an environment says and what an agent sees, for one environment or many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.envs import registry, spaces


class Codec:
    """Turns an environment's observations into an agent's, and the agent's actions back."""

    def __init__(self, env_id: str, options: Mapping[str, Any]) -> None:
        env = registry.make(env_id, **options)
        try:
            self._encode = spaces.Encoder(env_id, env.observation_space)
            self._decode = spaces.decoder(env.action_space)
        finally:
            registry.close(env)

    def encode(self, obs: Any) -> tuple[Array, bool]:
        """Turns one observation or N of them into (N, *O), and tells whether there were many.

        Many: an array with one more axis, in each part of a Dict or a Tuple. Raises ValueError for
        what is neither.
        """
        part = self._encode.parts[0]
        axes = len(part.space.shape or ())
        try:
            extra = np.ndim(spaces.follow(part, obs)) - axes
            if extra not in (0, 1):
                raise spaces.Mismatch(f"an observation with {extra + axes} axes, not {axes}")
            each = [obs] if not extra else self._each(obs, len(spaces.follow(part, obs)))
            rows = np.stack([np.array(self._encode(it)) for it in each])
        except spaces.Mismatch as error:
            raise ValueError(f"this policy cannot see {error}".rstrip(",")) from None
        return rows.astype(self._encode.space.dtype), bool(extra)

    def decode(self, action: Array) -> Any:
        """Turns actions (N, …) of an agent into the environment's own (N, …)."""
        return self._decode(action)

    def _each(self, obs: Any, n: int) -> list[Any]:
        """Takes N observations apart."""
        return [_at(obs, i) for i in range(n)]


def _at(obs: Any, i: int) -> Any:
    if isinstance(obs, Mapping):
        return {key: _at(value, i) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_at(value, i) for value in obs)
    return np.asarray(obs)[i]
