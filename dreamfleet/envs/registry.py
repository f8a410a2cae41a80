"""Builds environments by id, and explains why an environment cannot be built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.own_code import import_module, in_line, interrupts, pip_line
from dreamfleet.core.types import EnvSpec
from dreamfleet.envs import (
    number_game,  # noqa: F401 - registers NumberGame-v1
    pixel_catch,  # noqa: F401 - registers PixelCatch-v1
    spaces,
)
from dreamfleet.envs.shaping import RewardFloor


def describe(env_id: str, /, **kwargs: Any) -> EnvSpec:
    """Returns the spaces of environment `env_id`. Builds one environment and closes it.

    kwargs: arguments of the environment.
    """
    env = make(env_id, **kwargs)
    try:
        return spec_of(env_id, env)
    finally:
        close(env)


def close(env: Any) -> None:
    """Closes an environment. Exceptions that its `close` raises are ignored."""
    try:
        env.close()
    except BaseException as error:
        if not isinstance(error, Exception) and interrupts(error):
            raise


def spec_of(env_id: str, env: gym.Env[Any, Any]) -> EnvSpec:
    """Returns the spaces of `env` as an agent sees them. Raises UserError if `env` lacks spaces.

    env_id: the id of `env`, for the error message.
    """
    for name in ("observation_space", "action_space"):
        declared = guarded(env_id, {}, partial(getattr, env, name, None))
        if not isinstance(declared, gym.Space):
            raise UserError(
                f'env "{env_id}" has {declared!r} as its {name}. Set self.{name} to a space of '
                "gymnasium.spaces in its constructor."
            )
    observations = spaces.observations(env_id, env.observation_space)
    return EnvSpec(
        env_id,
        obs=observations.pop("obs"),
        action=spaces.action(env_id, env.action_space),
        more_obs=observations,
    )


def make(env_id: str, /, *, reward_floor: float | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Builds one environment from a Gymnasium id, `ALE/…` or `pkg.module:EnvId-v0`.

    reward_floor: lower rewards are raised to this number. kwargs: arguments of the environment.
    Raises UserError for an unknown id, a module that cannot be imported, a missing package, and any
    exception of the environment's constructor.
    """
    find(env_id)
    # `GymVector` checks every step; gymnasium's checker would check the first step only.
    env: gym.Env[Any, Any] = guarded(
        env_id, kwargs, lambda: gym.make(env_id, disable_env_checker=True, **kwargs)
    )
    if reward_floor is None:
        return env
    number = isinstance(reward_floor, (int, float)) and not isinstance(reward_floor, bool)
    if not number or not math.isfinite(reward_floor):
        raise UserError(f"env.reward_floor must be a number or null; found {reward_floor!r}.")
    if env.metadata.get("batched"):
        raise UserError(
            f'env "{env_id}" is stepped as a batch, which takes no reward_floor. '
            "Leave env.reward_floor out."
        )
    return RewardFloor(env, reward_floor)


def guarded(env_id: str, options: Mapping[str, Any], build: Callable[[], Any]) -> Any:
    """Calls the function `build` and returns its result. Turns its exceptions into UserErrors.

    The message has one line. env_id, options: the environment and its arguments, for the message.
    KeyboardInterrupt after Ctrl-C is not converted.
    """
    try:
        with np.errstate():  # a constructor's np.seterr ends here
            return build()
    except UserError:
        raise
    except ModuleNotFoundError as missing:
        raise UserError(f'env "{env_id}" needs {pip_line(missing)}') from missing
    except (gym.error.DependencyNotInstalled, ImportError) as missing:  # the text says the package
        reason = " ".join(str(missing).split())
        raise UserError(f'env "{env_id}" needs a package that is missing: {reason}') from missing
    except BaseException as error:
        if not isinstance(error, Exception) and interrupts(error):
            raise
        given = f" with {', '.join(f'{k}={v!r}' for k, v in options.items())}" if options else ""
        raise UserError(
            f'env "{env_id}" could not be built{given}: {in_line(error)}{_advice(error)}'
        ) from error


def _advice(error: BaseException) -> str:
    """Returns what a user can do about a missing or unknown argument of an environment; else "".

    error: an exception of the environment's constructor. The advice is appended to the error
    message.
    """
    if not isinstance(error, TypeError):
        return ""
    if "required" in str(error) and "argument" in str(error):
        return ". Give what is missing: --set env.NAME=VALUE"
    if "unexpected keyword argument" in str(error):
        return ". Leave this argument out"
    return ""


def find(env_id: str) -> None:
    """Imports the module of `env_id`, so that gymnasium knows the id.

    Raises UserError if the module cannot be imported, or if gymnasium does not know the id then.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, "env")
    if name.startswith("ALE/") or name not in gym.registry:
        _register_atari(required=name.startswith("ALE/"))
    if name not in gym.registry:
        # Any id may follow a module, so the nearest one is named the way it would be typed.
        candidates = [f"{module}:{known}" for known in gym.registry] if module else known()
        hint = nearest(env_id, candidates)
        raise UserError(
            f'env "{env_id}" not found.{hint} See: launch.py list envs. '
            "An environment of your own is named module:EnvId."
        )


def registered(env_id: str) -> Any:
    """Returns gymnasium's registration of `env_id`, to send it to processes that lack it.

    Returns None if `env_id` names a module (`pkg.module:EnvId-v0`): those processes register the id
    when they import the module.
    """
    return None if ":" in env_id else gym.registry.get(env_id)


def register_missing(entry: Any) -> None:
    """Registers an environment in this process, unless gymnasium knows its id already.

    entry: the result of `registered` in another process, which may be None.
    """
    if entry is not None:
        gym.registry.setdefault(entry.id, entry)


def known() -> list[str]:
    """Returns the sorted ids of all registered environments, only the newest version of each."""
    _register_atari(required=False)
    newest: dict[tuple[str | None, str], gym.envs.registration.EnvSpec] = {}
    for spec in gym.registry.values():
        key = (spec.namespace, spec.name)
        if key not in newest or (spec.version or 0) > (newest[key].version or 0):
            newest[key] = spec
    return sorted(spec.id for spec in newest.values() if spec.entry_point is not None)


def _register_atari(required: bool) -> None:
    try:
        from dreamfleet.envs import atari
    except ModuleNotFoundError as missing:
        if required:
            raise UserError("Atari environments need ale-py. Run: pip install ale-py") from missing
    else:
        atari.register()
