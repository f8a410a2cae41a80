"""Encodes observations of gymnasium spaces for an agent, and decodes the agent's actions.

An agent sees either an image of uint8 with axes (height, width, channels), or one vector of
float32. If an image has the channels as its first axis, they become the last. A 2-D image gets one
channel.

All other observations become a vector. A Box is flattened. A Discrete and each entry of a
MultiDiscrete become one-hot. The parts of a Dict or Tuple are concatenated in the order of the
space (a Dict sorts its keys).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Array, Space

LARGEST_ONE_HOT: Final = 65_536  # numbers of a vector that one-hot encoding may make
MOST_CHOICES: Final = 1_024  # combinations of a MultiDiscrete or MultiBinary action


class Mismatch(Exception):
    """Raised for an observation outside its declared space. The message says what is wrong."""


@dataclass(frozen=True)
class Part:
    """A part of an observation, such as an entry of a Dict, and its place in the encoded vector."""

    name: str  # such as `hand`, `cards[1]` or `goal.position`; "" for the only part
    path: tuple[str | int, ...]  # the keys that lead to it
    space: gym.Space[Any]
    start: int
    size: int


class Encoder:
    """Encodes observations of a gymnasium space as images or vectors.

    The attribute `space` is the space of the encoded observations. Raises UserError if the
    gymnasium space is not supported.
    """

    def __init__(self, env_id: str, space: gym.Space[Any]) -> None:
        self.parts = _parts(env_id, space)
        self.box = space if isinstance(space, Box) else None  # a Box only needs a reshape
        self._shape: tuple[int, ...] = space.shape or ()
        self._channels_first = False
        if isinstance(space, Box) and _picture(space):
            self._channels_first = _channels_first(space)
            shape = (*space.shape[1:], *space.shape[:1]) if self._channels_first else space.shape
            height, width, channels = (*shape, 1)[:3]
            self.space = Space((height, width, channels), "uint8")
        else:
            self.space = Space((sum(part.size for part in self.parts),), "float32")
        if not math.prod(self.space.shape):
            found = f"{_short(space)}, which holds no number"
            raise UserError(f'env "{env_id}" observes {found}. {_REMEDY}')

    def __call__(self, seen: Any) -> Array:
        """Returns one encoded observation, with the shape of attribute `space` and any real dtype.

        The result may share memory with `seen`. Raises Mismatch if the observation is outside its
        declared space.
        """
        if self.box is not None:
            return self._turned(self._numbers(seen, self._shape))
        vector = np.empty(self.space.shape)
        for part in self.parts:
            values = self._values(part, follow(part, seen))
            vector[part.start : part.start + part.size] = values
        return vector

    def boxes(self, seen: Any, n: int) -> Array:
        """Encodes a batch of n observations of a Box. Returns an array (n, …)."""
        return self._turned(self._numbers(seen, (n, *self._shape)))

    def where(self, index: int) -> str:
        """Names the part that holds number `index` of an encoded vector, as `" at speed[1]"`.

        Returns "" if the observation has no parts.
        """
        for part in self.parts:
            if part.name and part.start <= index < part.start + part.size:
                return f" at {part.name}" + (f"[{index - part.start}]" if part.size > 1 else "")
        return ""

    def _turned(self, array: Array) -> Array:
        """Brings an array of Box values into the shape of the encoded observation.

        If the channels are the first axis of an image, they become the last. A batch axis in front
        is kept.
        """
        lead = array.shape[: array.ndim - len(self._shape)]
        array = np.moveaxis(array, -3, -1) if self._channels_first else array
        return array.reshape(*lead, *self.space.shape)

    def _values(self, part: Part, seen: Any) -> Array:
        space = part.space
        if isinstance(space, Discrete):
            return _one_hot(part, _integers(part, seen, ()), np.array(space.n), space.start)
        if isinstance(space, MultiDiscrete):
            return _one_hot(part, _integers(part, seen, space.shape), space.nvec, space.start)
        return self._numbers(seen, space.shape or (), part).ravel()

    def _numbers(self, seen: Any, shape: tuple[int, ...], part: Part | None = None) -> Array:
        """Returns an observation, or one part of it, as an array of real numbers.

        seen: the value of the observation or part. shape: its declared shape. Raises Mismatch for a
        wrong shape or dtype. Pixels must be uint8. Other numbers keep their dtype.
        """
        array, image = _array(seen, part), self.space.image
        if array.shape != shape or not (
            array.dtype == np.uint8 if image else array.dtype.kind in "biuf"
        ):
            found = f"an observation{_of(part)} {array.dtype} {array.shape}"
            raise Mismatch(f"{found} where {self.space.dtype} {shape} was declared,")
        return array


def observation(env_id: str, space: gym.Space[Any]) -> Space:
    """Returns the space of encoded observations for the gymnasium space `space`.

    env_id: the environment, for the error message. Raises UserError if the gymnasium space is not
    supported.
    """
    return Encoder(env_id, space).space


def action(env_id: str, space: gym.Space[Any]) -> Space:
    """Returns the space of an agent's actions: choices from 0, or a flat vector in [-1, 1].

    A MultiDiscrete or MultiBinary becomes one choice among all combinations. Raises UserError if
    there are too many combinations, or if the space is not supported.
    """
    if isinstance(space, Discrete):
        return Space((), "int64", n=int(space.n))
    if isinstance(space, (MultiDiscrete, MultiBinary)):
        return Space((), "int64", n=_combinations(env_id, space))
    if not isinstance(space, Box) or space.dtype is None or space.dtype.kind not in "fiu":
        raise UserError(
            f'env "{env_id}" acts in {_short(space)}. Supported: Discrete, MultiDiscrete, '
            "MultiBinary and Box. Wrap it: gymnasium.wrappers.TransformAction(env, function, "
            "space), where function turns an action of a supported space into one of its own."
        )
    size = int(np.prod(space.shape))
    if not size:
        raise UserError(
            f'env "{env_id}" acts in {_short(space)}, which holds no number. Give it at least one, '
            "or a Discrete(1) where there is nothing to choose."
        )
    if not space.is_bounded("both"):
        raise UserError(
            f'env "{env_id}" acts in an unbounded {_short(space)}. Give it finite bounds, or wrap '
            "it: gymnasium.wrappers.TransformAction(env, lambda action: 10 * action, "
            f"gymnasium.spaces.Box(-1, 1, {space.shape})) allows actions from -10 to 10."
        )
    return Space((size,), "float32")


def decoder(space: gym.Space[Any]) -> Callable[[Array], Array]:
    """Returns a function from an agent's actions to actions (N, …) of the environment.

    The agent's actions are choices (N,) i64, or vectors (N, A) in [-1, 1].
    """
    if isinstance(space, Discrete):
        start = space.start
        return lambda choice: choice + start
    if isinstance(space, (MultiDiscrete, MultiBinary)):
        return _choices(space)
    assert isinstance(space, Box)
    shape, dtype, low, high = space.shape, space.dtype, space.low.ravel(), space.high.ravel()
    whole = dtype is not None and dtype.kind in "iu"
    margin = 0.5 if whole else 0.0  # so that the first and last whole number are equally likely
    bottom, top = low - margin, high + margin
    middle, half = top / 2 + bottom / 2, top / 2 - bottom / 2  # halved: a difference may overflow

    def rescale(unit: Array) -> Array:
        own = middle + half * unit
        own = np.clip(np.rint(own) if whole else own, low, high)
        return own.reshape(-1, *shape).astype(dtype, copy=False)

    return rescale


# ------------------------------------------------------------------------------- observations


def _parts(env_id: str, space: gym.Space[Any]) -> list[Part]:
    parts: list[Part] = []
    start = 0
    for path, inner in _leaves(space):
        size = _size(env_id, space, inner, path)
        parts.append(Part(_name(path), path, inner, start, size))
        start += size
    return parts


def _leaves(
    space: Any, path: tuple[str | int, ...] = ()
) -> list[tuple[tuple[str | int, ...], Any]]:
    """Returns the innermost parts of a Dict or Tuple space, each with the keys that lead to it."""
    if isinstance(space, Dict):
        inner: Any = space.spaces.items()
    elif isinstance(space, Tuple):
        inner = enumerate(space.spaces)
    else:
        return [(path, space)]
    return [leaf for key, value in inner for leaf in _leaves(value, (*path, key))]


def _size(env_id: str, whole: gym.Space[Any], space: Any, path: tuple[str | int, ...]) -> int:
    """Returns the length of the vector that encodes one part of an observation.

    whole: the space of the whole observation. path: the keys that lead to the part. Raises
    UserError if the part's space is not supported.
    """
    opening = f'env "{env_id}" observes {_short(whole)}'
    if isinstance(space, Box) and space.dtype is not None and space.dtype.kind in "biuf":
        if path and _picture(space) and len(space.shape) == 3:
            keys = "".join(f"[{key!r}]" for key in path)
            raise UserError(
                f"{opening}: pictures inside a Dict or Tuple are not supported yet. Keep the rest, "
                "gymnasium.wrappers.FilterObservation(env, KEYS), or the picture alone, "
                f"gymnasium.wrappers.TransformObservation(env, lambda seen: seen{keys}, "
                f"env.observation_space{keys})."
            )
        return int(np.prod(space.shape))
    if isinstance(space, MultiBinary):
        return int(np.prod(space.shape))
    if isinstance(space, (Discrete, MultiDiscrete)):
        size = int(space.n if isinstance(space, Discrete) else space.nvec.sum())
        if size > LARGEST_ONE_HOT:
            raise UserError(
                f"{opening}: one-hot vectors of {size:,} numbers are too long (at most "
                f"{LARGEST_ONE_HOT:,}). {_REMEDY}"
            )
        return size
    raise UserError(
        f"{opening}. Supported: Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of "
        f"these. {_REMEDY}"
    )


_REMEDY: Final = (
    "Wrap it to return an array: gymnasium.wrappers.TransformObservation(env, function, "
    "gymnasium.spaces.Box(low, high, shape))."
)


def _picture(space: Box) -> bool:
    """Returns whether a space holds images: uint8 from 0 to 255, with two or three axes."""
    return (
        space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and not space.low.any()
        and bool((space.high == 255).all())
    )


def _channels_first(space: Box) -> bool:
    """Returns whether an image space has its channels as first axis, like stacked grey frames."""
    counts = (1, 3, 4)
    return len(space.shape) == 3 and space.shape[0] in counts and space.shape[2] not in counts


def _name(path: tuple[str | int, ...]) -> str:
    name = ""
    for key in path:
        name += f"[{key}]" if isinstance(key, int) else f".{key}"
    return name.removeprefix(".")


def _of(part: Part | None) -> str:
    return f" {part.name}:" if part and part.name else ""


def follow(part: Part, seen: Any) -> Any:
    """Returns the value of one part of an observation, such as an entry of a Dict.

    part: the name of the part, and the keys that lead to it. Raises Mismatch if the part is
    missing.
    """
    for depth, key in enumerate(part.path):
        name = _name(part.path[: depth + 1])
        if isinstance(key, int):
            if not isinstance(seen, (tuple, list)) or key >= len(seen):
                raise Mismatch(f"an observation without {name}")
        elif not isinstance(seen, Mapping) or key not in seen:
            raise Mismatch(f"an observation without {name!r}")
        seen = seen[key]
    return seen


def _array(seen: Any, part: Part | None) -> Array:
    try:
        return np.asarray(seen)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, a tensor on a GPU
        shown = reprlib.repr(seen).replace("\n", " ")
        raise Mismatch(f"an observation{_of(part)} {shown}, which is no array,") from None


def _integers(part: Part, seen: Any, shape: tuple[int, ...]) -> Array:
    """Returns the integers in a part of an observation as an array of shape `shape`.

    seen: the value of the part. For shape (), an array of one element is accepted too. Raises
    Mismatch for any other shape, and for numbers that are not whole.
    """
    array = _array(seen, part)
    if shape == () and array.size == 1:
        array = array.reshape(())
    whole = array.dtype.kind in "biu" or (array.dtype.kind == "f" and bool(np.all(array % 1 == 0)))
    if array.shape != shape or not whole:
        found = reprlib.repr(seen) if array.ndim == 0 else f"{array.dtype} {array.shape}"
        raise Mismatch(f"an observation{_of(part)} {found} where {part.space} was declared,")
    return array.astype(np.int64)


def _one_hot(part: Part, chosen: Array, sizes: Array, start: Any) -> Array:
    """Returns the concatenated one-hot vectors of several choices.

    sizes: the number of options of each choice. start: the number of the first option. Raises
    Mismatch for a choice outside its options.
    """
    choices, sizes, start = np.ravel(chosen - start), np.ravel(sizes), np.ravel(start)
    beyond = (choices < 0) | (choices >= sizes)
    if beyond.any():
        found = (choices + start)[beyond][0]
        raise Mismatch(f"an observation{_of(part)} {found} where {part.space} was declared,")
    vector = np.zeros(part.size)
    vector[np.cumsum(sizes) - sizes + choices] = 1
    return vector


def _short(space: gym.Space[Any]) -> str:
    """Returns the text of a space on one line, with at most 200 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


