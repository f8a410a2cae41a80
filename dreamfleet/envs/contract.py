"""Checks the values that environments return, and explains their exceptions."""

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
    """Returns (observation, info) as `reset` returned them; None for any other result."""
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], Mapping):
        return result[0], result[1]
    return None


def step_result(result: Any) -> tuple[Any, Any, Any, Any, Mapping[Any, Any]] | None:
    """Returns the five values that `step` returned; None for any other result."""
    if isinstance(result, (tuple, list)) and len(result) == 5 and isinstance(result[4], Mapping):
        return tuple(result)
    return None


def described(result: Any) -> str:
    """Returns a short description of a value: `a tuple (ndarray, float)`, `a ndarray (3,)`."""
    kind = type(result).__name__
    if isinstance(result, (tuple, list)):
        return f"a {kind} ({', '.join(type(item).__name__ for item in result[:6])})"
    return f"a {kind} {result.shape}" if isinstance(result, np.ndarray) else f"a {kind}"


def shown(value: Any) -> str:
    """Returns the repr of a value on one line, shortened if it is long."""
    return reprlib.repr(value).replace("\n", " ")


def misunderstanding(error: Exception) -> str:
    """Returns the interface that an environment lacks, if an exception of gymnasium shows it.

    Gymnasium's wrappers fail in their own code when an environment has the old Gym interface.
    Returns "" for other exceptions.
    """
    text = str(error)
    if isinstance(error, TypeError) and "reset()" in text and "unexpected keyword" in text:
        return RESET
    module, function = raised_in(error)
    if module.startswith("gymnasium.") and "unpack" in text:
        return RESET if function == "reset" else STEP
    return ""


def number(value: Any) -> float | None:
    """Returns a real number, also from an array of one element or a Decimal; NaN stays NaN.

    Returns None for anything else, such as text.
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
    """Returns a bool, also from 1, 0 or an array of one element; None for anything else."""
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
    """Returns the numbers and bools in an environment's info, by name: facts about an episode.

    A fact may be an array of one element. Whole numbers become floats, since evaluations average
    them. Texts, larger arrays, nested mappings, objects and numbers that are not finite are left
    out.
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
    """Returns the numbers and bools (N,) in a batched environment's info, by name.

    Whole numbers stay whole: they are categories, such as NumberGame's tier. In gymnasium, the
    array `_name` is True where `name` holds a value; other places become None.
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
    """Returns the name under which a fact is logged: without a slash, and not one of `OURS`."""
    key = key.replace("/", "_")
    return f"info_{key}" if key in OURS else key


def _column(value: Any, n: int, kinds: str) -> bool:
    """Tells whether a value is an array (N,) with a dtype of these kinds."""
    return isinstance(value, np.ndarray) and value.shape == (n,) and value.dtype.kind in kinds
