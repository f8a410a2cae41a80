"""A decoder that shows people what the latents know. It does not change the agent.

It is trained on the features of latents without passing a gradient on, by an optimizer of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.observations import Decoder
from dreamfleet.agents.blocks.optimizer import Optimizer
from dreamfleet.agents.blocks.rssm import RSSMState
from dreamfleet.core.types import Batch, EnvSpec

LR, MAX_GRAD_NORM = 1e-3, 100.0


class Probe(nn.Module):
    """Decodes the features of latents to observations."""

    def __init__(self, config: Config, spec: EnvSpec, features: int) -> None:
        super().__init__()
        self.decoder = Decoder(config.sizes, spec, features)

    def optimizer(self) -> Optimizer:
        """Returns a new optimizer for this decoder."""
        return Optimizer(self, LR, MAX_GRAD_NORM)

    def loss(self, states: RSSMState, rows: Batch) -> Tensor:
        """Returns the squared error of the decoded rows, a scalar; see `Decoder.loss`.

        states (B, T, …): the latents of the rows. They get no gradient.
        """
        return self.decoder.loss(states.detached().features.float(), rows)
