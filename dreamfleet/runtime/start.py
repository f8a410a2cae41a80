"""Starts a run or goes on with one, after all that a person can get wrong was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from dreamfleet import agents
from dreamfleet.core.config import Flags, RunConfig, configure
from dreamfleet.core.errors import UserError
from dreamfleet.runtime import preflight, presets
from dreamfleet.runtime.run_folder import (
    RUNS,
    RunFolder,
    check_new,
    last_address,
    latest,
    read_config,
)

SETTABLE: Final = ("train.", "agent.", "env.", "eval_env.")  # groups of settings

# What a resumed run may do differently; the rest is what the run is.
MAY_CHANGE: Final = (
    "steps",
    "num_actors",
    "num_dreamers",
    "address",
    "local",
    "dashboard",
    "device",
)


@dataclass(frozen=True)
class Plan:
    """A run to be started, or one to go on with: what `start` needs."""

    config: RunConfig
    settings: Mapping[str, Any]  # dotted: what was given beside flags
    resumed: Path | None  # the folder of the run to go on with


def plan(
    flags_on: Callable[[Flags], Flags], settings: Mapping[str, Any], resume: str | None
) -> Plan:
    """Merges defaults, preset or earlier run, flags and settings; each later one wins → a Plan.

    flags_on: given the flags there are without a person's, the flags with them. settings: dotted,
    as of `--set`. resume: a run's folder or `latest`. Raises UserError for what cannot be.
    """
    check_settings(settings)
    if resume is None:
        flags = flags_on(Flags())
        agents.find(flags.agent)
        known = presets.find(flags.agent, flags.env, flags.preset)
        base, path = configure(RunConfig(), known, source="preset"), None
    else:
        path = run_path(resume)
        base = read_config(path)
        agents.find(base.agent)
    flags = flags_on(Flags(**{field.name: getattr(base, field.name) for field in fields(Flags)}))
    config = replace(base, **vars(flags))
    if path is not None:
        check_same_run(base, config, settings, path)
    return Plan(configure(config, settings), settings, path)


def start(planned: Plan, command: str) -> tuple[int, Path]:
    """Trains until the steps are done or somebody interrupts → the exit code, the run's folder.

    command: what the person called, for the record. Raises UserError before anything
    is written, and WorkerFailed when a part breaks for good.
    """
    config, resumed = planned.config, planned.resumed
    # An environment may change the working directory as soon as one is built.
    runs, resumed = RUNS.absolute(), resumed.absolute() if resumed else None
    if config.run_dir:
        config = replace(config, run_dir=str(Path(config.run_dir).absolute()))
    if resumed is None and config.run_dir:
        check_new(Path(config.run_dir))
    if config.address:
        preflight.check_address(config.address)
    else:  # a cluster's devices are its own
        preflight.check_device(config.device)
    spec, warnings = preflight.check_environment(config)
    agents.check(config.agent, spec)
    if resumed is not None:
        preflight.check_same_spaces(spec, read_config(resumed))
    chosen = any(key.startswith(("agent.", "train.replay_")) for key in planned.settings)
    if chosen or spec.obs.image or config.agent not in agents.REGISTRY:
        preflight.check_agent(config, spec)  # imports torch: the last of the checks

    from dreamfleet.runtime.display import Display

    if resumed is None:
        opened = RunFolder.create(config, runs, command)
    else:
        opened = RunFolder.reopen(resumed, config, command)
        if config.address is None and (was := last_address(resumed)):
            warnings.append(
                f"the run was on the cluster at {was}, and goes on here. To go on there: "
                f"--address {was}"
            )
    with opened as folder:
        state = None
        if resumed is not None:
            from dreamfleet.runtime.resume import load_resume_state

            state = load_resume_state(folder.checkpoints, config)
            folder.record()
        if config.local:
            from dreamfleet.runtime.local import train
        else:
            from dreamfleet.runtime.cluster import train
        with Display(f"{config.agent} · {config.env} · {folder.path}") as display:
            for warning in warnings:
                display.note(f"warning: {warning}")
            return train(folder.config, folder, state, display), folder.path


def check_settings(settings: Mapping[str, Any]) -> None:
    """UserError for a setting that belongs to no group."""
    for key in settings:
        if not key.startswith(SETTABLE) or key.endswith("."):
            flags = {field.name: "--" + field.name.replace("_", "-") for field in fields(Flags)}
            use = f"; for this there is {flags[key]}" if key in flags else ""
            groups = ", ".join(f"{group}…" for group in SETTABLE)
            raise UserError(f"--set takes settings of {groups}{use}; found {key!r}.")


def check_same_run(
    saved: RunConfig, config: RunConfig, settings: Mapping[str, Any], path: Path
) -> None:
    """UserError where a resumed run is asked to be another run."""
    for field in fields(Flags):
        was, now = getattr(saved, field.name), getattr(config, field.name)
        if field.name == "run_dir" and now and Path(now).absolute() == path.absolute():
            continue
        if was != now and field.name not in MAY_CHANGE:
            flag = "--" + field.name.replace("_", "-")
            raise UserError(
                f"{flag} {now} contradicts the run to resume: {path} has {was}. "
                f"Leave {flag} out, or start a new run."
            )
    for key in settings:
        if key.startswith("agent."):
            raise UserError(
                f"--set {key} cannot change in a resumed run: its networks and optimisers were "
                "built without it. Leave it out, or start a new run."
            )


def run_path(given: str) -> Path:
    """Returns a run's folder, as a person names it."""
    return latest() if given == "latest" else Path(given)
