"""A transformer that reads what was seen and done, and says what comes next."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.held_out import expected_error, update_averages
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import Normaliser
from dreamfleet.agents.blocks.transformer import Transformer
from dreamfleet.agents.dreamwalker.config import Config
from dreamfleet.core.types import Batch, Space

OUTCOME_HIDDEN = 128  # units


class ImaginedStep(NamedTuple):
    """An imagined step, (B, …)."""

    obs: Tensor  # (B, *O)
    reward: Tensor  # (B,)
    terminal: Tensor  # (B,) bool
    disagreement: Tensor  # (B,)


class WorldModel(nn.Module):
    """Rows as tokens → the change to the next row, what it pays, and whether it ends.

    A token is (observation, action, reward, first): the end that lies behind a row is told by
    `first`. Each of M heads says the change, in units of the typical one; reward and end follow
    from the change that is imagined and what was read, so that they fit.
    """

    change_rms: Tensor
    low: Tensor
    high: Tensor
    two_valued: Tensor
    usual_disagreement: Tensor
    error: Tensor
    seen: Tensor

    def __init__(self, config: Config, obs: Space, action_size: int) -> None:
        super().__init__()
        size = math.prod(obs.shape)
        self.shape, self.context, self.members = obs.shape, config.context, config.members
        self.normaliser = Normaliser(obs)
        self.embed = nn.Linear(size + action_size + 2, config.world_hidden)
        length = config.context + config.dream_horizon
        self.transformer = Transformer(
            config.world_hidden, config.world_layers, config.world_heads, length
        )
        self.heads = Ensemble(
            config.members, (config.world_hidden, config.world_hidden, size), zero_last=True
        )
        self.outcome = MLP((config.world_hidden + size, OUTCOME_HIDDEN, 2), zero_last=True)
        self.register_buffer("change_rms", torch.ones(size))  # in deviations of the observation
        self.register_buffer("low", torch.full((size,), torch.inf))
        self.register_buffer("high", torch.full((size,), -torch.inf))
        self.register_buffer("two_valued", torch.ones(size, dtype=torch.bool))
        self.register_buffer("usual_disagreement", torch.zeros(()))
        self.register_buffer("error", torch.ones(config.dream_horizon))  # squared, by steps ahead
        self.register_buffer("seen", torch.zeros(config.dream_horizon))  # held-out windows

    # ------------------------------------------------------------------------------ learning

    @torch.no_grad()
    def update_statistics(self, rows: Batch) -> None:
        """Take in real windows (B, L, …) for the running statistics."""
        self.normaliser.update(rows["obs"], rows["reward"])
        flat = self.normaliser.replace_outliers(self.normaliser.flat(rows["obs"])).flatten(0, 1)
        self.low.copy_(torch.minimum(self.low, flat.amin(0)))
        self.high.copy_(torch.maximum(self.high, flat.amax(0)))
        self.two_valued &= ((flat == self.low) | (flat == self.high)).all(0)
        mask = inside(rows["first"], rows["last"], self.context).unsqueeze(-1)
        square = (self.normaliser(rows["obs"]).diff(dim=1).square() * mask).sum((0, 1))
        rate = 1 / self.normaliser.updates.clamp(max=1000)
        square = square / mask.sum().clamp(min=1)
        self.change_rms.copy_(self.change_rms.square().lerp(square, rate).sqrt().clamp(min=1e-4))

    def loss(self, rows: Batch, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each head predicts the steps of its share of the windows (B, L, …) → scalar."""
        x = self.normaliser(rows["obs"])
        read, _ = self.transformer(self.tokens(x, code, rows["reward"], rows["first"])[:, :-1])
        held_out = rows["held_out"][:, self.context].unsqueeze(1)
        sound = self.normaliser.inliers(rows["obs"])
        steps = inside(rows["first"], rows["last"], self.context) * sound[:, :-1] * sound[:, 1:]
        mask = steps * ~held_out  # (B, L-1)
        predicted = self.heads(read.unflatten(0, (self.members, -1)).flatten(1, 2))
        change = x.diff(dim=1)  # (B, L-1, O)
        square = (predicted.view_as(change) - change / self.change_rms).square()
        reward, end = self.outcomes(read, change)
        plausible = self.normaliser.cut_outliers(rows["reward"][:, 1:])
        reward_error = (reward - plausible / self.normaliser.reward_rms).square()
        ended = rows["terminal"][:, 1:].float()
        terms = {
            "loss/transition": masked_mean(square.mean(-1), mask),
            "loss/reward": masked_mean(reward_error, mask),
            "loss/end": masked_mean(
                F.binary_cross_entropy_with_logits(end, ended, reduction="none"), mask
            ),
        }
        metrics = {name: term.detach() for name, term in terms.items()}
        unseen = steps * held_out
        metrics["model/held_out_reward"] = masked_mean(reward_error.detach(), unseen).sqrt()
        return torch.stack(list(terms.values())).sum(), metrics

    @torch.no_grad()
    def update_held_out_error(
        self, asked: WorldModel, rows: Batch, code: Tensor, noise: torch.Generator
    ) -> dict[str, Tensor]:
        """Take in how far dreams of `asked` are off on held-out windows (B, L, …), actions given.

        Also by how much its heads disagree on the first step of any window.
        """
        real, obs = asked.normaliser(rows["obs"]), rows["obs"][:, self.context].float()
        alive = (~rows["last"][:, self.context : -1]).cumprod(1)
        sound = asked.normaliser.inliers(rows["obs"])
        start = sound[:, : self.context + 1].amin(1) * rows["held_out"][:, self.context]
        alive = alive * start.unsqueeze(1) * sound[:, self.context + 1 :]  # (B, H)
        tokens = asked.tokens(real, code, rows["reward"], rows["first"])
        read, past = asked.transformer(tokens[:, : self.context + 1])
        errors = []
        for step in range(len(self.error)):
            imagined = asked.imagine(read[:, -1], obs, noise)
            if step == 0:
                rate = (1 / self.normaliser.updates).clamp(min=0.01)
                self.usual_disagreement.lerp_(imagined.disagreement.mean(), rate)
            obs, at = imagined.obs, self.context + 1 + step
            x = asked.normaliser(obs)
            errors.append((x - real[:, at]).square().mean(-1))
            if step + 1 < len(self.error):
                first = torch.zeros_like(rows["first"][:, :1])
                row = (x[:, None], code[:, at : at + 1], imagined.reward[:, None], first)
                read, past = asked.transformer(asked.tokens(*row), past)
        update_averages(self.seen, alive, (self.error, torch.stack(errors, 1)))
        shown = sorted({0, len(self.error) // 2, len(self.error) - 1})
        metrics = {f"model/error_{h + 1}": self.error[h].sqrt() for h in shown}
        return {**metrics, "model/disagreement": self.usual_disagreement.clone()}

    def expected_error(self, horizon: int) -> Tensor:
        """The held-out error after 1 … `horizon` steps, in deviations of the observation (H,)."""
        return expected_error(self.error, self.seen, horizon)

    # ----------------------------------------------------------------------------- imagining

    def imagine(self, read: Tensor, obs: Tensor, noise: torch.Generator) -> ImaginedStep:
        """A step from observations (B, *O), after reading (B, E): the mean of what the heads say.

        What is imagined keeps to what was ever real, as critics judge anything else at random:
        numbers keep their range, and those that had two values, as flags have, are drawn from them.
        """
        heads = self.heads(read.expand(self.members, -1, -1))
        now = self.normaliser.flat(obs)
        change = heads.mean(0) * self.change_rms * self.normaliser.deviation
        following = (now + change).clamp(self.low, self.high)
        chance = (following - self.low) / (self.high - self.low).clamp(min=1e-6)
        high = torch.rand(chance.shape, generator=noise, device=chance.device) < chance
        flags = torch.where(high, self.high, self.low)
        following = torch.where(self.two_valued, flags, following)
        moved = self.normaliser.standardised(following) - self.normaliser.standardised(now)
        reward, end = self.outcomes(read, moved)
        terminal = torch.rand(end.shape, generator=noise, device=end.device) < torch.sigmoid(end)
        return ImaginedStep(
            following.unflatten(-1, self.shape),
            reward * self.normaliser.reward_rms,
            terminal,
            heads.var(0).mean(-1),
        )

    def tokens(self, x: Tensor, code: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        """Normalised observations (B, T, O) and the rest of their rows → (B, T, E)."""
        reward = self.normaliser.cut_outliers(reward) / self.normaliser.reward_rms
        rest = torch.stack([reward, first.float()], -1)
        embedded: Tensor = self.embed(torch.cat([x, code, rest], -1))
        return embedded

    def outcomes(self, read: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards in units of the typical one, and logits of the end: (…, E), (…, O) → (…)."""
        step = torch.cat([read, change / self.change_rms], -1)
        reward, end = self.outcome(step).unbind(-1)
        return reward, end


def inside(first: Tensor, last: Tensor, context: int) -> Tensor:
    """Whether each step of windows (B, L) is one of the start's episode: (B, L-1) float.

    Rows that stand in for what was before an episode have `first` set on those after them too.
    """
    alive = F.pad((~last[:, context:-1]).cumprod(1), (context, 0), value=1)
    return (alive * ~first[:, 1:]).float()
