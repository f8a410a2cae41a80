"""Checks the cluster address, device, environment and agent of a run before the run starts."""

from __future__ import annotations

import ctypes
import os
import socket
from importlib import metadata
from pathlib import Path
from typing import Final

from dreamfleet import agents
from dreamfleet.core.config import RunConfig, unshaped
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EnvSpec

CONNECT_S: Final = 1.0  # how long connecting to a cluster may take
_CURRENT_CLUSTER: Final = Path(
    "/tmp/ray/ray_current_cluster"
)  # where `ray start` writes the address


def check_address(address: str) -> None:
    """Raises UserError unless a process accepts connections at the address of a Ray cluster.

    address: HOST:PORT, or `auto` for a cluster that runs on this machine.
    """
    target = resolve_address(address)
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--address must be HOST:PORT or auto; found {target!r}.")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: nobody answers at {target} ({error.strerror or error}). "
            "Start a cluster there (ray start --head --port PORT), or leave --address out."
        ) from None


def resolve_address(address: str) -> str:
    """Returns HOST:PORT of the Ray cluster to join. Raises UserError if `auto` finds no cluster.

    address: HOST:PORT, which is returned unchanged, or `auto` for a cluster on this machine.
    """
    if address != "auto":
        return address
    target = os.environ.get("RAY_ADDRESS", "")
    if not target and _CURRENT_CLUSTER.is_file():
        target = _CURRENT_CLUSTER.read_text().strip()
    if not target:
        raise UserError(
            "--address auto found no Ray cluster: RAY_ADDRESS is not set and none runs here. "
            "Start one (ray start --head), or leave --address out."
        )
    return target


def token_source() -> str:
    """Returns where Ray will find the token (password) for a cluster, or "" if there is no token.

    The result is the name of an environment variable or the path of a file.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        file = Path(path)
    else:
        file = Path.home() / ".ray" / "auth_token"
    return str(file) if file.is_file() and file.read_text().strip() else ""


def check_device(device: str) -> None:
    """Raises UserError if `device` is `cuda` and no GPU can be used.

    Asks the CUDA driver, not torch, because importing torch takes long.
    """
    if device != "cuda":
        return
    if metadata.version("torch").endswith("+cpu"):
        found = f"torch {metadata.version('torch')} is built without CUDA"
    else:
        found = _driver_problem()
    if found:
        raise UserError(f"--device cuda: {found}. Use --device cpu, or auto.")


def check_environment(config: RunConfig) -> tuple[EnvSpec, list[str]]:
    """Builds a run's environment and takes one step in it. Returns its spaces, and warnings.

    Raises UserError if the environment cannot be built, and if the reset or the step fails. Raises
    UserError if the environment with the `eval_env.…` settings has different spaces.
    """
    from dreamfleet.envs.first_step import try_first_step

    spec, warnings = try_first_step(config.env, config.env_options)
    if config.evaluated_options != unshaped(config.env_options):
        evaluated, _ = try_first_step(config.env, config.evaluated_options)
        if evaluated != spec:
            raise UserError(
                f"evaluations of {config.env} have {evaluated}, training has {spec}: change "
                "eval_env.… so that the spaces are the same."
            )
    return spec, warnings


def check_same_spaces(spec: EnvSpec, saved: RunConfig) -> None:
    """Raises UserError if new `env.…` settings change the spaces of a resumed run's environment.

    spec: the spaces with the new settings. saved: the run's configuration before these settings.
    """
    from dreamfleet.envs import registry

    before = registry.describe(saved.env, **saved.env_options)
    if spec != before:
        raise UserError(
            f"env.… of a resumed run cannot change its spaces: the run has {before}, and with "
            f"these settings {spec}. Leave env.… out, or start a new run."
        )


def check_agent(config: RunConfig, spec: EnvSpec) -> None:
    """Builds the agent of a run. Raises UserError for wrong options, spaces or replay tables.

    A user's own agent must also act, learn and dream once on synthetic rows. Imports torch.
    """
    from dreamfleet.runtime.blueprint import Blueprint

    path = agents.find(config.agent).path
    blueprint = Blueprint(config, spec, path)
    if config.agent not in agents.REGISTRY:
        from dreamfleet.runtime.trial import try_agent

        try_agent(path, spec, lambda: blueprint.agent("driver", "cpu"))
    blueprint.tables(blueprint.agent("driver", "cpu"))


def _driver_problem() -> str:
    """Returns why the CUDA driver finds no GPU, or "" if it finds one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver found on this machine"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the CUDA driver does not start"
    return "" if count.value > 0 else "the CUDA driver finds no device"
