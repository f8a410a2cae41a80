"""The Python interface: trains runs, reads their metrics, and acts with trained policies."""

from __future__ import annotations

import json
import os
import reprlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamfleet.core.config import Flags, RunConfig, apply
from dreamfleet.core.errors import UserError, WorkerFailed, nearest
from dreamfleet.core.types import Agent, Array, EnvSpec, Event, State
from dreamfleet.envs.codec import Codec
from dreamfleet.runtime import start
from dreamfleet.runtime.run_folder import METRICS, check_is_run, read_config

KINDS: Final = ("episode", "eval", "learn", "world", "run", "fault", "milestone", "resume")


def load(
    run: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] = "latest",
    device: str = "auto",
) -> Policy:
    """Returns the trained policy of a run.

    run: the run's folder, or `latest` for the run in `runs/` with the most recent activity.
    checkpoint: `latest`, `best` (the highest mean return of an evaluation), or a path. device: cpu,
    cuda or auto. Raises UserError when the run or the checkpoint does not exist.
    """
    return Run(start.run_path(os.fspath(run))).policy(checkpoint, device)


def train(
    agent: str | None = None,
    env: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: str | os.PathLike[str] | None = None,
    **flags: Any,
) -> Run:
    """Trains an agent until the run has taken all its steps, and returns the run.

    agent, env: names; None: dreamer-lite and CartPole-v1. settings: dotted name → value, such as
    `{"agent.dream_horizon": 10}`. resume: the folder of a run to continue, or `latest`. flags:
    flags of the command line, such as `steps=5_000` or `local=True`.

    Raises UserError for wrong arguments. Raises WorkerFailed when a part of the run fails and
    cannot be restarted. After Ctrl-C, saves a checkpoint and raises KeyboardInterrupt.
    """
    named = {"agent": agent, "env": env}
    given = {name: value for name, value in named.items() if value is not None} | flags
    known = [flag.name for flag in fields(Flags)]
    for name in given:
        if name not in known:
            raise UserError(f"train takes no {name!r}.{nearest(name, known)}")
    if not isinstance(settings, Mapping | None):
        raise UserError(
            f'settings must be a mapping, as {{"agent.dream_horizon": 10}}; found {settings!r}.'
        )
    given = {name: plain(f"--{name}", value) for name, value in given.items()}
    chosen = {str(name): plain(str(name), value) for name, value in (settings or {}).items()}
    resumed = None if resume is None else os.fspath(resume)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the command line does
    planned = start.plan(lambda base: apply(base, given, "--"), chosen, resumed)
    words = [f"{name}={value!r}" for name, value in given.items()]
    words += [f"settings={chosen!r}"] if chosen else []
    words += [f"resume={resumed!r}"] if resumed is not None else []
    code, path = start.start(planned, f"dreamfleet.train({', '.join(words)})")
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt(f"stopped. Go on: dreamfleet.train(resume={str(path)!r})")
    if code:
        raise WorkerFailed(f"the run ended early (exit code {code}): see {path}.")
    return Run(path)


