"""Plays greedy episodes of a trained policy and computes their statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamfleet import agents
from dreamfleet.core import checkpoint as checkpoints
from dreamfleet.core import seeding
from dreamfleet.core.config import LARGEST_SEED, Flags, RunConfig, configure
from dreamfleet.core.errors import EnvironmentFault, UserError, WorkerFailed
from dreamfleet.core.types import Agent
from dreamfleet.runtime import preflight
from dreamfleet.runtime.run_folder import BEST, CHECKPOINTS, read_config

if TYPE_CHECKING:
    from dreamfleet.runtime.blueprint import Blueprint

MOST_EPISODES: Final = 1_000_000  # each has a seed, and all seeds are drawn at once
FILMED: Final = 10  # environments that play together when a film is made; the first one is filmed


@dataclass(frozen=True)
class Player:
    """The agent of a run with the policy of one checkpoint, ready to play episodes."""

    blueprint: Blueprint
    agent: Agent
    env_steps: int  # steps of the run when the checkpoint was saved
    checkpoint: Path


def player(
    run: Path,
    checkpoint: str = "latest",
    device: str = "auto",
    say: Callable[[str], object] = lambda line: None,
    settings: Mapping[str, Any] | None = None,
    groups: Callable[[Agent, str], tuple[str, ...]] = lambda agent, checkpoint: agent.act_groups,
) -> Player:
    """Returns the agent of a run with the policy of one checkpoint. Does not read the saved replay.

    checkpoint: `latest`, `best` (the highest mean return of an evaluation), or a path. `latest` and
    `best` skip damaged checkpoints. device: auto, cpu or cuda. say: a function that gets one line
    to print. settings: settings to change, as `with_settings` takes them. groups: a function of the
    agent and of `checkpoint` that returns the weight groups to load; default: those for acting.

    Raises UserError when the run, the checkpoint or the device does not exist.
    """
    Flags(device=device)
    preflight.check_device(device)
    config = read_config(run)
    agents.find(config.agent)
    config = with_settings(config, settings or {})
    folder = {"latest": run / CHECKPOINTS, "best": run / BEST}.get(checkpoint)
    if folder and not any(folder.glob("ckpt-*")):
        raise UserError(_no_checkpoint(run, checkpoint))

    say(f"loading the {checkpoint} policy of {run}" if folder else f"loading {checkpoint}")
    from dreamfleet.runtime.blueprint import Blueprint  # takes long to import, as an agent does

    blueprint = Blueprint.of(config)
    if settings:
        blueprint.check_evaluated_spaces()
    agent = blueprint.agent("evaluation", device)
    needed = groups(agent, checkpoint)

    def load(state: Mapping[str, Any]) -> None:
        load_weights(agent, needed, state)

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
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Plays greedy episodes with the policy of a checkpoint. Returns statistics as a dict for JSON.

    Returns of episodes are undiscounted sums of the environment's own rewards. seed: the same seed
    plays the same episodes. video: a folder for films of every tenth episode. checkpoint: `latest`,
    `best`, or a path. max_steps: steps after which an episode is truncated; None:
    `train.eval_steps`. settings: settings to change, as `with_settings` takes them. say: a function
    that gets lines to print.

    Raises UserError for a wrong number, and when the run, the checkpoint or the device does not
    exist. Raises WorkerFailed when the environment raises an error or returns invalid values.
    """
    for name, value, low, high in (
        ("episodes", episodes, 1, MOST_EPISODES),
        ("max-steps", 1 if max_steps is None else max_steps, 1, None),
        ("seed", seed, 0, LARGEST_SEED),
    ):
        check_number(name, value, low, high)
    video = video.absolute() if video else None  # an environment may change the working directory
    found = player(run, checkpoint, device, say, settings)
    config = found.blueprint.config
    say(f"playing {episodes:,} episode{'s' * (episodes != 1)} of {config.env}")

    from dreamfleet.actors.episodes import summary
    from dreamfleet.actors.evaluator import play
    from dreamfleet.envs.film import quiet
    from dreamfleet.envs.vector import GymVector

    with seeding.seeded_globals(seed), quiet() if video else nullcontext():
        if video:
            n, options = min(episodes, FILMED), config.evaluated_options
            env: Any = GymVector(config.env, n, seed, options, video_dir=video)
        else:
            env = found.blueprint.evaluation_env(episodes)
        try:
            played = play(env, found.agent, episodes, seed, max_steps or config.train.eval_steps)
            films = {"films": [str(film) for film in env.films()]} if video else {}
        except EnvironmentFault as fault:
            raise WorkerFailed(f"the evaluation broke: {fault}") from None
        finally:
            env.close()
    return {
        **summary(played),
        **films,
        "agent": config.agent,
        "env": config.env,
        **options_in(found.blueprint, settings),
        "env_steps": found.env_steps,
        "seed": seed,
        "checkpoint": str(found.checkpoint),
    }


def check_number(name: str, value: Any, low: int, high: int | None) -> None:
    """Raises UserError unless the value of the flag `name` is a whole number from `low` to `high`.

    high: None: there is no upper limit.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"--{name} must be a whole number; found {value!r}.")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"--{name} must be {limit}; found {value}.")


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration of a run with other settings for an evaluation.

    settings: dotted name → value. `env.NAME` is an argument of the evaluation environment;
    `agent.NAME` is a setting that the agent's `act_settings` lists. Raises UserError for any other
    name.
    """
    for name, value in settings.items():
        group, _, option = name.partition(".")
        if group == "env" and option:
            config = configure(config, {f"eval_{name}": value})
        elif group == "agent":
            allowed = getattr(agents.load(config.agent), "act_settings", ())
            if option not in allowed:
                has = f"has only {', '.join(allowed)}" if allowed else "has none"
                raise UserError(
                    f"{name} cannot change after training: an evaluation may change settings that "
                    f"concern acting alone, of which {config.agent} {has}."
                )
            config = configure(config, {name: value})
        else:
            raise UserError(
                f"{name} does not concern an evaluation. --set takes env.NAME, an argument of its "
                "environment, and agent.NAME, a setting of acting."
            )
    return config


def options_in(blueprint: Blueprint, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what an evaluation reports of its settings: `env_options` and `agent_options`.

    `env_options` are all arguments of the evaluation environment; `agent_options` are the agent's
    settings in `settings`. A part without entries is left out.
    """
    prefix = "agent."
    changed = {
        name.removeprefix(prefix): value
        for name, value in (settings or {}).items()
        if name.startswith(prefix)
    }
    found = {"env_options": blueprint.config.evaluated_options, "agent_options": changed}
    return {name: options for name, options in found.items() if options}


def load_weights(agent: Agent, groups: tuple[str, ...], state: Mapping[str, Any]) -> None:
    """Loads weight groups of a checkpoint into `agent`. Raises UserError if one does not fit.

    groups: the weight groups (networks that one process trains) to load. state: the content of the
    checkpoint. The checkpoint of the best evaluation holds only the weights that are needed to act.
    """
    from dreamfleet.runtime.resume import load_groups, restore_groups

    if "weights" in state:
        load_groups(groups, state["weights"], agent.load)
    else:
        restore_groups(agent, groups, state.get("agent"))


def _no_checkpoint(run: Path, checkpoint: str) -> str:
    if checkpoint == "best":
        return f"run {run} has no best checkpoint: it made no evaluation. Use --checkpoint latest."
    return (
        f"run {run} has no checkpoint yet. While it runs, wait for its first one; "
        "if it has ended, start a new run."
    )
