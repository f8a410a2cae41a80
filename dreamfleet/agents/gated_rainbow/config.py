"""The settings of Gated Rainbow, with the source of each default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space

CONTEXT = 3  # earlier observations in a history; SEQ_LENGTH of seed project 000 is 4
VALUE_RANGE = 3.0  # the largest return so far, in units of values; atoms lie within ± this
PRIORITY_OFFSET = 1e-3  # is added to each |δ|, so that no priority is 0; in units of values


@dataclass(frozen=True)
class Config:
    """The settings of Gated Rainbow.

    The comment of a setting names the source of its default in brackets. A default without a source
    was chosen for this project.
    """

    # Append the number of steps since the episode began to the observation. [Pardo et al. 2018]
    observe_time: bool = False
    hidden: int = within(128, 4, 16_384)  # features of the network's body [seed project 000]
    # Network that computes the gate from the history; none: no gate. [seed project 000]
    gate: Literal["mlp", "transformer", "none"] = "mlp"
    gate_weight: float = within(0.01, 0)  # weight of the gate's regulariser [seed project 000]
    # Output of the value network: the expected return, a categorical distribution of the return
    # over atoms (c51), or quantiles of the return.
    value_head: Literal["expected", "c51", "quantile"] = "quantile"
    atoms: int = within(51, 2)  # atoms of the c51 head [Bellemare et al. 2017]
    quantiles: int = within(32, 1)  # quantiles of the quantile head [QR-DQN on Atari: 200]
    # Initial σ of the noisy layers; 0: plain layers. [Rainbow; seed project 000]
    noisy_sigma: float = within(0.5, 0)
    # Probability of a random action after the decay from 1. [seed project 000]
    epsilon_min: float = within(0.01, 0, 1)
    # Agent steps in which the probability of a random action halves. [seed project 000: 138
    # episodes]
    epsilon_half_life: float = within(1_000.0, 1e-6)
    gamma: float = within(0.99, 0, 1)  # discount factor γ [seed project 000: 0.999]
    n_step: int = within(3, 1)  # rewards in an n-step return [Rainbow; seed project 000]
    # Windows per update, dreamed ones included; 0: 256 for vectors, 32 for images.
    # [seed project 000: 256]
    batch: int = within(0, 0)
    policy_updates_per_step: float = within(1.0, 1e-3)  # updates per agent step [seed project 000]
    warmup: int = within(500, 0)  # agent steps before the first update
    # Prioritized replay of real rows; false: uniform sampling. [Rainbow; seed project 000]
    prioritized: bool = True
    # Priority exponent α at the start, at its peak, and at the end. [seed project 000]
    alpha: tuple[float, float, float] = within((0.5, 0.7, 0.4), 0, 1)
    # Agent steps in which α rises to its peak, and in which it falls to its end.
    alpha_steps: tuple[float, float] = within((60_000.0, 180_000.0), 1.0)
    # Exponent β of the importance weights at the start; it rises to 1. [seed project 000]
    beta: float = within(0.4, 0, 1)
    # Agent steps in which β rises to 1. [seed project 000: 4,200 episodes]
    beta_steps: float = within(126_000.0, 1.0)
    # Initial learning rate of the value network. It is halved when the mean return stops improving.
    lr_critic: float = within(5e-4, 0)
    # Lowest learning rate of the value network. [seed project 000]
    lr_critic_min: float = within(1e-6, 0)
    # Updates without a new best mean return after which the learning rate is halved.
    lr_patience: int = within(20_000, 1)
    # Decoupled weight decay of AdamW. [seed project 000]
    weight_decay: float = within(1e-4, 0)
    # Gradients of a larger norm are scaled down to this norm. [seed project 000]
    max_grad_norm: float = within(10.0, 1e-6)
    slow_critic: float = within(0.005, 0, 1)  # update rate τ of the target network
    capacity: int = 100_000  # real rows that the replay holds [seed project 000]
    # Compile the loss and its gradient with torch.compile; the first update then takes up to a
    # minute.
    compile: bool = False

    # Fraction of the batch that is dreamed; 0: no dreams. [seed project 000]
    dream_share: float = within(0.3, 0, 1)
    # Dreams per policy update, rounded to a multiple of the members. [seed project 000]
    dreams_per_update: int = within(5, 1)
    dream_horizon: int = within(50, 1, 1_000)  # most steps in a dream [seed project 000]
    # Agent steps before dreams are used. [seed project 000: 800 episodes]
    dream_after: int = within(2_000, 0)
    # A dream is trusted up to the step at which the held-out error of the world model exceeds
    # this, in standard deviations of the observation. Dreamed steps are random draws: with correct
    # standard deviations their error is √2 times that of the predicted mean.
    max_model_error: float = within(0.42, 0)
    # A dream is trusted while the disagreement of the members is at most this many times their
    # mean disagreement on real rows.
    max_disagreement: float = within(3.0, 0)
    # Bonus reward for a step on which the members disagree as much as on average, in root mean
    # squares of the real rewards; 0: no bonus.
    curiosity: float = within(0.0, 0)
    members: int = within(5, 1)  # transition networks in the ensemble [MBPO: 7]
    # Units in the hidden layers of the world model. [seed project 000]
    world_hidden: int = within(128, 4, 16_384)
    # Windows per world-model update, split evenly among the members; 0: 12 per member for
    # vectors, 2 for images.
    world_batch: int = within(0, 0)
    # Rows per window for the world model. Its error is measured at all horizons shorter than the
    # window; 0: 9 for vectors, 6 for images.
    world_window: int = within(0, 0, 1_000)
    # World-model updates per agent step. [seed project 000]
    world_updates_per_step: float = within(0.25, 1e-3)
    lr_world: float = within(1e-3, 0)  # learning rate of the world model [seed project 000]
    # Update rate τ of the slow copy of the world model.
    slow_world: float = within(0.01, 0, 1)
    # Fraction of episodes that the world model never learns from, on which its error is
    # measured. With 0 no error is known, so no dream is trusted.
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

    def sized(self, obs: Space) -> Config:
        """Returns a copy of the settings, with each batch or window size of 0 set to its default.

        The defaults depend on whether the observations `obs` are vectors or images.
        """
        batch, windows, rows = (32, 2, 6) if obs.image else (256, 12, 9)
        return replace(
            self,
            batch=self.batch or batch,
            world_batch=self.world_batch or windows * self.members,
            world_window=self.world_window or rows,
        )

    @property
    def dreamed_windows(self) -> int:
        """Returns how many of the windows of a policy update are sampled from dreams."""
        return round(self.batch * self.dream_share)

    @property
    def dream_batch(self) -> int:
        """Returns the number of dreams per policy update, rounded to a multiple of `members`.

        `members` is the number of networks in the world model's ensemble; each makes equally many
        dreams.
        """
        return max(1, round(self.dreams_per_update / self.members)) * self.members

    @property
    def has_world_model(self) -> bool:
        """Returns whether the agent needs a world model, for dreams or for the curiosity bonus."""
        return self.dreamed_windows > 0 or self.curiosity > 0
