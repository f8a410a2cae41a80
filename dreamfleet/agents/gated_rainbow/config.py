"""What there is to choose in Gated Rainbow, and why it is what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space

CONTEXT = 3  # rows before the present one: SEQ_LENGTH of seed 000 is 4
RANGE = 3.0  # values are kept within ± this: the largest return seen is so many units
PRIORITY = 1e-3  # of a row whose error is 0, in the unit of values


@dataclass(frozen=True)
class Config:
    """Units and sources beside each value; those without a source are choices of ours.

    "Agent steps" of a schedule are counted from the first update, as `policy_per_step` has them.
    """

    clock: bool = False  # see how long an episode has lasted; Pardo et al. 2018
    hidden: int = within(128, 4, 16_384)  # features of the body; seed 000
    gate: Literal["mlp", "transformer", "none"] = "mlp"  # the network that computes gates
    gate_weight: float = within(0.01, 0)  # of the gate's regulariser; seed 000
    # What the value network predicts: the mean return, or its distribution in one of two forms.
    values: Literal["expected", "c51", "quantile"] = "quantile"
    atoms: int = within(51, 2)  # of c51; Bellemare et al. 2017
    quantiles: int = within(32, 1)  # of quantile; QR-DQN has 200 for Atari
    noise: float = within(0.5, 0)  # σ0 of noisy layers, Rainbow and seed 000; 0: plain layers
    epsilon: float = within(0.01, 0, 1)  # chance of a random action in the end; seed 000
    # Agent steps, from 1 down; seed 000: 138 episodes.
    epsilon_half_life: float = within(1_000.0, 1e-6)
    gamma: float = within(0.99, 0, 1)  # discount; seed 000: 0.999
    n: int = within(3, 1)  # steps of a return; Rainbow and seed 000
    # Windows an update, dreamed ones included; 0: 256 (seed 000), of frames 32.
    batch: int = within(0, 0)
    policy_per_step: float = within(1.0, 1e-3)  # updates per agent step; seed 000
    warmup: int = within(500, 0)  # agent steps before the first update
    prioritized: bool = True  # else every row is as likely as any other
    # Of priorities, by turns; seed 000.
    alpha: tuple[float, float, float] = within((0.5, 0.7, 0.4), 0, 1)
    # Agent steps each; seed: episodes.
    alpha_steps: tuple[float, float] = within((60_000.0, 180_000.0), 1.0)
    beta: float = within(0.4, 0, 1)  # of importance weights, rising to 1; seed 000
    beta_steps: float = within(126_000.0, 1.0)  # agent steps; seed 000: 4,200 episodes
    lr: float = within(5e-4, 0)  # learning rate of the values, before the plateau schedule
    lr_floor: float = within(1e-6, 0)  # where the plateau schedule stops; seed 000
    # Updates without a better mean return, after which lr is halved.
    patience: int = within(20_000, 1)
    decay: float = within(1e-4, 0)  # of weights, in units of lr; seed 000
    clip: float = within(10.0, 1e-6)  # gradient norm; seed 000
    slow: float = within(0.005, 0, 1)  # rate at which the target network follows
    capacity: int = 100_000  # real rows; seed 000
    compile: bool = False  # the loss and its gradient, which takes up to a minute at the start

    share: float = 0.3  # of an update that is dreamed; seed 000. 0: no dreams
    dreams_per_step: float = within(5.0, 0)  # dreams begun per agent step; seed 000
    dream_horizon: int = within(50, 1, 1_000)  # steps of a dream at most; seed 000
    dream_after: int = within(2_000, 0)  # agent steps; seed 000: 800 episodes
    # Held-out error a dream may have, in deviations of the observation. What a dream draws is √2
    # times as far off as its mean, where the model is right about its own spread.
    tolerance: float = within(0.42, 0)
    # Disagreement tolerated in dreams, in multiples of that on real rows.
    trust: float = within(3.0, 0)
    # Reward for the usual disagreement, in units of the typical reward.
    curiosity: float = within(0.0, 0)
    members: int = within(5, 1)  # transitions in the ensemble; MBPO 7
    world_hidden: int = within(128, 4, 16_384)  # units of its hidden layers; seed 000
    # Windows, shared out among the members; 0: 12 for each, of frames 2.
    world_batch: int = within(0, 0)
    # Rows, one more than the error is measured at; 0: 9, of frames 6.
    world_window: int = within(0, 0, 1_000)
    world_per_step: float = within(0.25, 1e-3)  # world-model updates per agent step; seed 000
    lr_world: float = within(1e-3, 0)  # learning rate of the world model; seed 000
    slow_world: float = within(0.01, 0, 1)  # rate at which the slow world follows
    # Share of episodes that the world never learns from; none: no dream is believed.
    held_out: float = within(0.1, 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self, "agent.")
        if self.world_batch % self.members:
            raise UserError(
                f"agent.world_batch must be a multiple of agent.members ({self.members}); "
                f"found {self.world_batch}."
            )
        if not 0 <= self.share < 1:
            raise UserError(f"agent.share must be from 0 to below 1; found {self.share}.")

    def sized(self, obs: Space) -> Config:
        """With sizes that were left at 0 as these observations want them: frames are heavy."""
        batch, windows, rows = (32, 2, 6) if obs.image else (256, 12, 9)
        return replace(
            self,
            batch=self.batch or batch,
            world_batch=self.world_batch or windows * self.members,
            world_window=self.world_window or rows,
        )

    @property
    def dreamed(self) -> int:
        """Dreamed windows an update."""
        return round(self.batch * self.share)

    @property
    def dreams(self) -> int:
        """Dreams an update, a multiple of the members."""
        wanted = self.dreams_per_step / self.policy_per_step
        return max(1, round(wanted / self.members)) * self.members

    @property
    def models(self) -> bool:
        """Whether there is a world model: for dreams or out of curiosity."""
        return self.dreamed > 0 or self.curiosity > 0