def plain(name: str, value: Any) -> Any:
    """Converts the value of a setting to plain numbers, texts, lists and dicts, as YAML needs.

    name: the name of the setting, for error messages. Raises UserError for a value that cannot be
    converted.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(name, value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{name} must be made of numbers, texts, lists and mappings; found "
        f"{reprlib.repr(value)} ({type(value).__name__})."
    )


@dataclass(frozen=True)
class Run:
    """A finished or running training run, with its configuration, metrics and policies.

    path: the run's folder.
    """

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        object.__setattr__(self, "path", Path(path))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> RunConfig:
        """All settings of the run, with the values of its last start or resume."""
        return read_config(self.path)

    def metrics(self, kind: str | None = None) -> list[Event]:
        """Returns the lines of the run's `metrics.jsonl` as dicts (events), oldest first.

        kind: the kind of events to return, such as "eval"; None: all kinds. Raises UserError for an
        unknown kind, and when the folder holds no run.
        """
        if kind not in (None, *KINDS):
            raise UserError(f"no events of kind {kind!r}.{nearest(str(kind), KINDS)}")
        check_is_run(self.path)
        text = (self.path / METRICS).read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line of a present run may be incomplete
        events = [json.loads(line) for line in whole.splitlines()]
        return [event for event in events if kind in (None, event["kind"])]

    def evaluate(
        self,
        episodes: int = 100,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] = "latest",
        device: str = "auto",
        video: str | Path | None = None,
    ) -> dict[str, Any]:
        """Plays greedy episodes with the policy of a checkpoint.

        Returns the dict that `launch.py eval --json` prints. seed: the same seed plays the same
        episodes. checkpoint: `latest`, `best`, or a path. device: auto, cpu or cuda. video: a
        folder for films of every tenth episode; the key `films` of the result holds their paths.
        """
        from dreamfleet.runtime.evaluate import evaluate

        return evaluate(
            self.path,
            episodes,
            seed,
            device,
            Path(video) if video else None,
            os.fspath(checkpoint),
        )

    def policy(self, checkpoint: str | os.PathLike[str] = "latest", device: str = "auto") -> Policy:
        """Returns the policy of a checkpoint.

        checkpoint: `latest`, `best` (the highest mean return of an evaluation), or the path of a
        checkpoint. device: auto, cpu or cuda.
        """
        from dreamfleet.runtime.evaluate import player

        played = player(self.path, os.fspath(checkpoint), device)
        config = played.blueprint.config
        codec = Codec(config.env, config.evaluated_options)
        return Policy(
            played.agent, played.blueprint.spec, codec, played.env_steps, played.checkpoint
        )


@dataclass(frozen=True)
class PolicyState:
    """The state of a policy in n environments, which `Policy.act` returns for its next call."""

    n: int
    memory: State = field(repr=False)
    kind: tuple[type, EnvSpec] = field(repr=False)  # class and spaces of the agent


class Policy:
    """A trained policy, loaded from a checkpoint. It acts greedily, without exploration.

    env_steps: number of env steps after which the checkpoint was saved. checkpoint: the path of the
    checkpoint.
    """

    def __init__(
        self, agent: Agent, spec: EnvSpec, codec: Codec, env_steps: int, checkpoint: Path
    ) -> None:
        self._agent, self._codec, self._kind = agent, codec, (type(agent), spec)
        self.env_steps, self.checkpoint = env_steps, checkpoint

    def act(
        self, obs: Any, state: PolicyState | None = None, first: Array | None = None
    ) -> tuple[Any, PolicyState]:
        """Chooses an action for one observation, or N actions for a batch of N observations.

        Returns the action, as the environment's `step` takes it, and the state for the next call.
        state: the state that the last call returned; None if an episode begins with each
        observation. first: bools of shape (N,); True for an observation that begins an episode.

        Raises ValueError for an observation outside the observation space, for a state of another
        policy, and if the numbers of environments differ.
        """
        rows, batched = self._codec.encode(obs)
        n = len(rows["obs"])
        if state is None:
            state = PolicyState(n, self._agent.initial_state(n), self._kind)
            first = np.ones(n, bool)
        elif not isinstance(state, PolicyState) or state.kind != self._kind:
            raise ValueError("the state is not one that this policy returned")
        elif state.n != n:
            raise ValueError(
                f"the state is of {state.n} environments, but there are {n} observations"
            )
        first = np.zeros(n, bool) if first is None else np.atleast_1d(np.asarray(first, bool))
        if first.shape != (n,):
            raise ValueError(f"first must be ({n},) flags; found an array of {first.shape}")
        nothing = np.zeros(n, bool)
        row = {
            **rows,
            "reward": np.zeros(n, np.float32),
            "first": first,
            "last": nothing,
            "terminal": nothing,
        }
        action, memory, _ = self._agent.act(row, state.memory, explore=False)
        decoded = self._codec.decode(action)
        return (decoded if batched else decoded[0]), PolicyState(n, memory, self._kind)
