"""A world model of observations themselves: what comes next, what it pays, whether it ends."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.blocks.nets import MLP, Ensemble
from agents.blocks.normaliser import Normaliser
from agents.blocks.training import masked_mean
from core.types import Batch, Space

MEMORY = 500.0  # held-out windows that the error is a moving average of


class Step(NamedTuple):
    """An imagined step of every member, (M, B, …)."""

    obs: Tensor  # (M, B, *O)
    reward: Tensor  # (M, B)
    terminal: Tensor  # (M, B) bool
    disagreement: Tensor  # (M, B)


class World(nn.Module):
    """Changes of vector observations as Gaussians of an ensemble, then their outcome.

    The inputs of a transition are the last `context` + 1 observations and the action's code; its
    output is in units of the typical change. The outcome of a step is its reward and its end,
    given both observations, so that an imagined reward fits the observation that was imagined.
    `horizon`: steps the held-out error is measured at.
    """

    change_rms: Tensor
    low: Tensor
    high: Tensor
    usual_disagreement: Tensor
    error: Tensor
    seen: Tensor

    def __init__(
        self,
        obs: Space,
        action_size: int,
        *,
        context: int,
        members: int,
        hidden: int,
        horizon: int,
    ) -> None:
        super().__init__()
        size = math.prod(obs.shape)
        self.shape, self.context, self.members = obs.shape, context, members
        self.normaliser = Normaliser(obs)
        self.transition = Ensemble(
            members,
            ((context + 1) * size + action_size, hidden, hidden, 2 * size),
            zero_last=True,
        )
        self.outcome = MLP((2 * size + action_size, hidden, hidden, 2), zero_last=True)
        self.register_buffer("change_rms", torch.ones(size))  # in deviations of the observation
        self.register_buffer("low", torch.full((size,), torch.inf))
        self.register_buffer("high", torch.full((size,), -torch.inf))
        self.register_buffer("usual_disagreement", torch.zeros(()))
        self.register_buffer("error", torch.ones(horizon))  # squared, by steps ahead
        self.register_buffer("seen", torch.zeros(horizon))  # held-out windows behind it

    # ------------------------------------------------------------------------------ learning

    @torch.no_grad()
    def look(self, rows: Batch) -> None:
        """Take in real windows (B, C + T, …) for the running statistics."""
        self.normaliser.update(rows["obs"], rows["reward"])
        flat = self.normaliser.flat(rows["obs"]).flatten(0, 1)
        self.low.copy_(torch.minimum(self.low, flat.amin(0)))
        self.high.copy_(torch.maximum(self.high, flat.amax(0)))
        x = self.normaliser(rows["obs"])[:, self.context :]
        inside = within(rows["last"][:, self.context :]).unsqueeze(-1)
        square = (x.diff(dim=1).square() * inside).sum((0, 1)) / inside.sum().clamp(min=1)
        rate = 1 / self.normaliser.updates.clamp(max=1000)
        self.change_rms.copy_(self.change_rms.square().lerp(square, rate).sqrt().clamp(min=1e-4))

    def loss(self, rows: Batch, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each member predicts the steps of its share of the windows (B, C + T, …) → scalar."""
        x = self.normaliser(rows["obs"])
        codes = code[:, self.context : -1]  # (B, T-1, A)
        histories = x.unfold(1, self.context + 1, 1).transpose(2, 3).flatten(2)  # (B, T, 4O)
        before, after = x[:, self.context : -1], x[:, self.context + 1 :]
        last, held_out = (rows[key][:, self.context :] for key in ("last", "held_out"))
        mask = within(last) * (~held_out[:, :1])  # (B, T-1)
        asked = torch.cat([histories[:, :-1], codes], -1)
        mean, log_std = self._predict(asked.flatten(0, 1).unflatten(0, (self.members, -1)))
        mean, log_std = (out.flatten(0, 1).unflatten(0, mask.shape) for out in (mean, log_std))
        square = (mean - (after - before) / self.change_rms).square()  # (B, T-1, O)
        # The spread is fitted to the error, without pulling on the mean.
        spread = 0.5 * square.detach() * (-2 * log_std).exp() + log_std
        reward, end = self._outcome(before, codes, after)
        real_reward = rows["reward"][:, self.context + 1 :] / self.normaliser.reward_rms
        ended = rows["terminal"][:, self.context + 1 :].float()
        reward_error = (reward - real_reward).square()
        terms = {
            "loss/transition": masked_mean(square.mean(-1), mask),
            "loss/spread": 0.1 * masked_mean(spread.mean(-1), mask),
            "loss/reward": masked_mean(reward_error, mask),
            "loss/end": masked_mean(
                F.binary_cross_entropy_with_logits(end, ended, reduction="none"), mask
            ),
        }
        unseen = within(last) * held_out[:, :1]
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics["model/held_out_reward"] = masked_mean(reward_error.detach(), unseen).sqrt()
        return torch.stack(list(terms.values())).sum(), metrics

    @torch.no_grad()
    def measure(self, asked: World, rows: Batch, code: Tensor) -> dict[str, Tensor]:
        """Take in how far `asked`, predicting open-loop, is off on held-out windows (B, C + T, …).

        Also by how much two members disagree on the first step of any window.
        """
        obs = asked.normaliser.flat(rows["obs"])
        inside = (
            within(rows["last"][:, self.context :]) * rows["held_out"][:, self.context :][:, :1]
        )

        def share(value: Tensor) -> Tensor:
            return value.unflatten(0, (self.members, -1))  # (B, …) → (M, B/M, …)

        history = share(asked.normaliser(rows["obs"])[:, : self.context + 1])
        errors = []
        for step in range(len(self.error)):
            at = self.context + step
            mean, _, disagreement = asked.compare(history, share(code[:, at]))
            if step == 0:
                rate = (1 / self.normaliser.updates).clamp(min=0.01)
                self.usual_disagreement.lerp_(disagreement.mean(), rate)
            following = history[:, :, -1] + mean * asked.change_rms
            history = torch.cat([history[:, :, 1:], following.unsqueeze(2)], 2)
            real = (share(obs[:, at + 1]) - asked.normaliser.obs_mean) / asked.normaliser.deviation
            errors.append((following - real).square().mean(-1).flatten())
        count = inside.sum(0)  # (T-1,)
        found = (torch.stack(errors, 1) * inside).sum(0) / count.clamp(min=1)
        self.seen.copy_((self.seen + count).clamp(max=MEMORY))
        self.error.lerp_(found, (count / self.seen.clamp(min=1)).clamp(max=1))
        shown = sorted({0, len(self.error) // 2, len(self.error) - 1})
        metrics = {f"model/error_{h + 1}": self.error[h].sqrt() for h in shown}
        return {**metrics, "model/disagreement": self.usual_disagreement.clone()}

    def expected_error(self, horizon: int) -> Tensor:
        """The held-out error after 1 … `horizon` steps, in deviations of the observation (H,).

        Beyond the steps that were measured it is taken to grow in proportion to them. Infinite
        where nothing was held out yet.
        """
        measured = torch.where(self.seen > 0, self.error.sqrt(), torch.inf)
        steps = torch.arange(1, horizon + 1, device=measured.device)
        longest = len(measured)
        return measured[steps.clamp(max=longest) - 1] * (steps / longest).clamp(min=1)

    # ----------------------------------------------------------------------------- imagining

    def imagine(self, history: Tensor, code: Tensor, noise: torch.Generator) -> Step:
        """A step from histories (M, B, C + 1, *O) by actions' codes (M, B, A), each by a member.

        Numbers stay in the range they had in real rows, as nobody else is asked about others.
        """
        x = self.normaliser(history)
        mean, log_std, disagreement = self.compare(x, code)
        drawn = torch.randn(mean.shape, generator=noise, device=mean.device)
        change = (mean + log_std.exp() * drawn) * self.change_rms
        now = self.normaliser.flat(history)[:, :, -1]
        obs = (now + change * self.normaliser.deviation).clamp(self.low, self.high)
        following = obs.unflatten(-1, self.shape)
        reward, end = self._outcome(x[:, :, -1], code, self.normaliser(following))
        chance = torch.rand(end.shape, generator=noise, device=end.device)
        reward = reward * self.normaliser.reward_rms
        return Step(following, reward, chance < torch.sigmoid(end), disagreement)

    def compare(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each member's change and its log std (M, B, O); how far the next is off (M, B).

        x: normalised histories (M, B, C + 1, O). Half the squared distance of two members, in
        typical changes: over pairs its mean is the ensemble's variance.
        """
        asked = torch.cat([x.flatten(2), code], -1)
        mean, log_std = self._predict(torch.cat([asked, asked.roll(1, 0)], 1))
        (mine, others), log_std = mean.chunk(2, 1), log_std.chunk(2, 1)[0]
        return mine, log_std, 0.5 * (mine - others.roll(-1, 0)).square().mean(-1)

    @torch.no_grad()
    def disagreement(self, obs: Tensor, code: Tensor) -> Tensor:
        """The variance of all members on each step of windows (B, C + T, …) → (B, T-1)."""
        x = self.normaliser(obs).unfold(1, self.context + 1, 1).transpose(2, 3).flatten(2)
        asked = torch.cat([x[:, :-1], code[:, self.context : -1]], -1)
        mean, _ = self._predict(asked.flatten(0, 1).expand(self.members, -1, -1))
        return mean.var(0).mean(-1).unflatten(0, asked.shape[:2])

    def _predict(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B, in) → mean and log standard deviation of the change (M, B, O)."""
        mean, spread = self.transition(asked).chunk(2, -1)
        return mean, -3 + 4 * torch.tanh(spread / 4)

    def _outcome(self, before: Tensor, code: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards in units of the typical one, and logits of the end (…)."""
        reward, end = self.outcome(torch.cat([before, code, after], -1)).unbind(-1)
        return reward, end


def within(last: Tensor) -> Tensor:
    """Whether each step of windows (B, T) is still inside the first row's episode: (B, T-1)."""
    return (~last).float().cumprod(1)[:, :-1]
