"""What an agent sees of a gymnasium space, and the way back from its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Space


def observation(env_id: str, space: gym.Space[Any]) -> Space:
    """Boxes of any shape: uint8 stays (pixels), everything else becomes float32."""
    if not isinstance(space, gym.spaces.Box):
        raise UserError(
            f'env "{env_id}" observes {space}. Supported: Box. Wrap it to return an array'
        )
    return Space(space.shape, "uint8" if space.dtype == np.uint8 else "float32")


def action(env_id: str, space: gym.Space[Any]) -> Space:
    """Discrete choices from 0, or a flat vector in [-1, 1] whatever the box's shape and bounds."""
    if isinstance(space, gym.spaces.Discrete):
        return Space((), "int64", n=int(space.n))
    if not isinstance(space, gym.spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        supported = "Discrete and bounded float Box"
        raise UserError(f'env "{env_id}" acts in {space}. Supported: {supported}. Wrap it in one')
    if not space.is_bounded("both"):
        remedy = "Give it finite bounds, or wrap it in gymnasium.wrappers.RescaleAction"
        raise UserError(f'env "{env_id}" acts in an unbounded {space}. {remedy}')
    return Space((int(np.prod(space.shape)),), "float32")


def decoder(space: gym.Space[Any]) -> Callable[[Array], Array]:
    """From the agent's actions, (N,) i64 or (N, A) in [-1, 1], to the environment's own (N, …)."""
    if isinstance(space, gym.spaces.Discrete):
        start = space.start
        return lambda choice: choice + start
    assert isinstance(space, gym.spaces.Box)
    shape, dtype, low, high = space.shape, space.dtype, space.low.ravel(), space.high.ravel()
    middle, half = high / 2 + low / 2, high / 2 - low / 2  # halved first: high - low may overflow

    def rescale(unit: Array) -> Array:
        own = np.clip(middle + half * unit, low, high)
        return own.reshape(-1, *shape).astype(dtype, copy=False)

    return rescale
