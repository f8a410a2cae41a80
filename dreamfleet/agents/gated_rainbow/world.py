"""The world model of Gated Rainbow: predicts the next observation, its reward and termination."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.held_out import expected_error, update_averages
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.normaliser import FrameNormaliser, Normaliser
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.core.types import Batch, Space


class DreamedStep(NamedTuple):
    """One step of B dreams."""

    obs: Tensor  # (B, *O), in the dtype of the replay
    reward: Tensor  # (B,)
    terminal: Tensor  # (B,) bool
    disagreement: Tensor  # (B,)


class WorldModel(nn.Module, ABC):
    """The common part of the world models of vectors and of frames; subclasses add the networks.

    An ensemble predicts the change from the newest observation of a history to the next
    observation, given the encoded action. The unit of changes is `change_rms`, the root mean square
    of real changes. A second network predicts reward and termination from the observation before
    the step, the action, and the observation after it. So a dreamed reward fits the observation
    that was dreamed with it.

    Shapes: M members, C = `CONTEXT`, T rows from the start of a window on, A size of an encoded
    action, *O an observation in the replay, *X an observation as the networks read it. The held-out
    error is measured after 1 … `world_window` - 1 steps.
    """

    normaliser: Normaliser | FrameNormaliser
    change_rms: Tensor  # (O,) for vectors, () for frames
    low: Tensor
    high: Tensor
    mean_disagreement: Tensor
    held_out_error: Tensor
    no_change_error: Tensor
    held_out_windows: Tensor

    def __init__(self, config: Config, obs: Space) -> None:
        super().__init__()
        self.shape, self.members = obs.shape, config.members
        horizon = config.world_window - 1
        self.register_buffer("low", torch.full(obs.shape, torch.inf))
        self.register_buffer("high", torch.full(obs.shape, -torch.inf))
        self.register_buffer("mean_disagreement", torch.zeros(()))
        # Mean squared errors after each number of steps: of dreams, of predicting no change.
        self.register_buffer("held_out_error", torch.ones(horizon))
        self.register_buffer("no_change_error", torch.ones(horizon))
        # Number of held-out windows that these errors are averages of, bounded from above.
        self.register_buffer("held_out_windows", torch.zeros(horizon))

    # ------------------------------------------------------------------------------ learning

    @torch.no_grad()
    def update_statistics(self, rows: Batch) -> None:
        """Updates the running statistics and the range of observations from real windows.

        rows: (B, C + T, …).
        """
        self.normaliser.update(rows["obs"], rows["reward"])
        flat = self.replace_outliers(rows["obs"]).flatten(0, 1)
        self.low.copy_(torch.minimum(self.low, flat.amin(0)))
        self.high.copy_(torch.maximum(self.high, flat.amax(0)))
        x = self.normaliser(rows["obs"])
        mask = steps_in_episode(rows["last"][:, CONTEXT:])
        square = self.mean_square_change(x, x[:, CONTEXT:].diff(dim=1).square(), mask)
        rate = self.normaliser.rate
        self.change_rms.copy_(self.change_rms.square().lerp(square, rate).sqrt().clamp(min=1e-4))

    def loss(self, rows: Batch, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss () on real windows (B, C + T, …) with encoded actions, and metrics.

        Each member learns from B / M of the windows. A step counts if it lies in the episode of the
        window's start, involves no outlier, and the episode is not held out.
        """
        x = self.normaliser(rows["obs"])
        action = action[:, CONTEXT:-1]  # (B, T-1, A)
        histories = self._histories(x)[:, :-1]  # (B, T-1, C+1, *X)
        before, after = x[:, CONTEXT:-1], x[:, CONTEXT + 1 :]
        last, held_out = (rows[key][:, CONTEXT:] for key in ("last", "held_out"))
        steps = steps_in_episode(last) * self._steps_without_outliers(rows["obs"])
        mask = steps * (~held_out[:, :1])  # (B, T-1)
        inputs = (self._split_by_member(part.flatten(0, 1)) for part in (histories, action))
        mean, log_std = self.predict(*inputs)
        mean = mean.flatten(0, 1).unflatten(0, mask.shape)
        square = (mean - (after - before) / self.change_rms).square()  # (B, T-1, *X)
        terms = {"loss/transition": masked_mean(self._mean_over_obs(square), mask)}
        if log_std is not None:
            log_std = log_std.flatten(0, 1).unflatten(0, mask.shape)
            std_loss = gaussian_std_loss(square, log_std)
            terms["loss/transition_std"] = 0.1 * masked_mean(self._mean_over_obs(std_loss), mask)
        predicted_reward, terminal_logit = self.predict_outcome(before, action, after)
        reward = self.normaliser.clip_outliers(rows["reward"][:, CONTEXT + 1 :])
        reward_error = (predicted_reward - reward / self.normaliser.reward_rms).square()
        terms["loss/reward"] = masked_mean(reward_error, mask)
        terminal = rows["terminal"][:, CONTEXT + 1 :].float()
        terminal_error = F.binary_cross_entropy_with_logits(
            terminal_logit, terminal, reduction="none"
        )
        terms["loss/terminal"] = masked_mean(terminal_error, mask)
        held_out_steps = steps * held_out[:, :1]
        metrics = {name: term.detach() for name, term in terms.items()}
        metrics["model/held_out_reward"] = masked_mean(reward_error.detach(), held_out_steps).sqrt()
        return torch.stack(list(terms.values())).sum(), metrics

    @torch.no_grad()
    def update_held_out_error(
        self, model: WorldModel, rows: Batch, action: Tensor, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Updates the held-out error of `model` from real windows; returns metrics.

        rows: (B, C + T, …), action: encoded (B, C + T, A). `model` is a slow copy of this one. It
        dreams from the first history of each held-out window with the real actions, and the dreamed
        observations are compared with the real ones. Each dreamed observation is a
        random draw, as in the dreams that the value network learns from; the mean of many draws
        would have a smaller error.

        Also updated: the error of predicting no change and, from the first step of all windows, the
        mean disagreement of two members and the statistics that `draw_next_obs` uses.
        """
        in_episode = steps_in_episode(rows["last"][:, CONTEXT:])
        steps = in_episode * self._steps_without_outliers(rows["obs"])
        mask = steps * rows["held_out"][:, CONTEXT:][:, :1]
        history = self._split_by_member(rows["obs"][:, : CONTEXT + 1])
        start = history[:, :, -1]
        errors, no_change_errors = [], []
        for step in range(len(self.held_out_error)):
            t = CONTEXT + step
            x, real_action = model.normaliser(history), self._split_by_member(action[:, t])
            real = self._split_by_member(rows["obs"][:, t + 1])
            if step == 0:
                mean, log_std, disagreement = model.predict_with_disagreement(x, real_action)
                rate = (1 / self.normaliser.updates).clamp(min=0.01)
                self.mean_disagreement.lerp_(disagreement.mean(), rate)
                change = (model.normaliser(real) - x[:, :, -1]) / model.change_rms
                self.update_residuals(change, mean, log_std, self._split_by_member(steps[:, 0]))
            else:
                mean, log_std = model.predict(x, real_action)
            dreamed = model.draw_next_obs(history[:, :, -1], mean, log_std, rng)
            history = torch.cat([history[:, :, 1:], dreamed.unsqueeze(2)], 2)
            errors.append(model.squared_error(dreamed, real).flatten())
            no_change_errors.append(model.squared_error(start, real).flatten())
        update_averages(
            self.held_out_windows,
            mask,
            (self.held_out_error, torch.stack(errors, 1)),
            (self.no_change_error, torch.stack(no_change_errors, 1)),
        )
        metrics = {"model/disagreement": self.mean_disagreement.clone()}
        for h in sorted({0, len(errors) // 2, len(errors) - 1}):
            metrics[f"model/error_{h + 1}"] = self.held_out_error[h].sqrt() / self.obs_std
            no_change = self.no_change_error[h].sqrt() / self.obs_std
            metrics[f"model/no_change_error_{h + 1}"] = no_change
        return metrics

    def expected_error(self, horizon: int) -> Tensor:
        """Returns the held-out error after 1 … `horizon` steps, (H,).

        The unit is the standard deviation of the observation.
        """
        error = self.held_out_error / self.obs_std**2
        return expected_error(error, self.held_out_windows, horizon)

    # ------------------------------------------------------------------------------ dreaming

    def dream_step(self, history: Tensor, action: Tensor, rng: torch.Generator) -> DreamedStep:
        """Draws the step after histories (B, C + 1, *O) with encoded actions (B, A).

        Each member draws the steps of B / M dreams. Each number of the observation is clipped to
        its range in real rows, because the value network never learned from numbers outside of it.
        """
        history, action = self._split_by_member(history), self._split_by_member(action)
        x = self.normaliser(history)
        mean, log_std, disagreement = self.predict_with_disagreement(x, action)
        obs = self.draw_next_obs(history[:, :, -1], mean, log_std, rng)
        reward, terminal_logit = self.predict_outcome(x[:, :, -1], action, self.normaliser(obs))
        uniform = torch.rand(terminal_logit.shape, generator=rng, device=terminal_logit.device)
        terminal = uniform < torch.sigmoid(terminal_logit)
        reward = reward * self.normaliser.reward_rms
        step = (obs, reward, terminal, disagreement)
        return DreamedStep(*(part.flatten(0, 1) for part in step))

    def predict_with_disagreement(
        self, x: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns the mean (M, B, *X) and log std of each change, and the disagreement (M, B).

        x: normalised histories (M, B, C + 1, *X). Slice m is predicted by member m, and once more
        by member m + 1. Disagreement is half the squared distance of the two predicted means, in
        units of `change_rms`. Averaged over all pairs of members it is the ensemble's variance.
        """
        both = (torch.cat([part, part.roll(1, 0)], 1) for part in (x, action))
        mean, log_std = self.predict(*both)
        own, neighbour = mean.chunk(2, 1)
        if log_std is not None:
            log_std = log_std.chunk(2, 1)[0]
        disagreement = 0.5 * self._mean_over_obs((own - neighbour.roll(-1, 0)).square())
        return own, log_std, disagreement

    @torch.no_grad()
    def disagreement(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the variance of all members' predictions for each step of windows, (B, T-1).

        obs: (B, C + T, *O), action: encoded actions (B, C + T, A).
        """
        inputs = self._histories(self.normaliser(obs))[:, :-1], action[:, CONTEXT:-1]
        shape = inputs[1].shape[:2]
        for_each_member = (
            part.flatten(0, 1).expand(self.members, *[-1] * (part.dim() - 1)) for part in inputs
        )
        mean, _ = self.predict(*for_each_member)
        return self._mean_over_obs(mean.var(0)).unflatten(0, shape)

    def _steps_without_outliers(self, obs: Tensor) -> Tensor:
        """Returns 1 for each step of windows that involves no outlier, else 0.

        A step involves the observations before and after it, and the first history of its window.
        (B, C + T, *O) → (B, T-1).
        """
        inliers = self.normaliser.inliers(obs)
        start = inliers[:, : CONTEXT + 1].amin(1, keepdim=True)
        return start * inliers[:, CONTEXT:-1] * inliers[:, CONTEXT + 1 :]

    def _histories(self, x: Tensor) -> Tensor:
        """Returns the history at each of the last T rows: (B, C + T, *X) → (B, T, C + 1, *X)."""
        return x.unfold(1, CONTEXT + 1, 1).movedim(-1, 2)

    def _split_by_member(self, x: Tensor) -> Tensor:
        """(B, …) → (M, B/M, …)"""
        return x.unflatten(0, (self.members, -1))

    def _mean_over_obs(self, x: Tensor) -> Tensor:
        """Returns the mean over the numbers of each observation: (…, *X) → (…)."""
        return x.flatten(-len(self.shape)).mean(-1)

    # ------------------------------------------------------------- implemented by subclasses

    @abstractmethod
    def mean_square_change(self, x: Tensor, square: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean squared change of real steps, in the shape of `change_rms`.

        x: observations (B, C + T, *X), square: squared changes (B, T-1, *X), mask: 1 for steps that
        count (B, T-1).
        """

    @abstractmethod
    def predict(self, history: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the mean and the log standard deviation of each change, (M, B, *X) each.

        history: normalised (M, B, C + 1, *X), action: encoded (M, B, A). Member m predicts slice m,
        in units of `change_rms`. The log standard deviation is None where none is learned.
        """

    @abstractmethod
    def predict_outcome(
        self, before: Tensor, action: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns rewards in root mean squares of real rewards, and logits of termination.

        before, after: observations around the step (…, *X), action: encoded (…, A) → (…), (…).
        """

    @abstractmethod
    def draw_next_obs(
        self, obs: Tensor, mean: Tensor, log_std: Tensor | None, rng: torch.Generator
    ) -> Tensor:
        """Draws the next observation (M, B, *O), given the prediction of `predict`.

        obs: newest observations (M, B, *O), mean and log_std: of the change (M, B, *X).
        """

    def update_residuals(
        self, change: Tensor, mean: Tensor, log_std: Tensor | None, mask: Tensor
    ) -> None:
        """Stores how real changes differ from predicted ones, for `draw_next_obs`.

        change: real changes (M, B, *X), mean and log_std: predictions of them, mask: 1 for changes
        to store (M, B). Does nothing unless a subclass overrides it.
        """

    def replace_outliers(self, obs: Tensor) -> Tensor:
        """Returns observations (…, *O) in which other numbers stand in for outliers."""
        return obs

    def squared_error(self, obs: Tensor, other: Tensor) -> Tensor:
        """Returns the mean squared difference of normalised observations: (…, *O) twice → (…)."""
        return self._mean_over_obs((self.normaliser(obs) - self.normaliser(other)).square())

    @property
    @abstractmethod
    def obs_std(self) -> Tensor | float:
        """Returns the standard deviation of normalised observations."""


def gaussian_std_loss(square: Tensor, log_std: Tensor) -> Tensor:
    """Returns a Gaussian's negative log-likelihood, without its constant: (…), (…) → (…).

    square: squared errors of the mean. They get no gradient, so only the standard deviation is
    fitted.
    """
    return 0.5 * square.detach() * (-2 * log_std).exp() + log_std


def steps_in_episode(last: Tensor) -> Tensor:
    """Returns 1 for each step that lies in the episode of its window's first row, else 0.

    (B, T) → (B, T-1) float.
    """
    return (~last).float().cumprod(1)[:, :-1]
