"""From an environment's name to the environment: ids, missing packages, and what an agent sees."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym

from dreamfleet.core.errors import UserError, nearest
from dreamfleet.core.types import EnvSpec
from dreamfleet.envs import (
    number_game,  # noqa: F401 - registers NumberGame-v1
    spaces,
)
from dreamfleet.envs.shaping import RewardFloor


def describe(env_id: str, **kwargs: Any) -> EnvSpec:
    """What an agent must know of `env_id`. Builds one environment and closes it."""
    env = make(env_id, **kwargs)
    try:
        return spec_of(env_id, env)
    finally:
        env.close()


def spec_of(env_id: str, env: gym.Env[Any, Any]) -> EnvSpec:
    """The spaces of `env` as an agent sees them."""
    return EnvSpec(
        env_id,
        obs=spaces.observation(env_id, env.observation_space),
        action=spaces.action(env_id, env.action_space),
    )


def make(env_id: str, *, reward_floor: float | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    """Build one environment from a Gymnasium id, `ALE/…` or `pkg.module:EnvId-v0`.

    reward_floor: the least reward it pays, whatever it is; kwargs are its own.
    Raises UserError for an unknown id, a module that cannot be imported, a missing package or an
    argument it does not take; what the environment's own constructor raises passes through.
    """
    find(env_id)
    try:
        # The rows are checked where they are made, on every step rather than on the first.
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        given = ", ".join(kwargs)
        raise UserError(f'env "{env_id}" was given {given}, but: {error}') from error
    except ModuleNotFoundError as missing:
        raise UserError(f'env "{env_id}" needs {_pip_line(missing)}') from missing
    except (gym.error.DependencyNotInstalled, ImportError) as missing:  # these say what to install
        reason = " ".join(str(missing).split())
        raise UserError(f'env "{env_id}" needs a package that is missing: {reason}') from missing
    if reward_floor is None:
        return env
    if env.metadata.get("batched"):
        raise UserError(f'env "{env_id}" is stepped as a batch, which takes no reward_floor.')
    return RewardFloor(env, reward_floor)


def find(env_id: str) -> None:
    """Import what `env_id` names, so that gymnasium can make it; UserError when nothing can."""
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module)
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


def _import(module: str) -> None:
    if str(Path.cwd()) not in sys.path:  # `python launch.py` puts the script's folder there instead
        sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name and f"{module}.".startswith(f"{missing.name}."):
            where = f"neither in {Path.cwd()} nor among the installed packages"
            raise UserError(
                f'env module "{module}" not found: "{missing.name}" is {where}'
            ) from missing
        raise UserError(f'env module "{module}" needs {_pip_line(missing)}') from missing
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f'env module "{module}" failed to import. {reason}') from error


def _register_atari(required: bool) -> None:
    try:
        from dreamfleet.envs import atari
    except ModuleNotFoundError as missing:
        if required:
            raise UserError("Atari environments need ale-py. Run: pip install ale-py") from missing
    else:
        atari.register()


def _pip_line(missing: ModuleNotFoundError) -> str:
    package = (missing.name or str(missing)).partition(".")[0]
    return f'"{package}", which is not installed. Run: pip install {package}'
