"""The settings of Barlow Dreamer, with the source of each default, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
from dreamfleet.core.selectors import Mixture, Prioritized, Recency, ReturnDeviation, Selector
from dreamfleet.core.selectors import Uniform as UniformSelector


class Size(NamedTuple):
    """The numbers of units of all networks. All but `nano` and `micro` are DreamerV3's."""

    deter: int  # of the block GRU
    hidden: int  # in the hidden layers of the RSSM
    groups: int  # S, categorical distributions of a latent
    classes: int  # K, of each distribution
    depth: int  # channels of the first convolution are twice as many
    units: int  # in the hidden layers of all other networks
    layers: int  # hidden layers of encoder (vectors), actor and critic
    bins: int  # of the distributions of rewards and values


SIZES = {
    "nano": Size(128, 64, 32, 8, 4, 64, 2, 255),
    "micro": Size(256, 128, 32, 8, 4, 128, 2, 255),
    "1M": Size(512, 64, 32, 4, 4, 64, 3, 255),
    "12M": Size(2048, 256, 32, 16, 16, 256, 3, 255),
    "25M": Size(3072, 384, 32, 24, 24, 384, 3, 255),
    "50M": Size(4096, 512, 32, 32, 32, 512, 3, 255),
    "100M": Size(6144, 768, 32, 48, 48, 768, 3, 255),
    "200M": Size(8192, 1024, 32, 64, 64, 1024, 3, 255),
}


