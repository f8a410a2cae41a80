"""Compiles functions of tensors by torch.compile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from dreamfleet.core.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def compile_on_first_call(function: F, device: str) -> F:
    """Returns a version of `function` that torch.compile compiles at the first call.

    All calls must pass tensors of the same shapes. Raises UserError if `device` is a CPU and there
    is no C++ compiler.
    """
    if device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            "agent.compile needs a C++ compiler on a CPU, and none was found. "
            "Install g++, or set agent.compile=false."
        )

    @cache  # importing torch's compiler takes a second, and many processes never call the function
    def compiled() -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    return cast(F, lambda *args: compiled()(*args))
