"""Starts a new run or resumes one, after checking all arguments of the user."""

from __future__ import annotations

import sys
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

# Flags that may differ in a resumed run. All other flags must be those of the run.
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
    """The description of a run, from which `start` starts a new run or resumes an earlier one."""

    config: RunConfig
    settings: Mapping[str, Any]  # settings of the person beside flags, by dotted name
    resumed: Path | None  # the folder of the run to resume; None for a new run


def plan(
    flags_on: Callable[[Flags], Flags], settings: Mapping[str, Any], resume: str | None
) -> Plan:
    """Returns the description of a run, made from defaults, preset, flags and settings.

    flags_on: a function that takes flags, replaces those that the user gave, and returns the
    result. settings: dotted name, such as `agent.lr_policy` → value; settings replace flags.
    resume: the folder of a run, or `latest`; None: a new run. Raises UserError for unknown or
    contradictory values.
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
    """Starts or resumes a run, and trains until all steps are taken or a signal interrupts.

    Returns the exit code and the run's folder. command: the command line or call that started the
    run. Raises UserError for wrong arguments, and WorkerFailed when a part of the run fails and
    cannot be restarted.
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
    else:  # the devices of a cluster are not known yet
        preflight.check_device(config.device)

    sys.stderr.write(f"{first_line(config, resumed)}\n")  # all imports below take time
    sys.stderr.flush()
    from dreamfleet.runtime.display import Display

    with Display() as display:
        display.wait_for(f"checking {config.env} with one reset and one step")
        spec, warnings = preflight.check_environment(config)
        agents.check(config.agent, spec)
        if resumed is not None:
            preflight.check_same_spaces(spec, read_config(resumed))
        chosen = any(key.startswith(("agent.", "train.replay_")) for key in planned.settings)
        image = any(space.image for space in spec.observations.values())
        if chosen or image or config.agent not in agents.REGISTRY:
            display.wait_for(f"importing PyTorch and checking the agent {config.agent}")
            preflight.check_agent(config, spec)

        if resumed is None:
            opened = RunFolder.create(config, runs, command)
        else:
            opened = RunFolder.reopen(resumed, config, command)
            if config.address is None and (was := last_address(resumed)):
                warnings.append(
                    f"the run was on the cluster at {was}, and continues on this machine. To "
                    f"continue on the cluster: --address {was}"
                )
        with opened as folder:
            display.title = f"{config.agent} · {config.env} · {folder.path}"
            for warning in warnings:
                display.note(f"warning: {warning}")
            state = None
            if resumed is not None:
                from dreamfleet.runtime.resume import load_resume_state

                display.wait_for("loading the checkpoint")
                state = load_resume_state(folder.checkpoints, config)
                folder.record()
            display.wait_for("importing PyTorch" if config.local else "importing PyTorch and Ray")
            if config.local:
                from dreamfleet.runtime.local import train
            else:
                from dreamfleet.runtime.cluster import train
            return train(folder.config, folder, state, display), folder.path


def first_line(config: RunConfig, resumed: Path | None) -> str:
    """Returns the first line that a run prints: agent, environment, steps, number of processes.

    resumed: the folder of the run to resume; None for a new run.
    """
    verb = f"resuming {resumed}:" if resumed else "starting"
    parts = [_count(config.num_actors, "actor")]
    parts += [_count(config.num_dreamers, "dreamer")] if config.num_dreamers else []
    where = "in one thread" if config.local else f"{' and '.join(parts)} on Ray"
    return f"{verb} {config.agent} on {config.env}: {config.steps:,} steps, {where}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises UserError for a setting not named `train.…`, `agent.…`, `env.…` or `eval_env.…`.

    settings: dotted name → value, as `--set` gives them.
    """
    for key in settings:
        if not key.startswith(SETTABLE) or key.endswith("."):
            flags = {field.name: "--" + field.name.replace("_", "-") for field in fields(Flags)}
            use = f"; for this there is {flags[key]}" if key in flags else ""
            groups = ", ".join(f"{group}…" for group in SETTABLE)
            raise UserError(f"--set takes settings of {groups}{use}; found {key!r}.")


def check_same_run(
    saved: RunConfig, config: RunConfig, settings: Mapping[str, Any], path: Path
) -> None:
    """Raises UserError if new flags or settings contradict those of the run to resume.

    Only some flags, such as `--steps`, may change; settings `agent.…` may not. saved: the
    configuration of the run. config: `saved` with the new flags. settings: dotted name → new value.
    """
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
                f"--set {key} cannot change in a resumed run: its networks and optimizers were "
                "built with the old value. Leave it out, or start a new run."
            )


def run_path(given: str) -> Path:
    """Returns the folder of a run. given: its path, or `latest` for the most recent run."""
    return latest() if given == "latest" else Path(given)
