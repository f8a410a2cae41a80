"""Play a trained policy greedily and say how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamfleet import agents
from dreamfleet.core import checkpoint, seeding
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.run_folder import read_config

FILMED = 10  # environments that play together for a film, one of which is shown


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

    from dreamfleet.actors.episodes import summary  # heavy: only once the run is known to be one
    from dreamfleet.actors.evaluator import play
    from dreamfleet.envs.vector import GymVector
    from dreamfleet.runtime.blueprint import Blueprint

    blueprint = Blueprint.of(config)
    with seeding.seeded_globals(seed):
        if video is None:
            env = blueprint.evaluation(episodes)
        else:
            n, options = min(episodes, FILMED), config.evaluated_options
            env = GymVector(config.env, n, seed, options, video_dir=video)
        try:
            agent = blueprint.agent("evaluation", device)
            for group in agent.act_groups:
                agent.restore(group, state["agent"][group])
            played = play(env, agent, episodes, seed)
        finally:
            env.close()
    return {
        **summary(played),
        "agent": config.agent,
        "env": config.env,
        "env_steps": checkpoint.manifest(path)["env_steps"],
        "seed": seed,
        "checkpoint": str(path),
    }
