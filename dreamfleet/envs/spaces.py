"""Encodes observations of gymnasium spaces for an agent, and decodes the agent's actions.

An observation becomes one or more columns. An image is a column of its own: uint8 with axes
(height, width, channels). If an image has the channels as its first axis, they become the last. A
2-D image that is the whole observation gets one channel.

All other parts of an observation become one vector of float32, the column `obs`. A Box is
flattened. A Discrete and each entry of a MultiDiscrete become one-hot. The parts of a Dict or Tuple
are concatenated in the order of the space (a Dict sorts its keys).

Beside a vector, the column of an image is called `obs.NAME`, such as `obs.camera` or
`obs.arm.wrist`. If all parts are images, the first one is the column `obs`.
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
    """Raised for an observation outside its declared space. The message says what is wrong.

    index: the place of the observation in a batch, as far as it is known.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Part:
    """A part of an observation, such as an entry of a Dict, and the column that holds it."""

    name: str  # such as `hand`, `cards[1]` or `goal.position`; "" for the only part
    path: tuple[str | int, ...]  # the keys that lead to it
    space: gym.Space[Any]
    image: Space | None  # of the encoded image; None: a part of the vector `obs`
    column: str
    start: int  # where the part begins in the vector
    size: int  # numbers in the vector; 0 for an image


class Encoder:
    """Encodes observations of a gymnasium space as columns of images and vectors.

    The attribute `observations` holds the spaces of the columns by name; `obs` is the first. Raises
    UserError if the gymnasium space is not supported.
    """

    def __init__(self, env_id: str, space: gym.Space[Any]) -> None:
        self.parts = _parts(env_id, space)
        self._box = isinstance(space, Box)  # a Box only needs a reshape
        size = sum(part.size for part in self.parts)
        self._vector = size > 0
        self.observations = {"obs": Space((size,), "float32")} if self._vector else {}
        self.observations |= {part.column: part.image for part in self.parts if part.image}
        if not self.observations or any(0 in it.shape for it in self.observations.values()):
            found = f"{_short(space)}, which holds no number"
            raise UserError(f'env "{env_id}" observes {found}. {_REMEDY}')

    def __call__(self, seen: Any, lead: tuple[int, ...] = ()) -> dict[str, Array]:
        """Returns the columns of one encoded observation, or of a batch, in any real dtype.

        A column has the axes `lead`, then the shape of its space in attribute `observations`. seen:
        the observation. lead: (n,) for a batch, in which each array has one more axis in front. The
        result may share memory with `seen`. Raises Mismatch if the observation is outside its
        declared space.
        """
        if self._box:
            (part,) = self.parts
            return {"obs": self._array(part, seen, lead)}
        columns = {}
        if self._vector:
            columns["obs"] = vector = np.empty((*lead, *self.observations["obs"].shape))
        for part in self.parts:
            value = follow(part, seen)
            if part.image is not None:
                columns[part.column] = self._array(part, value, lead)
            elif part.size:
                vector[..., part.start : part.start + part.size] = self._values(part, value, lead)
        return columns

    def where(self, index: int) -> str:
        """Names the part that holds number `index` of the vector `obs`, as `" at speed[1]"`.

        Returns "" if the observation has no parts.
        """
        for part in self.parts:
            if part.name and part.start <= index < part.start + part.size:
                return f" at {part.name}" + (f"[{index - part.start}]" if part.size > 1 else "")
        return ""

    def _values(self, part: Part, seen: Any, lead: tuple[int, ...]) -> Array:
        """Returns the numbers (*lead, size) of one part of the vector `obs`."""
        space = part.space
        if isinstance(space, Discrete):
            chosen = _integers(part, seen, (), lead)[..., None]
            return _one_hot(part, chosen, np.array([space.n]), space.start)
        if isinstance(space, MultiDiscrete):
            chosen = _integers(part, seen, space.shape, lead).reshape(*lead, -1)
            return _one_hot(part, chosen, space.nvec.ravel(), space.start.ravel())
        return self._array(part, seen, lead)

    def _array(self, part: Part, seen: Any, lead: tuple[int, ...]) -> Array:
        """Returns an image (*lead, height, width, channels), or flattened numbers (*lead, size).

        part, seen: a part of an observation, and its value. Raises Mismatch for a wrong shape or
        dtype. Pixels must be uint8. Other numbers keep their dtype.
        """
        array, shape, image = _array(part, seen), (*lead, *(part.space.shape or ())), part.image
        if array.shape != shape or not (
            array.dtype.kind in "biuf" if image is None else array.dtype == np.uint8
        ):
            found = f"an observation{_of(part)} {array.dtype} {array.shape}"
            declared = "float32" if image is None else "uint8"
            raise Mismatch(f"{found} where {declared} {shape} was declared,")
        if image is None:
            return array.reshape(*lead, part.size)
        array = np.moveaxis(array, -3, -1) if _channels_first(part.space) else array
        return array.reshape(*lead, *image.shape)


