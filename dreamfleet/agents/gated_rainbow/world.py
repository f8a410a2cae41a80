"""The world model of Gated Rainbow, which predicts the next observation, reward and termination."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.distributions import draw
from dreamfleet.agents.blocks.held_out import expected_error, update_averages
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.normaliser import FrameNormaliser, Normaliser
from dreamfleet.agents.gated_rainbow.config import CONTEXT, Config
from dreamfleet.core.types import Batch, Space


class DreamedStep(NamedTuple):
    """Holds the next rows of B dreams, and how much two ensemble members disagree on each."""

    obs: Tensor  # (B, *O), in the dtype of the replay
    reward: Tensor  # (B,)
    terminal: Tensor  # (B,) bool
    disagreement: Tensor  # (B,)
    terminal_prob: Tensor  # (B,)


class WorldModel(nn.Module, ABC):
    """The base class of the world models of vector and image observations; subclasses add networks.

    An ensemble predicts the change from the newest observation of a history to the next
    observation. The unit of changes is `change_rms`, the root mean square of real changes. A second
    network predicts reward and termination from the observation before the step, the action, and
    the observation after it.

    Letters of shapes in the methods: M ensemble members, C = `CONTEXT` rows of context (before the
    first row of a window), T rows of a window without its context, A the size of an encoded action,
    *O the shape of an observation in the replay, *X its shape in the networks.
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
        """Updates running statistics of observations and rewards with windows of real rows.

        Also updates the smallest and largest value of each component of observations. rows: columns
        (B, C + T, …).
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
        """Returns the loss of the world model on real windows, as a scalar, and metrics.

        rows: columns (B, C + T, …). action: encoded actions (B, C + T, A). A step counts if it lies
        in the episode of the first row after the context, if none of its observations is an
        outlier, and if the episode is not held out.
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
        """Updates the error of `model` on held-out episodes; returns metrics.

        `model` is a slow copy (moving average) of this world model. rows: columns (B, C + T, …),
        for B windows of real rows. action: encoded actions (B, C + T, A). rng: the generator that
        draws the dreams.

        `model` dreams with the real actions from the first history of each held-out window, and the
        dreamed observations are compared with the real ones. The first step of all windows updates
        the mean disagreement of two ensemble members, and the stored prediction errors.
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
        """Returns the world model's expected error after 1, 2, … `horizon` dreamed steps.

        The error is the root mean square error on held-out episodes, in standard deviations of the
        observation. The result has shape (horizon,).
        """
        error = self.held_out_error / self.obs_std**2
        return expected_error(error, self.held_out_windows, horizon)

    # ------------------------------------------------------------------------------ dreaming

    def dream_step(
        self, history: Tensor, action: Tensor, rng: torch.Generator | None
    ) -> DreamedStep:
        """Draws the next step of B dreams, given their histories and encoded actions.

        history: (B, C + 1, *O). action: (B, A). Each ensemble member draws the steps of an equal
        part of the dreams. Each number of the next observation is clipped to its range in real
        rows. rng: None takes the mean change and the more probable outcome.
        """
        history, action = self._split_by_member(history), self._split_by_member(action)
        x = self.normaliser(history)
        mean, log_std, disagreement = self.predict_with_disagreement(x, action)
        obs = self.draw_next_obs(history[:, :, -1], mean, log_std, rng)
        reward, terminal_logit = self.predict_outcome(x[:, :, -1], action, self.normaliser(obs))
        terminal_prob = torch.sigmoid(terminal_logit)
        reward = reward * self.normaliser.reward_rms
        step = (obs, reward, draw(terminal_prob, rng), disagreement, terminal_prob)
        return DreamedStep(*(part.flatten(0, 1) for part in step))

    def predict_with_disagreement(
        self, x: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns mean and log standard deviation of predicted changes, and the disagreement.

        x: normalised histories (M, B, C + 1, *X). action: encoded actions (M, B, A). The
        disagreement (M, B) is half the mean squared difference between the means that two members
        predict for a step, in units of `change_rms`. Means and log standard deviations are (M, B,
        *X).
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
        """Returns how much all ensemble members disagree about each step of B windows, (B, T-1).

        The disagreement is the variance of the members' predicted changes, averaged over the
        components of the observation. obs: (B, C + T, *O). action: encoded actions (B, C + T, A).
        """
        inputs = self._histories(self.normaliser(obs))[:, :-1], action[:, CONTEXT:-1]
        shape = inputs[1].shape[:2]
        for_each_member = (
            part.flatten(0, 1).expand(self.members, *[-1] * (part.dim() - 1)) for part in inputs
        )
        mean, _ = self.predict(*for_each_member)
        return self._mean_over_obs(mean.var(0)).unflatten(0, shape)

    def _steps_without_outliers(self, obs: Tensor) -> Tensor:
        """Returns 1 for each step that involves no outlier, else 0, (B, T-1).

        obs: (B, C + T, *O). A step involves an outlier if there is one in the observation before or
        after it, or in the first C + 1 observations of its window.
        """
        inliers = self.normaliser.inliers(obs)
        start = inliers[:, : CONTEXT + 1].amin(1, keepdim=True)
        return start * inliers[:, CONTEXT:-1] * inliers[:, CONTEXT + 1 :]

    def _histories(self, x: Tensor) -> Tensor:
        """Returns a history, the last C + 1 observations, at each of the last T rows of B windows.

        x: (B, C + T, *X). The result is (B, T, C + 1, *X).
        """
        return x.unfold(1, CONTEXT + 1, 1).movedim(-1, 2)

    def _split_by_member(self, x: Tensor) -> Tensor:
        """Splits a batch of B entries evenly among M ensemble members: (B, …) to (M, B/M, …)."""
        return x.unflatten(0, (self.members, -1))

    def _mean_over_obs(self, x: Tensor) -> Tensor:
        """Returns the mean of `x` over the axes of an observation, the last axes of `x`.

        The result has the other axes of `x`.
        """
        return x.flatten(-len(self.shape)).mean(-1)

    # ------------------------------------------------------------- implemented by subclasses

    @abstractmethod
    def mean_square_change(self, x: Tensor, square: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean squared change of observations, in the shape of `change_rms`.

        - x (B, C + T, *X): normalised observations.
        - square (B, T-1, *X): squared changes in the T-1 steps.
        - mask (B, T-1): 1 for steps whose change is averaged, else 0.
        """

    @abstractmethod
    def predict(self, history: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns mean and log standard deviation of the next changes of the observation.

        history: normalised histories (M, B, C + 1, *X). action: encoded actions (M, B, A). Both
        results are (M, B, *X), in units of `change_rms`. The log standard deviation is None if the
        model does not learn it.
        """

    @abstractmethod
    def predict_outcome(
        self, before: Tensor, action: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns predicted rewards and logits of termination.

        Rewards are in units of the root mean square reward. before, after: normalised observations
        before and after the step, (…, *X). action: encoded actions, (…, A). Both results have the
        shape (…).
        """

    @abstractmethod
    def draw_next_obs(
        self, obs: Tensor, mean: Tensor, log_std: Tensor | None, rng: torch.Generator | None
    ) -> Tensor:
        """Draws the next observations, from the distribution of changes that `predict` returns.

        obs: the newest observations (M, B, *O). mean, log_std: (M, B, *X), in units of
        `change_rms`. rng: None takes the mean. The result has the shape of `obs`.
        """

    def update_residuals(
        self, change: Tensor, mean: Tensor, log_std: Tensor | None, mask: Tensor
    ) -> None:
        """Stores prediction errors of real steps, from which `draw_next_obs` may draw later.

        Does nothing unless a subclass overrides it. change: real changes (M, B, *X). mean, log_std:
        mean and log standard deviation of the predicted changes. mask (M, B): 1 for changes to
        store, else 0.
        """

    def replace_outliers(self, obs: Tensor) -> Tensor:
        """Returns observations in which a subclass may have replaced outliers.

        By default the observations are returned unchanged.
        """
        return obs

    def squared_error(self, obs: Tensor, other: Tensor) -> Tensor:
        """Returns the mean squared difference of normalised observations.

        obs, other: the two batches to compare; any batch axes, then the axes of one observation.
        The result has the batch axes.
        """
        return self._mean_over_obs((self.normaliser(obs) - self.normaliser(other)).square())

    @property
    @abstractmethod
    def obs_std(self) -> Tensor | float:
        """Returns the standard deviation of normalised observations, the unit of errors."""


def gaussian_std_loss(square: Tensor, log_std: Tensor) -> Tensor:
    """Returns the negative log-likelihood of prediction errors under a Gaussian of mean 0.

    square: squared errors, which get no gradient. log_std: the log standard deviation, of the same
    shape. The constant term is left out.
    """
    return 0.5 * square.detach() * (-2 * log_std).exp() + log_std


def steps_in_episode(last: Tensor) -> Tensor:
    """Returns a mask (B, T-1) of the steps in the same episode as their window's first row.

    last: (B, T), whether a row is the last of its episode. The mask is 1.0 for a step in the first
    row's episode, else 0.0.
    """
    return (~last).float().cumprod(1)[:, :-1]
