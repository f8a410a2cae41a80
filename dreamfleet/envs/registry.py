"""From an environment's name to the environment: ids, missing packages, and what an agent sees."""

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
    spaces,
)
from dreamfleet.envs.shaping import RewardFloor


def describe(env_id: str, /, **kwargs: Any) -> EnvSpec:
    """What an agent must know of `env_id`. Builds one environment and closes it."""
    env = make(env_id, **kwargs)
    try:
        return spec_of(env_id, env)
    finally:
        close(env)


def close(env: Any) -> None:
    """Closes an environment; what it raises then harms nobody and is ignored."""
    try:
        env.close()
    except BaseException as error:
        if not isinstance(error, Exception) and interrupts(error):
            raise


def spec_of(env_id: str, env: gym.Env[Any, Any]) -> EnvSpec:
    """The spaces of `env` as an agent sees them. Raises UserError where it declares none."""
    for name in ("observation_space", "action_space"):
        declared = guarded(env_id, {}, partial(getattr, env, name, None))
        if not isinstance(declared, gym.Space):
            raise UserError(
                f'env "{env_id}" has {declared!r} as its {name}. Set self.{name} to a space of '
                "gymnasium.spaces in its constructor."
            )
    return EnvSpec(
        env_id,
        obs=spaces.observation(env_id, env.observation_space),
        action=spaces.action(env_id, env.action_space),
    )


def make(env_id: str, /, *, reward_floor: float | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Build one environment from a Gymnasium id, `ALE/…` or `pkg.module:EnvId-v0`.

    reward_floor: the least reward it pays, whatever it is; kwargs are its own.
    Raises UserError for an unknown id, a module that cannot be imported, a missing package, and
    whatever else its constructor raises.
    """
    find(env_id)
    # The rows are checked where they are made, on every step rather than on the first.
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
    """Returns what `build` makes of an environment. UserError, in one line, for what it raises."""
    try:
        with np.errstate():  # a constructor's np.seterr ends here
            return build()
    except UserError:
        raise
    except ModuleNotFoundError as missing:
        raise UserError(f'env "{env_id}" needs {pip_line(missing)}') from missing
    except (gym.error.DependencyNotInstalled, ImportError) as missing:  # these say what to install
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
    """Returns how to give an environment the arguments that it misses or to leave others out."""
    if not isinstance(error, TypeError):
        return ""
    if "required" in str(error) and "argument" in str(error):
        return ". Give what is missing: --set env.NAME=VALUE"
    if "unexpected keyword argument" in str(error):
        return ". Leave out what it does not take"
    return ""


def find(env_id: str) -> None:
    """Import what `env_id` names, so that gymnasium can make it; UserError when nothing can."""
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, "env")
    if name.startswith("ALE/") or name not in gym.registry:
        _register_atari(required=name.startswith("ALE/"))
    if name not in gym.registry:
        # Any id may follow a module, so the nearest one is named the way it would be typed.
        candidates = [f"{module}:{known}" for known in gym.registry] if module else known()
        hint = nearest(env_id, candidates)
        raise UserError(f'env "{env_id}" not found.{hint} See: python launch.py list envs')


def registered(env_id: str) -> Any:
    """Returns what Gymnasium knows of `env_id`, for processes where nobody registered it.

    Nothing where a module is named, as importing that registers it there.
    """
    return None if ":" in env_id else gym.registry.get(env_id)


def register_missing(entry: Any) -> None:
    """Registers what `registered` returned in another process, unless it is known here."""
    if entry is not None:
        gym.registry.setdefault(entry.id, entry)


def known() -> list[str]:
    """The newest version of every environment that gymnasium can make, sorted."""
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
