"""Tries an environment with one reset and one step, before a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.own_code import in_line
from dreamfleet.core.types import Array, EnvSpec
from dreamfleet.envs.vector import GymVector

ATTEMPTS: Final = 5  # an environment may fail now and then; failing always is a mistake


def try_first_step(env_id: str, options: Mapping[str, Any]) -> tuple[EnvSpec, list[str]]:
    """Resets an environment and takes one step. Returns its spaces, and warnings for the user.

    Raises UserError if the environment cannot be built, or if all ATTEMPTS attempts at a reset and
    a step fail.
    """
    fault: Exception | None = None
    for attempt in range(ATTEMPTS):
        env = GymVector(env_id, 1, seed=attempt, options=options)
        try:
            env.reset()
            before = np.array(env.seen[0])
            env.step(np.zeros((1, *env.spec.action.shape), env.spec.action.dtype))
            return env.spec, _coarse(env, before, np.array(env.seen[0]))
        except UserError:
            raise
        except Exception as error:
            fault = error
        finally:
            env.close()
    assert fault is not None
    reason = str(fault) if isinstance(fault, EnvironmentFault) else in_line(fault)
    raise UserError(
        f'env "{env_id}" cannot be played: of {ATTEMPTS} tries to reset it and take one step, '
        f"each failed. {reason}"
    ) from fault


def _coarse(env: GymVector, before: Array, after: Array) -> list[str]:
    """Returns a list with one warning if a change of the observation is lost in float32, else [].

    before, after: the observations before and after one step. A change is lost if different numbers
    become equal when they are rounded to float32.
    """
    with np.errstate(over="ignore"):
        old, new = before.astype(np.float32), after.astype(np.float32)
    lost = np.argwhere((before != after) & (old == new))
    if not len(lost):
        return []
    place = tuple(lost[0])
    unit = float(np.spacing(abs(new[place])))
    where = env.where(place)
    return [
        f"{env.spec.env_id} observes {after[place]}{where}: agents see float32, which holds such "
        f"a number to within {unit:g}, so that smaller changes are lost. Observe its difference "
        "from the start of the episode, in the environment or in a "
        "gymnasium.wrappers.TransformObservation."
    ]