def observations(env_id: str, space: gym.Space[Any]) -> dict[str, Space]:
    """Returns the spaces of the columns of encoded observations, by name; `obs` is the first.

    env_id: the environment, for the error message. space: the gymnasium space of its observations.
    Raises UserError if this space is not supported.
    """
    return Encoder(env_id, space).observations


def action(env_id: str, space: gym.Space[Any]) -> Space:
    """Returns the space of an agent's actions: choices from 0, or a flat vector in [-1, 1].

    A MultiDiscrete or MultiBinary becomes one choice among all combinations. If there are more than
    MOST_CHOICES combinations, its entries become the factors of a factored action. Raises UserError
    if the space is not supported.
    """
    if isinstance(space, Discrete):
        return Space((), "int64", n=int(space.n))
    opening = f'env "{env_id}" acts in {_short(space)}'
    empty = (
        f"{opening}, which holds no number. Give it at least one, or a Discrete(1) where there is "
        "nothing to choose."
    )
    if isinstance(space, (MultiDiscrete, MultiBinary)):
        return _choice(_options(space), opening, empty)
    if not isinstance(space, Box) or space.dtype is None or space.dtype.kind not in "fiu":
        raise UserError(
            f"{opening}. Supported: Discrete, MultiDiscrete, MultiBinary and Box. {_WRAP_ACTION}"
        )
    size = int(np.prod(space.shape))
    if not size:
        raise UserError(empty)
    if not space.is_bounded("both"):
        raise UserError(
            f'env "{env_id}" acts in an unbounded {_short(space)}. Give it finite bounds, or wrap '
            "it: gymnasium.wrappers.TransformAction(env, lambda action: 10 * action, "
            f"gymnasium.spaces.Box(-1, 1, {space.shape})) allows actions from -10 to 10."
        )
    return Space((size,), "float32")


