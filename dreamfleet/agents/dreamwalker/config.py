"""What there is to choose in Dreamwalker, and why it is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EmphasizeRecent, Mixture, Prioritized, Selector, Uniform

PRIORITY = 1e-3  # of a row whose error is 0


@dataclass(frozen=True)
class Config:
    """Units and sources beside each value; those without a source are choices of ours.

    "Agent steps" of a schedule are counted from the first update, as `policy_per_step` has them.
    """

    critics: int = within(5, 1)  # quantile networks; Kuznetsov et al. 2020 and seed 002
    quantiles: int = within(25, 1)  # of each; the same
    drop: int = within(2, 0)  # of the largest, for each network; the same
    critic_hidden: tuple[int, ...] = within((256, 256), 1, 16_384)  # units; seed 002
    # Units; Kuznetsov et al., seed 002: 512.
    actor_hidden: tuple[int, ...] = within((256, 256), 1, 16_384)
    dense: bool = True  # every hidden layer reads the input; D2RL and seed 002
    norm: Literal["none", "layer", "batch"] = "none"  # of critics: DroQ's layer, CrossQ's batch
    dropout: float = within(0.0, 0.0, 0.9)  # chance of a critic's unit to be left out; DroQ 0.01
    gamma: float = within(0.99, 0, 1)  # discount; seed 002: 0.98
    temperature: float = within(1.0, 1e-6)  # of the policy at first; Haarnoja et al. 2018
    # What rewards are multiplied by before they are learned.
    reward_scale: float = within(1.0, 1e-6)
    batch: int = within(256, 1)  # windows an update, dreamed ones included; seed 002
    policy_per_step: float = within(1.0, 1e-3)  # updates per agent step; seed 002
    warmup: int = within(1_000, 0)  # agent steps at random before the first update
    lr: float = within(3e-4, 0)  # of actor, critics and temperature; seed 002
    clip: float = within(10.0, 1e-6)  # gradient norm
    slow: float = within(0.005, 0, 1)  # rate at which the target critics follow; seed 002
    capacity: int = 1_000_000  # real rows; seed 002

    recent: bool = True  # emphasize recent rows
    eta: float = within(0.996, 0, 1)  # of emphasis at first; seed 002
    floor: int = within(5_000, 1)  # newest rows that are always drawn from; seed 002
    cycle: int = within(1_000, 1)  # updates over which the emphasis grows: an episode's
    anneal: int = within(100_000, 1)  # agent steps over which eta and beta rise to 1: the run's
    prioritized: bool = False  # draw by error; with `recent`, a half of the rows
    alpha: float = within(0.6, 0, 1)  # exponent of priorities; Schaul et al. 2016
    beta: float = within(0.4, 0, 1)  # exponent of importance weights at first; the same

    share: float = 0.25  # of an update that is dreamed; 0: no dreams
    dreams: int = within(20, 1)  # begun per update
    dream_every: int = within(8, 1)  # updates; all dreams for them are begun together
    dream_horizon: int = within(5, 1, 1_000)  # steps of a dream at most; MBPO
    dream_after: int = within(5_000, 0)  # agent steps
    # Held-out error a dream may have, in deviations of the observation.
    tolerance: float = within(0.3, 0)
    # Disagreement tolerated in dreams, in multiples of that on real rows.
    trust: float = within(3.0, 0)
    # Rows before the present one that the world reads; seed 002: 39.
    context: int = within(8, 0, 1_000)
    world_size: int = within(64, 4, 16_384)  # of a token's embedding; seed 002: 256
    world_layers: int = within(2, 1)  # layers of the transformer; seed 002: 10
    world_heads: int = within(4, 1)  # attention heads of a layer; seed 002: 16
    members: int = within(5, 2)  # heads of the world, each learned from other rows
    world_batch: int = within(60, 1)  # windows, shared out among the members
    world_per_step: float = within(0.25, 1e-3)  # world-model updates per agent step
    lr_world: float = within(1e-3, 0)  # learning rate of the world model
    slow_world: float = within(0.01, 0, 1)  # rate at which the slow world follows
    held_out: float = within(0.1, 0, 1)  # share of episodes the world never learns from

    def __post_init__(self) -> None:
        check_ranges(self, "agent.")
        if self.world_batch % self.members:
            raise UserError(
                f"agent.world_batch must be a multiple of agent.members ({self.members}); "
                f"found {self.world_batch}."
            )
        if not 0 <= self.share < 1:
            raise UserError(f"agent.share must be from 0 to below 1; found {self.share}.")
        if self.drop >= self.quantiles:
            raise UserError(
                f"agent.drop must be below agent.quantiles ({self.quantiles}); found {self.drop}."
            )
        if self.world_size % self.world_heads:
            raise UserError(
                f"agent.world_size must be a multiple of agent.world_heads ({self.world_heads}); "
                f"found {self.world_size}."
            )

    @property
    def dreamed(self) -> int:
        """Dreamed windows an update."""
        return round(self.batch * self.share)

    @property
    def selector(self) -> Selector:
        """How real windows are drawn for an update.

        The paper counts k = 1 … K over the K updates that follow an episode of K steps. Here an
        update follows each step, so `cycle` updates take the place of an episode's.
        """
        updates = max(1, round(self.anneal * self.policy_per_step))
        recent = EmphasizeRecent(self.eta, self.floor, self.cycle, updates)
        prioritized = Prioritized(self.alpha)
        if self.recent and self.prioritized:
            return Mixture(((0.5, recent), (0.5, prioritized)))
        if self.recent:
            return recent
        return prioritized if self.prioritized else Uniform()
