"""A run in one thread, as `launch.py --local` makes it, for tests that look at what it learned."""

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
    """A finished run."""

    config: RunConfig
    path: Path

    @property
    def events(self) -> list[Event]:
        with open(self.path / "metrics.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def agent(self) -> Any:
        """The agent as the newest checkpoint keeps it."""
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
    """One actor and no evaluations, unless the `settings` of the run say so; `options`: agent's."""
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
