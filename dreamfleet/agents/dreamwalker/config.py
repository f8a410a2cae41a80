"""The settings of Dreamwalker, with the source of each default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import EmphasizeRecent, Mixture, Prioritized, Selector, Uniform

PRIORITY_OFFSET = 1e-3  # is added to each |TD error|, so that no priority is 0


@dataclass(frozen=True)
class Config:
    """The settings of Dreamwalker.

    The comment of a setting names the source of its default in brackets. A default without a source
    was chosen for this project.
    """

    critics: int = within(5, 1)  # critic networks [TQC; seed project 002]
    quantiles: int = within(25, 1)  # quantiles per critic [TQC; seed project 002]
    # Largest quantiles dropped from the target, per critic. [TQC; seed project 002]
    dropped_quantiles: int = within(2, 0)
    # Units in each hidden layer of a critic. [seed project 002]
    critic_hidden: tuple[int, ...] = within((256, 256), 1, 16_384)
    # Units in each hidden layer of the actor. [TQC: 256; seed project 002: 512]
    actor_hidden: tuple[int, ...] = within((256, 256), 1, 16_384)
    dense: bool = True  # every hidden layer also reads the input [D2RL; seed project 002]
    # Normalisation inside the critics. [DroQ: layer; CrossQ: batch]
    norm: Literal["none", "layer", "batch"] = "none"
    dropout: float = within(0.0, 0.0, 0.9)  # dropout probability in the critics [DroQ: 0.01]
    gamma: float = within(0.99, 0, 1)  # discount factor γ [seed project 002: 0.98]
    # Initial value of the learned entropy coefficient α. [SAC]
    initial_temperature: float = within(1.0, 1e-6)
    reward_scale: float = within(1.0, 1e-6)  # factor applied to rewards before learning
    # Windows per update, dreamed ones included. [seed project 002]
    batch: int = within(256, 1)
    policy_updates_per_step: float = within(1.0, 1e-3)  # updates per agent step [seed project 002]
    warmup: int = within(1_000, 0)  # agent steps with random actions before the first update
    lr_policy: float = within(3e-4, 0)  # learning rate of actor and temperature [seed project 002]
    lr_critic: float = within(3e-4, 0)  # learning rate of the critics [seed project 002]
    # Gradients of a larger norm are scaled down to this norm.
    max_grad_norm: float = within(10.0, 1e-6)
    # Update rate τ of the target critics. [seed project 002]
    slow_critic: float = within(0.005, 0, 1)
    capacity: int = 1_000_000  # real rows that the replay holds [seed project 002]

    emphasize_recent: bool = True  # Emphasizing Recent Experience (ERE) [seed project 002]
    ere_eta: float = within(0.996, 0, 1)  # η of ERE at the start; it rises to 1 [seed project 002]
    # ERE samples from at least this many of the newest rows. [seed project 002]
    ere_min_rows: int = within(5_000, 1)
    # Updates in one cycle of ERE, in place of the steps of an episode in the paper.
    ere_cycle: int = within(1_000, 1)
    anneal_steps: int = within(100_000, 1)  # agent steps in which η and β rise to 1
    # Prioritized replay. With ERE too, each of the two samples half of the real windows.
    prioritized: bool = False
    alpha: float = within(0.6, 0, 1)  # priority exponent α [Schaul et al. 2016]
    # Exponent β of the importance weights at the start; it rises to 1. [Schaul et al. 2016]
    beta: float = within(0.4, 0, 1)

    dream_share: float = within(0.25, 0, 1)  # fraction of the batch that is dreamed; 0: no dreams
    dreams_per_update: int = within(20, 1)  # dreams per policy update
    dream_every: int = within(8, 1)  # policy updates served by one batch of dreams
    dream_horizon: int = within(5, 1, 1_000)  # most steps in a dream [MBPO]
    dream_after: int = within(5_000, 0)  # agent steps before dreams are used
    # A dream is trusted up to the step at which the held-out error of the world model exceeds
    # this, in standard deviations of the observation.
    max_model_error: float = within(0.3, 0)
    # A dream is trusted while the disagreement of the heads is at most this many times their mean
    # disagreement on real rows.
    max_disagreement: float = within(3.0, 0)
    # Earlier rows that the world model reads besides the newest one. [seed project 002: 39]
    context: int = within(8, 0, 1_000)
    # Embedding size of the transformer. [seed project 002: 256]
    world_hidden: int = within(64, 4, 16_384)
    world_layers: int = within(2, 1)  # layers of the transformer [seed project 002: 10]
    world_heads: int = within(4, 1)  # attention heads per layer [seed project 002: 16]
    members: int = within(5, 2)  # prediction heads, each trained on its own windows
    # Windows per world-model update, split evenly among the members.
    world_batch: int = within(60, 1)
    world_updates_per_step: float = within(0.25, 1e-3)  # world-model updates per agent step
    lr_world: float = within(1e-3, 0)  # learning rate of the world model
    # Update rate τ of the slow copy of the world model.
    slow_world: float = within(0.01, 0, 1)
    # Fraction of episodes that the world model never learns from, on which its error is measured.
    held_out_share: float = within(0.1, 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self, "agent.")
        if self.world_batch % self.members:
            raise UserError(
                f"agent.world_batch must be a multiple of agent.members ({self.members}); "
                f"found {self.world_batch}."
            )
        if not 0 <= self.dream_share < 1:
            raise UserError(
                f"agent.dream_share must be from 0 to below 1; found {self.dream_share}."
            )
        if self.dropped_quantiles >= self.quantiles:
            raise UserError(
                f"agent.dropped_quantiles must be below agent.quantiles ({self.quantiles}); "
                f"found {self.dropped_quantiles}."
            )
        if self.world_hidden % self.world_heads:
            raise UserError(
                f"agent.world_hidden must be a multiple of agent.world_heads ({self.world_heads}); "
                f"found {self.world_hidden}."
            )

    @property
    def dreamed_windows(self) -> int:
        """Returns how many of the windows of a policy update are sampled from dreams."""
        return round(self.batch * self.dream_share)

    @property
    def selector(self) -> Selector:
        """Returns the rule by which the real windows of a policy update are sampled.

        The rule is uniform sampling, ERE (Emphasizing Recent Experience), prioritized replay, or
        half ERE and half prioritized replay. In each cycle of `ere_cycle` updates, ERE samples from
        ever fewer of the newest rows.
        """
        updates = max(1, round(self.anneal_steps * self.policy_updates_per_step))
        recent = EmphasizeRecent(self.ere_eta, self.ere_min_rows, self.ere_cycle, updates)
        prioritized = Prioritized(self.alpha)
        if self.emphasize_recent and self.prioritized:
            return Mixture(((0.5, recent), (0.5, prioritized)))
        if self.emphasize_recent:
            return recent
        return prioritized if self.prioritized else Uniform()
