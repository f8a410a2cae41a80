"""Trains an agent in one thread, for tests that examine the trained agent or its metrics."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.types import Agent, Event
from dreamfleet.runtime import local
from dreamfleet.runtime.blueprint import Blueprint, weight_groups
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration and its folder."""

    config: RunConfig
    path: Path

    @property
    def events(self) -> list[Event]:
        with open(self.path / "metrics.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def agent(self) -> Any:
        """Returns the agent, restored from the newest checkpoint of the run."""
        newest = checkpoint.newest(
            self.path / "checkpoints", agent=self.config.agent, env=self.config.env
        )
        assert newest is not None
        state = checkpoint.load(newest)["agent"]
        agent: Agent = Blueprint.of(self.config).agent("test", "cpu")
        for group in weight_groups(agent):
            agent.restore(group, state[group])
        return agent


def train(path: Path, env: str, steps: int, *, options: dict[str, Any], **settings: Any) -> Run:
    """Trains in one thread and returns the run. By default with one actor and no evaluations.

    options: options of the agent. settings: fields of `RunConfig` that replace the defaults.
    """
    config = RunConfig(
        env=env,
        steps=steps,
        local=True,
        device="cpu",
        run_dir=str(path),
        agent_options=options,
        **{"num_actors": 1, "train": TrainConfig(chunk=4, eval_every=0), **settings},
    )
    display = Display("test", Console(file=io.StringIO()))
    with RunFolder.create(config) as folder:
        assert local.train(config, folder, None, display) == 0
    return Run(config, path)
