"""What Gated Rainbow keeps in the replay, and who samples it how often."""

from __future__ import annotations

from dataclasses import replace

from dreamfleet.agents.blocks.rows import FLAG, NUMBER, columns
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import Prioritized, Uniform
from dreamfleet.core.types import Consumer, EnvSpec, QueueSpec, Space, TableSpec

COLUMNS = ("obs", "action", "reward", "last", "terminal")  # of a window to learn values from


def observed_spec(spec: EnvSpec, clock: bool) -> EnvSpec:
    """The environment as the networks and the replay have it: with `clock`, a vector that ends in
    the steps since the episode began.
    """
    if not clock:
        return spec
    if len(spec.obs.shape) != 1:
        raise UserError(f"agent.observe_time needs vector observations; {spec.env_id} has others.")
    return replace(spec, obs=Space((spec.obs.shape[0] + 1,), "float32"))


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Who samples what, how often: the replay ratios of this agent."""
    # The discounted and the undiscounted reward so far, and whether the world model never learns
    # from the episode.
    kept = columns(spec, trace=NUMBER, score=NUMBER, held_out=FLAG)
    consumers = {
        "policy": Consumer(
            config.batch - config.dreamed,
            config.n_step + 1,
            Prioritized() if config.prioritized else Uniform(),
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            context=CONTEXT,
            columns=(*COLUMNS, "trace"),
        )
    }
    if config.has_world_model:
        consumers["world"] = Consumer(
            config.world_batch,
            config.world_window,
            samples_per_step=config.world_updates_per_step,
            context=CONTEXT,
            columns=(*COLUMNS, "held_out"),
        )
    if config.dreamed:
        consumers["start"] = Consumer(
            config.dream_batch,
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            context=CONTEXT,
            columns=("obs",),
        )
    real = TableSpec(config.capacity, kept, consumers, episode_return="score")
    return {"real": real, "dream": QueueSpec(2)} if config.dreamed else {"real": real}
