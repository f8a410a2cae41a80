"""A world model of observations themselves: what comes next, what it pays, whether it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.held_out import expected_error, update_averages
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.normaliser import Normaliser, Pixels
from dreamfleet.core.types import Batch, Space


class ImaginedStep(NamedTuple):
    """An imagined step of every member, (M, B, …)."""

    obs: Tensor  # (M, B, *O), of the real rows' dtype
    reward: Tensor  # (M, B)
    terminal: Tensor  # (M, B) bool
    disagreement: Tensor  # (M, B)


class WorldModel(nn.Module, ABC):
    """What worlds of vectors and of frames share; what differs is abstract, below.

    An ensemble predicts the change from the last `context` + 1 observations and the action's code,
    in units of the typical change. The outcome of a step is its reward and its end, given both
    observations, so that an imagined reward fits the observation that was imagined. X stands for an
    observation as the networks read it. `horizon`: steps the held-out error is measured at.
    """

    normaliser: Normaliser | Pixels
    change_rms: Tensor  # of each number, or of all
    low: Tensor
    high: Tensor
    usual_disagreement: Tensor
    error: Tensor
    still: Tensor
    seen: Tensor

    def __init__(self, obs: Space, *, context: int, members: int, horizon: int) -> None:
        super().__init__()
        self.shape, self.context, self.members = obs.shape, context, members
        self.register_buffer("low", torch.full(obs.shape, torch.inf))
        self.register_buffer("high", torch.full(obs.shape, -torch.inf))
        self.register_buffer("usual_disagreement", torch.zeros(()))
        self.register_buffer("error", torch.ones(horizon))  # squared, by steps ahead
        self.register_buffer("still", torch.ones(horizon))  # that of predicting no change
        self.register_buffer("seen", torch.zeros(horizon))  # held-out windows behind them

    # ------------------------------------------------------------------------------ learning

    @torch.no_grad()
    def update_statistics(self, rows: Batch) -> None:
        """Take in real windows (B, C + T, …) for the running statistics."""
        self.normaliser.update(rows["obs"], rows["reward"])
        flat = self.replace_outliers(rows["obs"]).flatten(0, 1)
        self.low.copy_(torch.minimum(self.low, flat.amin(0)))
        self.high.copy_(torch.maximum(self.high, flat.amax(0)))
        x = self.normaliser(rows["obs"])
        inside = steps_inside(rows["last"][:, self.context :])
        square = self.mean_square_change(x, x[:, self.context :].diff(dim=1).square(), inside)
        rate = self.normaliser.rate
        self.change_rms.copy_(self.change_rms.square().lerp(square, rate).sqrt().clamp(min=1e-4))

    def loss(self, rows: Batch, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each member predicts the steps of its share of the windows (B, C + T, …) → scalar."""
        x = self.normaliser(rows["obs"])
        codes = code[:, self.context : -1]  # (B, T-1, A)
        histories = self._histories(x)[:, :-1]  # (B, T-1, C+1, *X)
        before, after = x[:, self.context : -1], x[:, self.context + 1 :]
        last, held_out = (rows[key][:, self.context :] for key in ("last", "held_out"))
        steps = steps_inside(last) * self._sound(rows["obs"])
        mask = steps * (~held_out[:, :1])  # (B, T-1)
        shares = (self._share(part.flatten(0, 1)) for part in (histories, codes))
        mean, log_std = self.predict(*shares)
        mean = mean.flatten(0, 1).unflatten(0, mask.shape)
        square = (mean - (after - before) / self.change_rms).square()  # (B, T-1, *X)
        terms = {"loss/transition": masked_mean(self._each(square), mask)}
        if log_std is not None:
            # The spread is fitted to the error, without pulling on the mean.
            log_std = log_std.flatten(0, 1).unflatten(0, mask.shape)
            spread = 0.5 * square.detach() * (-2 * log_std).exp() + log_std
            terms["loss/spread"] = 0.1 * masked_mean(self._each(spread), mask)
        reward, end = self.predict_outcome(before, codes, after)
        plausible = self.normaliser.cut_outliers(rows["reward"][:, self.context + 1 :])
        real_reward = plausible / self.normaliser.reward_rms
        ended = rows["terminal"][:, self.context + 1 :].float()
        reward_error = (reward - real_reward).square()
        terms["loss/reward"] = masked_mean(reward_error, mask)
        end_error = F.binary_cross_entropy_with_logits(end, ended, reduction="none")
        terms["loss/end"] = masked_mean(end_error, mask)
        unseen = steps * held_out[:, :1]
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics["model/held_out_reward"] = masked_mean(reward_error.detach(), unseen).sqrt()
        return torch.stack(list(terms.values())).sum(), metrics

    @torch.no_grad()
    def update_held_out_error(
        self, asked: WorldModel, rows: Batch, code: Tensor, noise: torch.Generator
    ) -> dict[str, Tensor]:
        """Take in how far dreams of `asked` are off on held-out windows (B, C + T, …).

        They are drawn as dreams are, as those are what is learned from: the mean of all draws is
        nearer to what was real. The actions are the real ones. Also taken in: how far predicting no
        change is off, by how much two members disagree on the first step of any window, and what
        the draws of that step shall be like.
        """
        steps = steps_inside(rows["last"][:, self.context :]) * self._sound(rows["obs"])
        inside = steps * rows["held_out"][:, self.context :][:, :1]
        history = self._share(rows["obs"][:, : self.context + 1])
        start = history[:, :, -1]
        errors, still = [], []
        for step in range(len(self.error)):
            at = self.context + step
            x, asking = asked.normaliser(history), self._share(code[:, at])
            real = self._share(rows["obs"][:, at + 1])
            if step == 0:
                mean, log_std, disagreement = asked.predict_with_disagreement(x, asking)
                rate = (1 / self.normaliser.updates).clamp(min=0.01)
                self.usual_disagreement.lerp_(disagreement.mean(), rate)
                change = (asked.normaliser(real) - x[:, :, -1]) / asked.change_rms
                self.update_residuals(change, mean, log_std, self._share(steps[:, 0]))
            else:
                mean, log_std = asked.predict(x, asking)
            following = asked.draw(history[:, :, -1], mean, log_std, noise)
            history = torch.cat([history[:, :, 1:], following.unsqueeze(2)], 2)
            errors.append(asked.distance(following, real).flatten())
            still.append(asked.distance(start, real).flatten())
        found = (self.error, torch.stack(errors, 1)), (self.still, torch.stack(still, 1))
        update_averages(self.seen, inside, *found)
        metrics = {"model/disagreement": self.usual_disagreement.clone()}
        for h in sorted({0, len(self.error) // 2, len(self.error) - 1}):
            metrics[f"model/error_{h + 1}"] = self.error[h].sqrt() / self.unit
            metrics[f"model/still_{h + 1}"] = self.still[h].sqrt() / self.unit
        return metrics

    def expected_error(self, horizon: int) -> Tensor:
        """The held-out error of dreams after 1 … `horizon` steps, in deviations of the observation.

        → (H,)
        """
        return expected_error(self.error / self.unit**2, self.seen, horizon)

    # ----------------------------------------------------------------------------- imagining

    def imagine(self, history: Tensor, code: Tensor, noise: torch.Generator) -> ImaginedStep:
        """A step from histories (M, B, C + 1, *O) by actions' codes (M, B, A), each by a member.

        Numbers stay in the range they had in real rows, as nobody else is asked about others.
        """
        x = self.normaliser(history)
        mean, log_std, disagreement = self.predict_with_disagreement(x, code)
        following = self.draw(history[:, :, -1], mean, log_std, noise)
        reward, end = self.predict_outcome(x[:, :, -1], code, self.normaliser(following))
        chance = torch.rand(end.shape, generator=noise, device=end.device)
        reward = reward * self.normaliser.reward_rms
        return ImaginedStep(following, reward, chance < torch.sigmoid(end), disagreement)

    def predict_with_disagreement(
        self, x: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Each member's change and its log std (M, B, *X); how far the next is off (M, B).

        x: normalised histories (M, B, C + 1, *X). Half the squared distance of two members, in
        typical changes: over pairs its mean is the ensemble's variance.
        """
        twice = (torch.cat([part, part.roll(1, 0)], 1) for part in (x, code))
        mean, log_std = self.predict(*twice)
        mine, others = mean.chunk(2, 1)
        if log_std is not None:
            log_std = log_std.chunk(2, 1)[0]
        return mine, log_std, 0.5 * self._each((mine - others.roll(-1, 0)).square())

    @torch.no_grad()
    def disagreement(self, obs: Tensor, code: Tensor) -> Tensor:
        """The variance of all members on each step of windows (B, C + T, …) → (B, T-1)."""
        asked = self._histories(self.normaliser(obs))[:, :-1], code[:, self.context : -1]
        shape = asked[1].shape[:2]
        everybody = (
            part.flatten(0, 1).expand(self.members, *[-1] * (part.dim() - 1)) for part in asked
        )
        mean, _ = self.predict(*everybody)
        return self._each(mean.var(0)).unflatten(0, shape)

    def _sound(self, obs: Tensor) -> Tensor:
        """Whether steps of windows (B, C + T, *O) are to what is no fault, from such, (B, T-1).

        That is: the observation it leads to, the first history of the window, and the row before.
        """
        sound = self.normaliser.inliers(obs)
        start = sound[:, : self.context + 1].amin(1, keepdim=True)
        return start * sound[:, self.context : -1] * sound[:, self.context + 1 :]

    def _histories(self, x: Tensor) -> Tensor:
        """Rows (B, C + T, *X) → the history at each of the last T, (B, T, C + 1, *X)."""
        return x.unfold(1, self.context + 1, 1).movedim(-1, 2)

    def _share(self, x: Tensor) -> Tensor:
        """(B, …) → (M, B/M, …)"""
        return x.unflatten(0, (self.members, -1))

    def _each(self, x: Tensor) -> Tensor:
        """The mean over the numbers of each observation: (…, *X) → (…)."""
        return x.flatten(-len(self.shape)).mean(-1)

    # --------------------------------------------------------------------- what depends on X

    @abstractmethod
    def mean_square_change(self, x: Tensor, square: Tensor, inside: Tensor) -> Tensor:
        """The mean squared change, as `change_rms` has it.

        x: rows (B, C + T, *X), square: the changes of the last T (B, T-1, *X), inside: which of
        them count (B, T-1).
        """

    @abstractmethod
    def predict(self, history: Tensor, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """Histories (M, B, C + 1, *X), codes (M, B, A) → each member's change, in typical ones.

        Its mean and, where it has a spread, its log standard deviation; (M, B, *X) each.
        """

    @abstractmethod
    def predict_outcome(self, before: Tensor, code: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """(…, *X), (…, A), (…, *X) → rewards in typical ones, logits of the end; (…) each."""

    @abstractmethod
    def draw(
        self, now: Tensor, mean: Tensor, log_std: Tensor | None, noise: torch.Generator
    ) -> Tensor:
        """The observation after `now` (M, B, *O), given its change (M, B, *X) → (M, B, *O)."""

    def update_residuals(
        self, change: Tensor, mean: Tensor, log_std: Tensor | None, counts: Tensor
    ) -> None:
        """Take in how real changes (M, B, *X) differ from what was said of them, as `draw` uses it.

        counts: which of them are real (M, B).
        """

    def replace_outliers(self, obs: Tensor) -> Tensor:
        """Observations (…, *O) without values that no state of the environment has, (…, *O)."""
        return obs

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """The mean squared difference of two observations in X: (…, *O), (…, *O) → (…)."""
        return self._each((self.normaliser(one) - self.normaliser(other)).square())

    @property
    @abstractmethod
    def unit(self) -> Tensor | float:
        """A deviation of the observation, in X."""


def steps_inside(last: Tensor) -> Tensor:
    """Whether each step of windows (B, T) is still inside the first row's episode: (B, T-1)."""
    return (~last).float().cumprod(1)[:, :-1]