def decoder(space: gym.Space[Any]) -> Callable[[Array], Array]:
    """Returns a function from an agent's actions to actions (N, …) of the environment.

    The agent's actions are choices (N,) i64, factored choices (N, k) i64, or vectors (N, A) in
    [-1, 1].
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
    """Returns the innermost parts of an observation space, each with its place in the columns."""
    parts: list[Part] = []
    leaves = _leaves(space)
    images = [_image(inner, path) for path, inner in leaves]
    sizes = [
        0 if image else _size(env_id, space, inner)
        for image, (_, inner) in zip(images, leaves, strict=True)
    ]
    start, obs_is_free = 0, not any(sizes)
    for (path, inner), image, size in zip(leaves, images, sizes, strict=True):
        named = image is not None and not obs_is_free
        column = ".".join(("obs", *map(str, path))) if named else "obs"
        obs_is_free &= image is None
        parts.append(Part(_name(path), path, inner, image, column, start, size))
        start += size
    columns = [part.column for part in parts if part.image]
    if len(set(columns)) < len(columns):
        found = ", ".join(sorted({name for name in columns if columns.count(name) > 1}))
        raise UserError(
            f'env "{env_id}" observes {_short(space)}: several images are called {found}. Rename '
            "the keys of the Dict, without dots."
        )
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


def _size(env_id: str, whole: gym.Space[Any], space: Any) -> int:
    """Returns the length of the vector that encodes one part of an observation.

    whole: the space of the whole observation. Raises UserError if the part's space is not
    supported.
    """
    opening = f'env "{env_id}" observes {_short(whole)}'
    if isinstance(space, Box) and space.dtype is not None and space.dtype.kind in "biuf":
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


def _image(space: Any, path: tuple[str | int, ...]) -> Space | None:
    """Returns the space (height, width, channels) of an encoded image; None if it is no image.

    An image is a Box of uint8 from 0 to 255 with three axes. If it is the whole observation, with
    an empty path, it may also have two axes.
    """
    if (
        not isinstance(space, Box)
        or space.dtype != np.uint8
        or not (len(space.shape) == 3 or (len(space.shape) == 2 and not path))
        or space.low.any()
        or not (space.high == 255).all()
    ):
        return None
    shape = (*space.shape[1:], *space.shape[:1]) if _channels_first(space) else space.shape
    height, width, channels = (*shape, 1)[:3]
    return Space((height, width, channels), "uint8")


def _channels_first(space: gym.Space[Any]) -> bool:
    """Returns whether an image space has its channels as first axis, like stacked grey frames."""
    shape, counts = space.shape or (), (1, 3, 4)
    return len(shape) == 3 and shape[0] in counts and shape[2] not in counts


def _name(path: tuple[str | int, ...]) -> str:
    name = ""
    for key in path:
        name += f"[{key}]" if isinstance(key, int) else f".{key}"
    return name.removeprefix(".")


def _of(part: Part) -> str:
    return f" {part.name}:" if part.name else ""


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


def _array(part: Part, seen: Any) -> Array:
    try:
        return np.asarray(seen)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, a tensor on a GPU
        shown = reprlib.repr(seen).replace("\n", " ")
        raise Mismatch(f"an observation{_of(part)} {shown}, which is no array,") from None


def _integers(part: Part, seen: Any, shape: tuple[int, ...], lead: tuple[int, ...]) -> Array:
    """Returns the integers in a part of an observation as an array (*lead, *shape).

    seen: the value of the part. For shape (), an array of one element is accepted too. lead: (n,)
    for a batch. Raises Mismatch for any other shape, and for numbers that are not whole.
    """
    array = _array(part, seen)
    if shape == () and array.shape[: len(lead)] == lead and array.size == math.prod(lead):
        array = array.reshape(lead)
    whole = array.dtype.kind in "biu" or (array.dtype.kind == "f" and bool(np.all(array % 1 == 0)))
    if array.shape != (*lead, *shape) or not whole:
        found = reprlib.repr(seen) if array.ndim == 0 else f"{array.dtype} {array.shape}"
        raise Mismatch(f"an observation{_of(part)} {found} where {part.space} was declared,")
    return array.astype(np.int64)


def _one_hot(part: Part, chosen: Array, sizes: Array, start: Any) -> Array:
    """Returns the concatenated one-hot vectors of k choices.

    chosen: (…, k). sizes: (k,), the number of options of each choice. start: the number of the
    first option. Raises Mismatch for a choice outside its options.
    """
    choices = chosen - start
    beyond = (choices < 0) | (choices >= sizes)
    if beyond.any():
        place = tuple(np.argwhere(beyond)[0].tolist())
        found = f"an observation{_of(part)} {chosen[place]} where {part.space} was declared,"
        raise Mismatch(found, place[0] if len(place) > 1 else 0)
    vector = np.zeros((*chosen.shape[:-1], part.size))
    np.put_along_axis(vector, np.cumsum(sizes) - sizes + choices, 1, -1)
    return vector


def _short(space: gym.Space[Any]) -> str:
    """Returns the text of a space on one line, with at most 200 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


# ------------------------------------------------------------------------------------ actions


_WRAP_ACTION: Final = (
    "Wrap it: gymnasium.wrappers.TransformAction(env, function, space), where function turns an "
    "action of a supported space into one of its own."
)


def _choice(options: tuple[int, ...], opening: str, empty: str) -> Space:
    """Returns the space of one choice among all combinations, or of a factored action.

    options: the number of options of each entry of an action. opening, empty: texts for the
    UserError that is raised if there are too many options, or none.
    """
    if not options:
        raise UserError(empty)
    if sum(options) > LARGEST_ONE_HOT:
        raise UserError(
            f"{opening}: {sum(options):,} options are too many (at most {LARGEST_ONE_HOT:,}). "
            f"{_WRAP_ACTION}"
        )
    combinations = math.prod(options)
    if combinations > MOST_CHOICES:
        return Space((len(options),), "int64", choices=options)
    return Space((), "int64", n=combinations)


def _options(space: MultiDiscrete | MultiBinary) -> tuple[int, ...]:
    """Returns the number of options of each entry of an action.

    space: the action space. An entry of a MultiBinary has two options.
    """
    if isinstance(space, MultiBinary):
        return (2,) * int(np.prod(space.shape))
    return tuple(space.nvec.ravel().tolist())


def _choices(space: MultiDiscrete | MultiBinary) -> Callable[[Array], Array]:
    options, shape, dtype = _options(space), space.shape, space.dtype
    factored = math.prod(options) > MOST_CHOICES
    start = space.start if isinstance(space, MultiDiscrete) else 0

    def entries(choice: Array) -> Array:
        own = choice if factored else np.stack(np.unravel_index(choice, options), -1)
        return (own.reshape(-1, *shape) + start).astype(dtype)

    return entries
