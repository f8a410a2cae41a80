"""Play a trained policy greedily and say how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import agents
from core import checkpoint
from core.errors import UserError
from runtime.run_folder import read_config

ENVS = 10  # stepped together; the same with and without video, so that both play the same episodes


def evaluate(
    run: Path, episodes: int, seed: int, device: str, video: Path | None = None
) -> dict[str, Any]:
    """Greedy episodes of the newest checkpoint of `run` → their figures, ready for JSON.

    Returns are undiscounted and unshaped. `video`: a folder for films of every tenth episode.
    Raises UserError when `run` holds no run, or none of its checkpoints can be read.
    """
    config = read_config(run)
    agents.find(config.agent)
    path = checkpoint.newest(run / "checkpoints", agent=config.agent, env=config.env)
    if path is None:
        raise UserError(f"run {run} has no checkpoint yet. Train it on: --resume {run}")
    state = checkpoint.load(path)

    from actors.evaluator import play, summary  # heavy: only once the run is known to be one
    from envs.vector import GymVector
    from runtime.blueprint import Blueprint

    env = GymVector(config.env, min(episodes, ENVS), seed, video_dir=video)
    try:
        agent = Blueprint.of(config).agent("evaluation", device)
        for group in agent.act_groups:
            agent.restore(group, state["agent"][group])
        returns, lengths = play(env, agent, episodes)
    finally:
        env.close()
    return {
        **summary(returns, lengths),
        "agent": config.agent,
        "env": config.env,
        "env_steps": checkpoint.manifest(path)["env_steps"],
        "seed": seed,
        "checkpoint": str(path),
    }
