"""The behaviour that is learned in dreams: an actor and a critic on the features of latents."""

from __future__ import annotations

from torch import Tensor, nn

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.policies import ActionKind
from dreamfleet.agents.blocks.rssm import MLP
from dreamfleet.agents.blocks.two_hot import NUMBER_HEADS, NumberHead


class Behaviour(nn.Module):
    """The networks that other processes need for acting: the actor, and the critic for plans."""

    def __init__(self, config: Config, features: int, actions: ActionKind) -> None:
        super().__init__()
        sizes = config.sizes
        hidden = [sizes.units] * sizes.layers
        self.actor = MLP(features, *hidden, actions.policy_outputs, scale=actions.policy_scale)
        self.critic = Critic(config, features)


class Critic(nn.Module):
    """Predicts the return of a state by a distribution over bins."""

    number: NumberHead

    def __init__(self, config: Config, features: int) -> None:
        super().__init__()
        sizes = config.sizes
        self.number = NUMBER_HEADS[config.value_head](sizes.bins)
        self.net = MLP(features, *[sizes.units] * sizes.layers, sizes.bins, scale=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits (…, Z) of the returns at features (…, F)."""
        logits: Tensor = self.net(features.to(self.net.out.weight.dtype))
        return logits

    def mean(self, features: Tensor) -> Tensor:
        """Returns the mean returns (…) at features (…, F)."""
        return self.number.mean(self(features))
