"""What can be found out about a run's surroundings before anything heavy starts."""

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

CONNECT_S: Final = 1.0
_CURRENT_CLUSTER: Final = Path("/tmp/ray/ray_current_cluster")  # where `ray start` leaves it


def check_address(address: str) -> None:
    """UserError unless something answers at `address`: HOST:PORT, or `auto` for a cluster here."""
    target = target_of(address)
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


def target_of(address: str) -> str:
    """Returns where a cluster is to be joined. UserError where `auto` finds none."""
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
    """Returns where Ray will take its token from, as it looks for it; empty where there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        file = Path(path)
    else:
        file = Path.home() / ".ray" / "auth_token"
    return str(file) if file.is_file() and file.read_text().strip() else ""


def check_device(device: str) -> None:
    """UserError for `cuda` where torch could not use it; asks the driver, as torch would."""
    if device != "cuda":
        return
    if metadata.version("torch").endswith("+cpu"):
        found = f"torch {metadata.version('torch')} is built without CUDA"
    else:
        found = _driver_fault()
    if found:
        raise UserError(f"--device cuda: {found}. Use --device cpu, or auto.")


def check_environment(config: RunConfig) -> tuple[EnvSpec, list[str]]:
    """Plays one step of the run's environment → its spaces, and what a person should be warned of.

    Raises UserError where it cannot be built with its arguments or breaks, and where evaluations
    play in other spaces.
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
    """UserError where new arguments give a resumed run an environment of other spaces."""
    from dreamfleet.envs import registry

    before = registry.describe(saved.env, **saved.env_options)
    if spec != before:
        raise UserError(
            f"env.… of the run to resume cannot change so: it has {before}, now {spec}. Leave it "
            "out, or start a new run."
        )


def check_agent(config: RunConfig, spec: EnvSpec) -> None:
    """UserError for an environment or options that the agent does not take, or tables that no
    replay could serve. A person's own agent is tried out.

    Builds an agent, which imports torch.
    """
    from dreamfleet.runtime.blueprint import Blueprint

    path = agents.find(config.agent).path
    blueprint = Blueprint(config, spec, path)
    if config.agent not in agents.REGISTRY:
        from dreamfleet.runtime.trial import try_agent

        try_agent(path, spec, lambda: blueprint.agent("driver", "cpu"))
    blueprint.tables(blueprint.agent("driver", "cpu"))


def _driver_fault() -> str:
    """Why the CUDA driver offers no device, or the empty string when it does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver found on this machine"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the CUDA driver does not start"
    return "" if count.value > 0 else "the CUDA driver finds no device"
