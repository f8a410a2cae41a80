"""Checks the values that environments return, and explains exceptions of environments."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dreamfleet.core.own_code import raised_in
from dreamfleet.core.types import Array

RESET: Final = "reset(seed, options) must return (observation, info)"
STEP: Final = "step(action) must return (observation, reward, terminated, truncated, info)"

# Keys of `episode` and `eval` lines in metrics.jsonl. Facts in an environment's info that have one
# of these names are renamed.
OURS: Final = ("kind", "env_steps", "wall_s", "actor", "worker", "return", "length")


def reset_result(result: Any) -> tuple[Any, Mapping[Any, Any]] | None:
    """Returns the (observation, info) that `reset` returned; None if it returned anything else."""
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], Mapping):
        return result[0], result[1]
    return None


def step_result(result: Any) -> tuple[Any, Any, Any, Any, Mapping[Any, Any]] | None:
    """Returns the five values that `step` returned; None if it returned anything else."""
    if isinstance(result, (tuple, list)) and len(result) == 5 and isinstance(result[4], Mapping):
        return tuple(result)
    return None


def described(result: Any) -> str:
    """Describes a value by its type and shape, such as `a tuple (ndarray, float)`."""
    kind = type(result).__name__
    if isinstance(result, (tuple, list)):
        return f"a {kind} ({', '.join(type(item).__name__ for item in result[:6])})"
    return f"a {kind} {result.shape}" if isinstance(result, np.ndarray) else f"a {kind}"


def shown(value: Any) -> str:
    """Returns the repr of a value on one line, shortened if it is long."""
    return reprlib.repr(value).replace("\n", " ")


def misunderstanding(error: Exception) -> str:
    """Returns which rule of gymnasium's interface an environment breaks, if an exception shows it.

    error: the exception. Environments with the interface of old Gym cause exceptions in the code of
    gymnasium's wrappers. Returns "" for any other exception.
    """
    text = str(error)
    if isinstance(error, TypeError) and "reset()" in text and "unexpected keyword" in text:
        return RESET
    module, function = raised_in(error)
    if module.startswith("gymnasium.") and "unpack" in text:
        return RESET if function == "reset" else STEP
    return ""


def number(value: Any) -> float | None:
    """Converts a number, an array of one number or a Decimal to a float. NaN stays NaN.

    Returns None for any other value, such as text.
    """
    if isinstance(value, (float, int)):
        return _float(value)
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        return None
    if array.size != 1 or array.dtype.kind not in "biufO":
        return None
    item = array.reshape(-1)[0]
    return None if item is None or isinstance(item, (str, bytes)) else _float(item)


def flag(value: Any) -> bool | None:
    """Converts a bool, 1, 0 or an array of one of these to a bool.

    Returns None for any other value.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    found = number(value)
    return bool(found) if found in (0.0, 1.0) else None


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


# --------------------------------------------------------------------------------------- infos


def facts(info: Mapping[Any, Any]) -> dict[str, bool | float]:
    """Returns the numbers and bools in an environment's `info`, by name.

    An array of one number counts as a number. Integers become floats. Text, larger arrays, nested
    mappings, objects, NaN and infinity are left out.
    """
    found: dict[str, bool | float] = {}
    for key, value in info.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if isinstance(value, (bool, np.bool_)):
            found[named(key)] = bool(value)
        elif isinstance(value, (int, float, np.integer, np.floating)):
            real = _float(value)
            if real is not None and math.isfinite(real):
                found[named(key)] = real
    return found


def batched_facts(info: Mapping[Any, Any], n: int) -> dict[str, Array]:
    """Returns the arrays (N,) of numbers or bools in a batched environment's `info`, by name.

    n: the number of environments. Integers stay integers.

    As in gymnasium, a bool array `_name` in `info` tells for which environments `name` has a value.
    For the other environments, the value becomes None.
    """
    found = {}
    for key, value in info.items():
        if isinstance(key, str) and not key.startswith("_") and _column(value, n, "biuf"):
            mask: Any = info.get(f"_{key}")
            if _column(mask, n, "b") and not mask.all():
                value = np.where(mask, value.astype(object), None)
            found[named(key)] = value
    return found


def named(key: str) -> str:
    """Returns the name under which a value of an environment's `info` is logged.

    Slashes become underscores. A name that the log itself uses (a name in OURS) gets the prefix
    `info_`.
    """
    key = key.replace("/", "_")
    return f"info_{key}" if key in OURS else key


def _column(value: Any, n: int, kinds: str) -> bool:
    """Returns whether a value is an array (n,) with a dtype of the given kinds.

    kinds: numpy's letters for kinds of dtypes, such as "biuf" for bool, integers and floats.
    """
    return isinstance(value, np.ndarray) and value.shape == (n,) and value.dtype.kind in kinds
