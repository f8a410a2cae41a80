"""The world model of Dreamwalker: a transformer that predicts the next row from earlier rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import draw
from dreamfleet.agents.blocks.held_out import expected_error, update_averages
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import Normaliser
from dreamfleet.agents.blocks.transformer import Transformer
from dreamfleet.agents.dreamwalker.config import Config
from dreamfleet.core.types import Batch, Space

OUTCOME_HIDDEN = 128  # hidden units of the network for reward and termination


class DreamedStep(NamedTuple):
    """Holds the next rows of B dreams, and how much the world model's heads disagree on each."""

    obs: Tensor  # (B, *O)
    reward: Tensor  # (B,)
    terminal: Tensor  # (B,) bool
    disagreement: Tensor  # (B,)
    terminal_prob: Tensor  # (B,)


class WorldModel(nn.Module):
    """Predicts the next row of an episode: change of the observation, reward and termination.

    A token encodes one row: observation, action, reward and `first` (whether the row begins an
    episode). The transformer computes an embedding from the tokens of a row and of the rows before
    it. Each of M heads predicts the change of the observation from the embedding, in units of
    `change_rms`, the root mean square of real changes.

    Letters of shapes in the methods: B windows of L = `context` + `dream_horizon` + 1 rows, *O the
    shape of an observation, O its number of components, A the size of an action, E the size of an
    embedding.
    """

    change_rms: Tensor
    low: Tensor
    high: Tensor
    two_valued: Tensor
    mean_disagreement: Tensor
    held_out_error: Tensor
    held_out_windows: Tensor

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
        # In standard deviations of the observation.
        self.register_buffer("change_rms", torch.ones(size))
        # Range of each number in real rows, and whether it was always either `low` or `high`.
        self.register_buffer("low", torch.full((size,), torch.inf))
        self.register_buffer("high", torch.full((size,), -torch.inf))
        self.register_buffer("two_valued", torch.ones(size, dtype=torch.bool))
        self.register_buffer("mean_disagreement", torch.zeros(()))
        # The mean squared error after each number of steps, and the number of held-out windows that
        # it is an average of, bounded from above.
        self.register_buffer("held_out_error", torch.ones(config.dream_horizon))
        self.register_buffer("held_out_windows", torch.zeros(config.dream_horizon))

    # ------------------------------------------------------------------------------ learning

    @torch.no_grad()
    def update_statistics(self, rows: Batch) -> None:
        """Updates running statistics of observations and rewards with windows of real rows.

        Also updates the range of each component of observations, and the root mean square of its
        changes. rows: columns (B, L, …).
        """
        self.normaliser.update(rows["obs"], rows["reward"])
        flat = self.normaliser.replace_outliers(self.normaliser.flatten(rows["obs"])).flatten(0, 1)
        self.low.copy_(torch.minimum(self.low, flat.amin(0)))
        self.high.copy_(torch.maximum(self.high, flat.amax(0)))
        self.two_valued &= ((flat == self.low) | (flat == self.high)).all(0)
        mask = steps_in_episode(rows["first"], rows["last"], self.context).unsqueeze(-1)
        square = (self.normaliser(rows["obs"]).diff(dim=1).square() * mask).sum((0, 1))
        rate = 1 / self.normaliser.updates.clamp(max=1000)
        square = square / mask.sum().clamp(min=1)
        self.change_rms.copy_(self.change_rms.square().lerp(square, rate).sqrt().clamp(min=1e-4))

    def loss(self, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the world model on real windows, as a scalar, and metrics.

        rows: columns (B, L, …). A step counts if it lies in the same episode as the first row after
        the context, if none of its observations is an outlier, and if the episode is not held out.
        """
        x = self.normaliser(rows["obs"])
        tokens = self.tokens(x, rows["action"], rows["reward"], rows["first"])
        embedding, _ = self.transformer(tokens[:, :-1])
        held_out = rows["held_out"][:, self.context].unsqueeze(1)
        inliers = self.normaliser.inliers(rows["obs"])
        in_episode = steps_in_episode(rows["first"], rows["last"], self.context)
        steps = in_episode * inliers[:, :-1] * inliers[:, 1:]
        mask = steps * ~held_out  # (B, L-1)
        predicted = self.heads(embedding.unflatten(0, (self.members, -1)).flatten(1, 2))
        change = x.diff(dim=1)  # (B, L-1, O)
        square = (predicted.view_as(change) - change / self.change_rms).square()
        predicted_reward, terminal_logit = self.predict_outcome(embedding, change)
        reward = self.normaliser.clip_outliers(rows["reward"][:, 1:])
        reward_error = (predicted_reward - reward / self.normaliser.reward_rms).square()
        terminal_error = F.binary_cross_entropy_with_logits(
            terminal_logit, rows["terminal"][:, 1:].float(), reduction="none"
        )
        terms = {
            "loss/transition": masked_mean(square.mean(-1), mask),
            "loss/reward": masked_mean(reward_error, mask),
            "loss/terminal": masked_mean(terminal_error, mask),
        }
        metrics = {name: term.detach() for name, term in terms.items()}
        held_out_steps = steps * held_out
        metrics["model/held_out_reward"] = masked_mean(reward_error.detach(), held_out_steps).sqrt()
        return torch.stack(list(terms.values())).sum(), metrics

    @torch.no_grad()
    def update_held_out_error(
        self, model: WorldModel, rows: Batch, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Updates the error of `model` on held-out episodes; returns metrics.

        `model` is a slow copy (moving average) of this world model. rows: columns (B, L, …), for B
        windows of L real rows. rng: the generator that draws the dreams. Windows that are not held
        out update only the mean disagreement of the model's heads.
        """
        action, obs = rows["action"], rows["obs"][:, self.context].float()
        x = model.normaliser(rows["obs"])
        in_episode = (~rows["last"][:, self.context : -1]).cumprod(1)
        inliers = model.normaliser.inliers(rows["obs"])
        start = inliers[:, : self.context + 1].amin(1) * rows["held_out"][:, self.context]
        mask = in_episode * start.unsqueeze(1) * inliers[:, self.context + 1 :]  # (B, H)
        tokens = model.tokens(x, action, rows["reward"], rows["first"])
        embedding, past = model.transformer(tokens[:, : self.context + 1])
        not_first = torch.zeros_like(rows["first"][:, :1])
        errors = []
        for step in range(len(self.held_out_error)):
            dreamed = model.dream_step(embedding[:, -1], obs, rng)
            if step == 0:
                rate = (1 / self.normaliser.updates).clamp(min=0.01)
                self.mean_disagreement.lerp_(dreamed.disagreement.mean(), rate)
            obs, t = dreamed.obs, self.context + 1 + step
            dreamed_x = model.normaliser(obs)
            errors.append((dreamed_x - x[:, t]).square().mean(-1))
            if step + 1 < len(self.held_out_error):
                reward = dreamed.reward[:, None]
                token = model.tokens(dreamed_x[:, None], action[:, t : t + 1], reward, not_first)
                embedding, past = model.transformer(token, past)
        update_averages(self.held_out_windows, mask, (self.held_out_error, torch.stack(errors, 1)))
        shown = sorted({0, len(errors) // 2, len(errors) - 1})
        metrics = {f"model/error_{h + 1}": self.held_out_error[h].sqrt() for h in shown}
        return {**metrics, "model/disagreement": self.mean_disagreement.clone()}

    def expected_error(self, horizon: int) -> Tensor:
        """Returns the world model's expected error after 1, 2, … `horizon` dreamed steps.

        The error is the root mean square error on held-out episodes, in standard deviations of the
        observation. The result has shape (horizon,).
        """
        return expected_error(self.held_out_error, self.held_out_windows, horizon)

    # ------------------------------------------------------------------------------ dreaming

    def dream_step(
        self, embedding: Tensor, obs: Tensor, rng: torch.Generator | None
    ) -> DreamedStep:
        """Draws the next step of B dreams, from observations and embeddings of the transformer.

        obs: (B, *O). embedding: (B, E). Each number of the next observation is clipped to its range
        in real rows. A number with only two values in real rows is drawn as one of the two. rng:
        None takes the more probable value of everything that is drawn.
        """
        changes = self.heads(embedding.expand(self.members, -1, -1))
        before = self.normaliser.flatten(obs)
        change = changes.mean(0) * self.change_rms * self.normaliser.deviation
        after = (before + change).clamp(self.low, self.high)
        prob_high = (after - self.low) / (self.high - self.low).clamp(min=1e-6)
        high = draw(prob_high, rng)
        after = torch.where(self.two_valued, torch.where(high, self.high, self.low), after)
        change = self.normaliser.standardised(after) - self.normaliser.standardised(before)
        reward, terminal_logit = self.predict_outcome(embedding, change)
        terminal_prob = torch.sigmoid(terminal_logit)
        return DreamedStep(
            after.unflatten(-1, self.shape),
            reward * self.normaliser.reward_rms,
            draw(terminal_prob, rng),
            changes.var(0).mean(-1),
            terminal_prob,
        )

    def tokens(self, x: Tensor, action: Tensor, reward: Tensor, first: Tensor) -> Tensor:
        """Returns one token, an input of the transformer, for each of T rows in B sequences.

        The result has shape (B, T, E), where E is the size of a token.

        - x (B, T, O): normalised observations.
        - action: (B, T, A).
        - first (B, T): whether the row is the first of its episode.
        """
        reward = self.normaliser.clip_outliers(reward) / self.normaliser.reward_rms
        rest = torch.stack([reward, first.float()], -1)
        embedded: Tensor = self.embed(torch.cat([x, action, rest], -1))
        return embedded

    def predict_outcome(self, embedding: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Returns predicted rewards and logits of termination.

        Rewards are in units of the root mean square reward. embedding: the transformer's outputs,
        (…, E). change: changes of the observation in standard deviations, (…, O). Both results have
        the shape (…).
        """
        inputs = torch.cat([embedding, change / self.change_rms], -1)
        reward, terminal_logit = self.outcome(inputs).unbind(-1)
        return reward, terminal_logit


def steps_in_episode(first: Tensor, last: Tensor, context: int) -> Tensor:
    """Returns a mask (B, L-1) of the steps in the same episode as the start of their window.

    The start is row `context` of a window; the rows before it are its context. first, last: (B, L),
    whether a row is the first or the last of its episode. The mask is 0 for a step to a row with
    `first` set, because no real step leads to the first row of an episode.
    """
    from_start = F.pad((~last[:, context:-1]).cumprod(1), (context, 0), value=1)
    return (from_start * ~first[:, 1:]).float()
