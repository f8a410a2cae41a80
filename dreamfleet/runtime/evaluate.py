"""Play a trained policy greedily and say how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamfleet import agents
from dreamfleet.core import checkpoint as checkpoints
from dreamfleet.core import seeding
from dreamfleet.core.config import LARGEST_SEED, Flags
from dreamfleet.core.errors import EnvironmentFault, UserError, WorkerFailed
from dreamfleet.core.types import Agent
from dreamfleet.runtime import preflight
from dreamfleet.runtime.run_folder import BEST, CHECKPOINTS, read_config

if TYPE_CHECKING:
    from dreamfleet.runtime.blueprint import Blueprint

MOST_EPISODES: Final = 1_000_000  # each has a seed, and all seeds are drawn at once
FILMED: Final = 10  # environments that play together for a film, one of which is shown


@dataclass(frozen=True)
class Player:
    """An agent that acts as a checkpoint of a run does."""

    blueprint: Blueprint
    agent: Agent
    env_steps: int  # how long it had learned
    checkpoint: Path


def player(run: Path, checkpoint: str = "latest", device: str = "auto") -> Player:
    """Returns the agent of `run` with the policy of a checkpoint; the replay is not read.

    checkpoint: `latest`, `best` by evaluation score (of equal ones the newer), or the path of one.
    A damaged one is passed over for the newest whole one, unless its path was given. device: auto,
    cpu or cuda. Raises UserError when `run` holds no run, or no such checkpoint or device.
    """
    Flags(device=device)
    preflight.check_device(device)
    config = read_config(run)
    agents.find(config.agent)
    folder = {"latest": run / CHECKPOINTS, "best": run / BEST}.get(checkpoint)
    if folder and not any(folder.glob("ckpt-*")):
        raise UserError(_no_checkpoint(run, checkpoint))

    from dreamfleet.runtime.blueprint import Blueprint  # heavy, as is an agent

    blueprint = Blueprint.of(config)
    agent = blueprint.agent("evaluation", device)

    def load(state: Mapping[str, Any]) -> None:
        load_policy(agent, state)

    about: dict[str, Any] = {"agent": config.agent, "env": config.env}
    about |= {"parts": ("agent", "weights"), "check": load}
    if folder:
        saved = checkpoints.read_newest(folder, **about)
        assert saved is not None
    else:
        saved = checkpoints.read(Path(checkpoint), **about)
    return Player(blueprint, agent, saved.env_steps, saved.path)


def evaluate(
    run: Path,
    episodes: int,
    seed: int,
    device: str,
    video: Path | None = None,
    checkpoint: str = "latest",
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Greedy episodes of a checkpoint of `run` → their figures, ready for JSON.

    Returns are undiscounted and unshaped. `video`: a folder for films of every tenth episode.
    `checkpoint`: as for `player`. `max_steps`: an episode is cut short there; None: where the run's
    own evaluations are. Raises UserError for a number out of its range, as `player` does, and
    WorkerFailed when an environment breaks its contract.
    """
    for name, value, low, high in (
        ("episodes", episodes, 1, MOST_EPISODES),
        ("max-steps", 1 if max_steps is None else max_steps, 1, None),
        ("seed", seed, 0, LARGEST_SEED),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"--{name} must be a whole number; found {value!r}.")
        if value < low or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"--{name} must be {limit}; found {value}.")
    video = video.absolute() if video else None  # an environment may change the working directory
    found = player(run, checkpoint, device)
    config = found.blueprint.config

    from dreamfleet.actors.episodes import summary
    from dreamfleet.actors.evaluator import play
    from dreamfleet.envs.vector import GymVector

    with seeding.seeded_globals(seed):
        if video is None:
            env = found.blueprint.evaluation_env(episodes)
        else:
            n, options = min(episodes, FILMED), config.evaluated_options
            env = GymVector(config.env, n, seed, options, video_dir=video)
        try:
            played = play(env, found.agent, episodes, seed, max_steps or config.train.eval_steps)
        except EnvironmentFault as fault:
            raise WorkerFailed(f"the evaluation broke: {fault}") from None
        finally:
            env.close()
    return {
        **summary(played),
        "agent": config.agent,
        "env": config.env,
        "env_steps": found.env_steps,
        "seed": seed,
        "checkpoint": str(found.checkpoint),
    }


def load_policy(agent: Agent, state: Mapping[str, Any]) -> None:
    """Give `agent` the policy of a checkpoint's state. Raises UserError where it does not fit.

    The state of a run holds an agent as it learns on; the best one only the weights it acted with.
    """
    from dreamfleet.runtime.resume import load_groups, restore_groups

    if "weights" in state:
        load_groups(agent.act_groups, state["weights"], agent.load)
    else:
        restore_groups(agent, agent.act_groups, state.get("agent"))


def _no_checkpoint(run: Path, checkpoint: str) -> str:
    if checkpoint == "best":
        return f"run {run} has no best checkpoint: it made no evaluation. Use --checkpoint latest."
    return (
        f"run {run} has no checkpoint yet. While it runs, wait for its first one; "
        "if it has ended, start a new run."
    )