@dataclass(frozen=True)
class Config:
    """The settings of Barlow Dreamer.

    The comment of a setting names the source of its default in brackets. A default without a source
    was chosen for this project.
    """

    # Numbers of units of all networks; see docs/barlow-dreamer.md for the memory that each needs.
    size: Literal["nano", "micro", "1M", "12M", "25M", "50M", "100M", "200M"] = "nano"
    # What the latents must tell about the observations. barlow: the embedding of the same row;
    # barlow-next: that of the next row; reconstruction: the observation; none: nothing.
    objective: Literal["barlow", "barlow-next", "reconstruction", "none"] = "barlow"
    # How the encoder halves images: by max-pooling, or by strides of the convolutions, which is
    # a quarter of the work. [DreamerV3: max-pool]
    halving: Literal["max-pool", "stride"] = "stride"
    # The encoder whose embeddings are the target of the Barlow objectives: as it was before the
    # first update, or as it is trained. See docs/adr/0017. [R2-Dreamer: trained]
    target_encoder: Literal["initial", "trained"] = "initial"
    # Weight of the objective in the loss. [R2-Dreamer: 0.05]
    objective_weight: float = within(1.0, 0)
    # Weight of the off-diagonal entries of the cross-correlation. [R2-Dreamer]
    redundancy_weight: float = within(5e-4, 0)
    precision: Literal["float32", "bfloat16"] = "float32"  # of weights and activations
    batch: int = within(16, 1)  # windows per update [DreamerV3]
    window: int = within(32, 2, 1_000)  # rows per window [DreamerV3: 64]
    # Parts of the batch whose gradients are computed one after the other, to save memory.
    accumulate: int = within(1, 1)
    checkpoint: bool = False  # whether the encoder's activations are computed again, to save memory
    # Compile the steps of the RSSM with torch.compile; the first update then takes up to a minute.
    compile: bool = False
    updates_per_step: float = within(0.125, 1e-4)  # per agent step [DreamerV3 on Atari-100k]
    warmup: int = within(1_000, 1)  # agent steps before the first update
    lr: float = within(1e-3, 0)  # learning rate of all networks [DreamerV3: 4e-5]
    lr_warmup: int = within(10, 0)  # updates in which the learning rate rises [DreamerV3: 1,000]
    # Gradients of a tensor of weights are clipped to this many times the tensor's norm. [DreamerV3]
    max_grad_ratio: float = within(0.3, 1e-6)
    free_nats: float = within(1.0, 0)  # KL divergences below this are not reduced [DreamerV3]
    prior_weight: float = within(1.0, 0)  # weight of the KL that trains the prior [DreamerV3]
    posterior_weight: float = within(0.1, 0)  # of the KL that trains the posterior [DreamerV3]
    # Weight of the critic's loss on real rows. [DreamerV3]
    replay_value_weight: float = within(0.3, 0)
    value_head: Literal["two-hot", "hl-gauss"] = "two-hot"  # of rewards and values [DreamerV3]
    dream_horizon: int = within(15, 1, 1_000)  # steps in a dream [DreamerV3]
    # Rows at the end of each window from which dreams start; 0: all. [DreamerV3]
    dream_starts: int = within(0, 0)
    gamma: float = within(0.997, 0, 1)  # discount factor γ [DreamerV3]
    lam: float = within(0.95, 0, 1)  # λ of the λ-returns [DreamerV3]
    entropy_weight: float = within(3e-4, 0)  # weight of the entropy bonus [DreamerV3]
    slow_critic: float = within(0.02, 0, 1)  # update rate τ of the slow critic [DreamerV3]
    slow_critic_weight: float = within(1.0, 0)  # of the loss that pulls towards it [DreamerV3]
    # Update rate of the moving average of the return range. [DreamerV3]
    return_range_rate: float = within(0.01, 0, 1)
    capacity: int = 100_000  # real rows that the replay holds [R2-Dreamer: 500,000]
    # Fraction of the batch that is sampled by recency. What the three shares leave is uniform.
    recency_share: float = within(0.0, 0, 1)
    # Fraction that is sampled by the loss of a window at its last update.
    loss_share: float = within(0.0, 0, 1)
    # Fraction that is sampled by how unusual a window's sum of rewards is (seed project 004).
    deviation_share: float = within(0.0, 0, 1)
    recency_half_life: float = within(20_000.0, 1)  # of the weight of a row when sampled; in rows
    priority_exponent: float = within(0.8, 0, 1)  # of the loss [DreamerV3's code]
    probe: bool = False  # whether a decoder is trained on the latents, for people to watch dreams
    plan: bool = False  # whether actions are planned in the world model (MPPI), not the policy's
    plan_candidates: int = within(64, 1)  # sequences of actions that a plan compares, per round
    plan_rounds: int = within(3, 1)  # rounds of a plan; each draws from the best of the one before
    plan_horizon: int = within(8, 1, 1_000)  # steps of a plan

    def __post_init__(self) -> None:
        check_ranges(self, "agent.")
        if self.batch % self.accumulate:
            raise UserError(
                f"agent.batch must be a multiple of agent.accumulate ({self.accumulate}); "
                f"found {self.batch}."
            )
        if self.dream_starts == 1 or self.dream_starts > self.window:
            raise UserError(
                f"agent.dream_starts must be 0, or from 2 to agent.window ({self.window}); "
                f"found {self.dream_starts}."
            )
        if self.recency_share + self.loss_share + self.deviation_share > 1:
            raise UserError(
                "agent.recency_share, agent.loss_share and agent.deviation_share must sum to at "
                f"most 1; found {self.recency_share}, {self.loss_share}, {self.deviation_share}."
            )

    @property
    def sizes(self) -> Size:
        """Returns the numbers of units of all networks."""
        return SIZES[self.size]

    @property
    def starts_per_window(self) -> int:
        """Returns from how many rows of each window dreams start."""
        return self.dream_starts or self.window

    @property
    def selector(self) -> Selector:
        """Returns the rule by which windows are sampled, from the three shares."""
        shares: list[tuple[float, Selector]] = [
            (self.recency_share, Recency(self.recency_half_life)),
            (self.loss_share, Prioritized(self.priority_exponent)),
            (self.deviation_share, ReturnDeviation()),
        ]
        uniform = 1 - sum(share for share, _ in shares)
        parts = tuple((s, part) for s, part in [(uniform, UniformSelector()), *shares] if s > 1e-9)
        return parts[0][1] if len(parts) == 1 else Mixture(parts)