# ------------------------------------------------------------------------------------ actions


def _combinations(env_id: str, space: MultiDiscrete | MultiBinary) -> int:
    count = math.prod(_options(space).tolist())
    if 0 < count <= MOST_CHOICES and space.shape != (0,):
        return count
    size = int(np.prod(space.shape))
    box = f"gymnasium.spaces.Box(-1, 1, ({size},))"
    if isinstance(space, MultiBinary):
        function = f"lambda a: (a > 0).astype('int8').reshape({space.shape})"
    else:
        function = (
            "lambda a: ((a.clip(-1, 1) + 1) / 2 * (env.action_space.nvec.ravel() - 1)).round()"
            f".astype(int).reshape({space.shape})"
        )
    raise UserError(
        f'env "{env_id}" acts in {_short(space)}: {count:,} combinations, more than '
        f"{MOST_CHOICES:,}. Wrap it: gymnasium.wrappers.TransformAction(env, {function}, {box}), "
        "for agents with continuous actions, or a Discrete of the combinations that matter."
    )


def _options(space: MultiDiscrete | MultiBinary) -> Array:
    """Returns the number of options of each entry of an action, as a flat array.

    space: the action space. An entry of a MultiBinary has two options.
    """
    if isinstance(space, MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    return space.nvec.ravel()


def _choices(space: MultiDiscrete | MultiBinary) -> Callable[[Array], Array]:
    options, shape, dtype = _options(space), space.shape, space.dtype
    start = space.start if isinstance(space, MultiDiscrete) else 0

    def unravel(choice: Array) -> Array:
        entries = np.stack(np.unravel_index(choice, tuple(options.tolist())), -1)
        return (entries.reshape(-1, *shape) + start).astype(dtype)

    return unravel
