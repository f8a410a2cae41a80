"""What an environment returns and raises, checked where it is called."""

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

# Keys of the lines that a finished episode or an evaluation leaves in metrics.jsonl, which no
# environment's info may take.
OURS: Final = ("kind", "env_steps", "wall_s", "actor", "worker", "return", "length")


def reset_result(result: Any) -> tuple[Any, Mapping[Any, Any]] | None:
    """Returns what reset returned, or None where it is not (observation, info)."""
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], Mapping):
        return result[0], result[1]
    return None


def step_result(result: Any) -> tuple[Any, Any, Any, Any, Mapping[Any, Any]] | None:
    """Returns what step returned, or None where it is not five values, the last one info."""
    if isinstance(result, (tuple, list)) and len(result) == 5 and isinstance(result[4], Mapping):
        return tuple(result)
    return None


def described(result: Any) -> str:
    """Says in a few words what was returned: `a tuple (ndarray, float, bool)`, `a ndarray (3,)`."""
    kind = type(result).__name__
    if isinstance(result, (tuple, list)):
        return f"a {kind} ({', '.join(type(item).__name__ for item in result[:6])})"
    return f"a {kind} {result.shape}" if isinstance(result, np.ndarray) else f"a {kind}"


def shown(value: Any) -> str:
    """Returns the repr of a value on one line, and not all of a long one."""
    return reprlib.repr(value).replace("\n", " ")


def misunderstanding(error: Exception) -> str:
    """Says what gymnasium's wrappers expected where they stumbled over an old interface, or ""."""
    text = str(error)
    if isinstance(error, TypeError) and "reset()" in text and "unexpected keyword" in text:
        return RESET
    module, function = raised_in(error)
    if module.startswith("gymnasium.") and "unpack" in text:
        return RESET if function == "reset" else STEP
    return ""


def number(value: Any) -> float | None:
    """Returns a real number however it is wrapped: in an array of one element, as a Decimal.

    None for anything else, text among it, and NaN as NaN.
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
    """Returns a truth value however it is wrapped; None for anything but true, false, 1 and 0."""
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
    """Returns the numbers among what an environment says of its episode, by name.

    Whole numbers become floats, since evaluations average them. Texts, arrays, nested mappings,
    objects and numbers that are not finite are left out.
    """
    found: dict[str, bool | float] = {}
    for key, value in info.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, (bool, np.bool_)):
            found[named(key)] = bool(value)
        elif isinstance(value, (int, float, np.integer, np.floating)):
            real = _float(value)
            if real is not None and math.isfinite(real):
                found[named(key)] = real
    return found


def batched_facts(info: Mapping[Any, Any], n: int) -> dict[str, Array]:
    """Returns the numbers (N,) among what a batched environment says of its episodes, by name.

    Whole numbers stay: they are categories, such as NumberGame's tier.
    """
    return {
        named(key): value
        for key, value in info.items()
        if isinstance(key, str)
        and not key.startswith("_")  # gymnasium's masks of what other arrays hold
        and isinstance(value, np.ndarray)
        and value.shape == (n,)
        and value.dtype.kind in "biuf"
    }


def named(key: str) -> str:
    """Returns the name under which a fact is logged: never one of ours, and without a slash."""
    key = key.replace("/", "_")
    return f"info_{key}" if key in OURS else key
