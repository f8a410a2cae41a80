"""Dreamwalker: soft actor-critic with truncated quantile critics, which also learns from dreams.

The policy and the critics (`learn_policy`) learn from windows of two rows, a step from observation
o by action a to observation o':

    actor     π(·|o)                     a Gaussian squashed by tanh
    critics   θ_k(o, a), k = 1 … K       Z quantiles of the return each; all layers read (o, a)
    target    r + γ (1 - terminal) (z - α log π(a'|o')),  a' ~ π(·|o')
              z: the quantiles of all target critics at (o', a'), without the largest
    α         is learned, so that the entropy of the policy is -dim(a)

Only `terminal` stops a return, so the return of a truncated episode bootstraps.

Real windows are sampled in one of four ways: uniformly, uniformly from the newest rows (ERE,
Emphasizing Recent Experience), by priority (TD error), or half from the newest rows and half by
priority.

The world model (`learn_world`, `world.py`) is a transformer. It reads a row and the rows before it,
and predicts the change of the observation, the reward and the termination.

A fraction `held_out_share` of the episodes is held out: the world model never learns from held-out
episodes, and its error is measured on them.

A dream (`dream`) is a rollout in the world model, which starts from a real row. The policy chooses
the actions. The world model draws the next rows, which have the columns of real rows.

A dreamed step is trusted while two quantities are small: the held-out error after this number of
steps, and the disagreement of the model's heads compared with real rows. A dream is truncated at
the first untrusted step, so values bootstrap from the row before it.

Of the `batch` windows of an update, round(dream_share · batch) start at trusted dreamed rows and
the others are real. If there are fewer trusted rows than dreamed windows, the weights of the
dreamed windows sum to the number of trusted rows. If there is no trusted row, the update learns
from real windows alone.

The metric `dream/share` is w / (w + n), where w is the summed weight of the dreamed windows and n
is the number of real windows without an outlier.

Sources: `ArijusLengvenis/bipedal-walker-dreamer` (seed project 002, the code by another author from
which Dreamwalker started); SAC (Haarnoja et al. 2018); TQC (Kuznetsov et al. 2020); D2RL (Sinha et
al. 2020); ERE (Wang & Ross 2019); DroQ (Hiraoka et al. 2022); CrossQ (Bhatt et al. 2024); MBPO
(Janner et al. 2019).
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.captured import captured
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.distributions import TanhNormal
from dreamfleet.agents.blocks.dreams import (
    add_dreamed_windows,
    end_dreams,
    sample_windows,
    stack_steps,
    steps_to_dream,
    trusted_steps,
)
from dreamfleet.agents.blocks.importance import importance_weights, relative_probability
from dreamfleet.agents.blocks.normaliser import Normaliser
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.rows import FLAG, columns
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.agents.dreamwalker.config import PRIORITY_OFFSET, Config
from dreamfleet.agents.dreamwalker.network import (
    Actor,
    actor_loss,
    critic_loss,
    critics,
    optimism,
    temperature_loss,
    truncate,
)
from dreamfleet.agents.dreamwalker.world import WorldModel
from dreamfleet.core.types import (
    Array,
    Batch,
    Consumer,
    EnvSpec,
    Feedback,
    QueueSpec,
    Sample,
    State,
    TableSpec,
)

COLUMNS = ("obs", "action", "reward", "terminal")  # of windows for `learn_policy`


class CriticUpdate(NamedTuple):
    """Holds the loss of the critics on a batch of B windows, and intermediate results."""

    loss: Tensor  # ()
    abs_error: Tensor  # (B,), absolute TD errors
    obs: Tensor  # (B, O), normalised observations
    counts: Tensor  # (B,), 1 for windows that count, 0 for outliers, 0 to 1 for dreamed windows
    metrics: dict[str, Tensor]


class Dreamwalker(WeightGroups):
    """The Dreamwalker agent, for vector observations and continuous actions."""

    Config: TypeAlias = Config
    act_groups = ("policy",)

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        device = resolve_device(device)
        self.config, self.spec, self.device = config, spec, device
        self.tables = tables(config, spec)
        size, (actions,) = math.prod(spec.obs.shape), spec.action.shape
        self.target_entropy = -float(actions)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            self.actor = Actor(config, size, 2 * actions).to(device)
            self.critics = critics(config, size + actions).to(device)
            self.world = WorldModel(config, spec.obs, actions).to(device)
        self.normaliser = Normaliser(spec.obs).to(device)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self.slow_world = copy.deepcopy(self.world).requires_grad_(False)

        self.actor_optimizer = Optimizer(self.actor, config.lr_policy, config.max_grad_norm)
        self.critic_optimizer = Optimizer(self.critics, config.lr_critic, config.max_grad_norm)
        self.world_optimizer = Optimizer(self.world, config.lr_world, config.max_grad_norm)
        self.target_soft_update = SoftUpdate(self.target, self.critics)
        self.world_soft_update = SoftUpdate(self.slow_world, self.world)
        self.act_rng = make_rng(seed, device)
        self.dream_rng = make_rng(seed + 1, device)
        self.policy_rng = make_rng(seed + 2, device)
        acting = nn.ModuleDict({"actor": self.actor, "normaliser": self.normaliser})
        self.groups = {
            "world": GroupState(
                nets={"world": self.world, "slow_world": self.slow_world},
                optimizers={"world": self.world_optimizer},
                rngs={"dream": self.dream_rng},
                published="slow_world",
            ),
            "policy": GroupState(
                nets={"acting": acting, "critics": self.critics, "target": self.target},
                optimizers={"actor": self.actor_optimizer, "critics": self.critic_optimizer},
                rngs={"act": self.act_rng, "policy": self.policy_rng},
                published="acting",
            ),
        }

    @property
    def steps(self) -> Tensor:
        """Returns the number of agent steps since the first policy update, a scalar tensor."""
        return self.normaliser.updates / self.config.policy_updates_per_step

    @property
    def beta(self) -> Tensor:
        """Returns the exponent β of the importance weights, a scalar tensor: it rises to 1."""
        progress = (self.steps / self.config.anneal_steps).clamp(max=1)
        return self.config.beta + (1 - self.config.beta) * progress

    # --------------------------------------------------------------------------------- acting

    def initial_state(self, n: int) -> State:
        """Returns the state of acting before the first rows of `n` environments: all False, (n,).

        The state says whether the current episode of each environment is held out. The world model
        never learns from held-out episodes.
        """
        return np.zeros(n, bool)

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        obs = torch.as_tensor(rows["obs"], device=self.device)
        action, drawn = self.respond(obs, explore)
        held_out = state if drawn is None else np.where(rows["first"], to_array(drawn), state)
        return to_array(action), held_out, {"held_out": held_out}

    @captured
    @torch.no_grad()
    def respond(self, obs: Tensor, explore: bool) -> tuple[Tensor, Tensor | None]:
        """Returns actions (n, A); to explore, also whether new episodes shall be held out, (n,)."""
        policy = self.policy_at(obs, self.act_rng)
        if not explore:
            return policy.mode, None
        action = policy.sampled[0]
        uniform = action.new_empty(len(obs), 1 + action.shape[1]).uniform_(generator=self.act_rng)
        # Before the first update uniform actions explore more than the policy does.
        action = torch.where(self.normaliser.updates > 0, action, 2 * uniform[:, 1:] - 1)
        return action, uniform[:, 0] < self.config.held_out_share

    def policy_at(self, obs: Tensor, rng: torch.Generator) -> TanhNormal:
        """Returns the policy's distributions over actions at B observations `obs`, (B, *O).

        *O is the shape of one observation. rng: the generator that draws samples of the
        distributions.
        """
        return TanhNormal(self.actor(self.normaliser(obs)), rng)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        return Feedback(self.update_world(to_tensors(real.data, self.device)))

    @captured
    def update_world(self, rows: Batch) -> dict[str, Tensor]:
        """Takes one update of the world model on real windows (B, L, …); returns metrics."""
        self.world.update_statistics(rows)
        loss, metrics = self.world.loss(rows)
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        updates = self.world.normaliser.updates
        self.world_soft_update.step((1 / updates).clamp(min=self.config.slow_world))
        metrics |= self.world.update_held_out_error(self.slow_world, rows, self.dream_rng)
        metrics["model/trusted_steps"] = self.trusted_steps().sum()
        return metrics

    def trusted_steps(self) -> Tensor:
        """Returns 1 for each step of a dream at which the world model is accurate enough, else 0.

        The shape is (H,), for the steps 1 … H = `dream_horizon`. Step h is 1 if the model's error
        on held-out episodes after each of 1, 2, … h steps is at most `max_model_error`.
        """
        error = self.slow_world.expected_error(self.config.dream_horizon)
        return trusted_steps(error, self.config.max_model_error)

    # --------------------------------------------------------------------------------- dreams

    def dream(self, starts: Sample) -> Batch:
        return self.roll_out(to_tensors(starts.data, self.device))

    @captured
    @torch.no_grad()
    def roll_out(self, rows: Batch) -> Batch:
        """Rolls the policy out in the world model from real rows; returns B dreams of H steps.

        rows: columns of B windows of real rows; a dream starts at the last row of each window, and
        includes this row. The dreams are columns (B, H + 1, …), with H = `dream_horizon`. On a CPU,
        steps at which the world model's error on held-out episodes is too large are not computed:
        the last computed row is repeated. The columns are those of real rows, and

        - `weight`: 1 if the step after the row is trusted, else 0. Policy and critics learn at rows
          of weight 1 only.
        - `version`: how many updates the world model had taken when it made the dream.
        """
        world, rng, horizon = self.slow_world, self.dream_rng, self.config.dream_horizon
        allowed = self.trusted_steps() * (self.steps >= self.config.dream_after)
        obs, reward, first = rows["obs"][:, -1].float(), rows["reward"], rows["first"]
        past = None
        if self.config.context:
            x = world.normaliser(rows["obs"][:, :-1])
            tokens = world.tokens(x, rows["action"][:, :-1], reward[:, :-1], first[:, :-1])
            _, past = world.transformer(tokens)
        reward, first = reward[:, -1], first[:, -1]
        observations, actions, rewards, terminals, disagreements = [obs], [], [reward], [], []
        for _ in range(steps_to_dream(allowed)):
            action = self.policy_at(obs, rng).sampled[0]
            x = world.normaliser(obs)
            token = world.tokens(x[:, None], action[:, None], reward[:, None], first[:, None])
            embedding, past = world.transformer(token, past)
            step = world.dream_step(embedding[:, -1], obs, rng)
            obs, reward, first = step.obs, step.reward, torch.zeros_like(first)
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
            terminals.append(step.terminal)
            disagreements.append(step.disagreement)

        return {
            "obs": stack_steps(observations, horizon + 1),
            "action": F.pad(stack_steps(actions, horizon), (0, 0, 0, 1)),
            "reward": stack_steps(rewards, horizon + 1),
            **end_dreams(
                stack_steps(terminals, horizon),
                stack_steps(disagreements, horizon),
                self.config.max_disagreement * world.mean_disagreement,
                allowed,
                0,
            ),
            "version": world.normaliser.updates.expand(len(obs), horizon + 1).clone(),
        }

    @torch.no_grad()
    def predict(self, window: Batch, context: int) -> Batch:
        """Predicts the rows after row `context - 1` of B real windows open-loop, by their actions.

        The transformer reads as many rows before a row as in a dream, and never more than it has
        positions for.
        """
        world, begin = self.slow_world, max(0, context - 1 - self.config.context)
        keys = ("obs", "reward", "first")
        known = [torch.as_tensor(window[key], device=self.device)[:, begin:context] for key in keys]
        obs, reward, first = known[0].float(), known[1], known[2]
        action = torch.as_tensor(window["action"], device=self.device)[:, begin:]
        steps = []
        for t in range(obs.shape[1], action.shape[1]):
            tokens = world.tokens(world.normaliser(obs), action[:, :t], reward, first)
            embedding, _ = world.transformer(tokens[:, -len(world.transformer.position) :])
            steps.append(world.dream_step(embedding[:, -1], obs[:, -1], rng=None))
            obs = torch.cat([obs, steps[-1].obs.unsqueeze(1)], 1)
            reward = torch.cat([reward, steps[-1].reward.unsqueeze(1)], 1)
            first = F.pad(first, (0, 1))
        terminal = torch.stack([step.terminal_prob for step in steps], 1)
        columns = {"obs": obs[:, -len(steps) :], "reward": reward[:, -len(steps) :]}
        return {key: to_array(value) for key, value in (columns | {"terminal": terminal}).items()}

    # -------------------------------------------------------------------------------- policy

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        assert real is not None
        further = {"relative_prob": relative_probability(real)}
        rows = to_tensors(real.data | further, self.device)
        dreamed = None if dreams is None else to_tensors(dreams, self.device)
        metrics, priority = self.update_policy(rows, dreamed)
        if not self.config.prioritized:
            return Feedback(metrics)
        return Feedback(metrics, {"priority": priority})

    @captured
    def update_policy(self, rows: Batch, dreams: Batch | None) -> tuple[dict[str, Tensor], Tensor]:
        """Takes one update of policy and critics; returns metrics and new priorities (R,).

        rows: columns of R windows of real rows, with `relative_prob` of `critic_update_loss` as a
        further column. dreams: columns of dreams.
        """
        config, metrics, dreamed = self.config, {}, None
        relative_prob = rows["relative_prob"]
        if dreams is not None:
            dreamed = sample_windows(dreams, COLUMNS, config.dreamed_windows, 0, 1, self.policy_rng)
            # Updates of the world model since the dreams were made, as far as they are known here.
            age = self.slow_world.normaliser.updates - dreams["version"].mean()
            metrics["dream/age"] = age.clamp(min=0)
        windows = len(relative_prob) + config.dreamed_windows * (dreamed is not None)
        shape = (2, windows, self.spec.action.shape[0])
        noise = torch.randn(shape, generator=self.policy_rng, device=self.device)

        critics = self.critic_update_loss(rows, relative_prob, dreamed, noise[0])
        metrics["grad_norm/critic"] = self.critic_optimizer.step(critics.loss)
        actor_loss, actor_metrics = self.actor_update_loss(critics.obs, critics.counts, noise[1])
        metrics |= critics.metrics | actor_metrics
        metrics["grad_norm/policy"] = self.actor_optimizer.step(actor_loss)
        metrics |= skipped_step_metrics("policy", self.critic_optimizer, self.actor_optimizer)
        if config.norm != "batch":
            self.target_soft_update.step(config.slow_critic)
        real_error = (critics.abs_error * critics.counts)[: len(relative_prob)]
        return metrics, real_error + PRIORITY_OFFSET

    def critic_update_loss(
        self,
        real: Batch,
        relative_prob: Tensor,
        dreamed: tuple[Batch, Tensor] | None,
        noise: Tensor,
    ) -> CriticUpdate:
        """Returns the loss of the critics on real and dreamed windows, with intermediate results.

        Also updates the running statistics of observations and rewards.

        - real: R windows of real rows.
        - relative_prob (R,): the sampling probability of each real window, divided by that of
          uniform sampling.
        - dreamed: D windows of dreams and their weights (D,); None if there are no dreams.
        - noise (R + D, A): standard normal numbers from which the next actions are sampled.
        """
        config, metrics = self.config, {}
        self.normaliser.update(real["obs"], real["reward"])
        weight = self.importance_weights(relative_prob)
        rows = {key: real[key] for key in COLUMNS}
        rows["reward"] = self.normaliser.clip_outliers(rows["reward"])
        inliers = self.normaliser.inliers(rows["obs"])
        metrics["data/outliers"] = 1 - inliers.mean()
        valid = inliers.amin(1)  # a window with an outlier counts 0
        rows, weight, counts = add_dreamed_windows(rows, weight * valid, valid, dreamed)
        obs, next_obs = self.normaliser(rows["obs"]).unbind(1)  # (B, O) each
        taken = torch.cat([obs, rows["action"][:, 0]], -1)
        reward = config.reward_scale * rows["reward"][:, 1]
        discount = config.gamma * ~rows["terminal"][:, 1]
        quantiles, target = self.quantiles_and_targets(taken, next_obs, reward, discount, noise)
        loss, value = critic_loss(quantiles, target, weight, counts), quantiles.detach()
        error = target.mean(-1) - value.mean((0, 2))
        abs_error = error.abs()
        if dreamed is not None:
            real_error, dreamed_error = error.tensor_split([len(relative_prob)])
            dreamed_counts = counts[len(relative_prob) :]
            metrics["dream/share"] = dreamed_counts.sum() / counts.sum()
            excess = optimism(real_error, dreamed_error, dreamed_counts)
            metrics["dream/optimism"] = excess / config.reward_scale
        metrics |= {
            "loss/critic": loss.detach(),
            "value/mean": value.mean() / config.reward_scale,
            "value/td_error": abs_error.mean() / config.reward_scale,
        }
        return CriticUpdate(loss, abs_error, obs, counts, metrics)

    def quantiles_and_targets(
        self, taken: Tensor, next_obs: Tensor, reward: Tensor, discount: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the critics' quantiles for the actions taken, and their targets.

        The quantiles are (K, B, Z), for K critics and B transitions. The targets are (B, Z'), Z'
        targets per transition.

        - taken (B, O + A): normalised observations, then the actions taken.
        - next_obs (B, O): normalised next observations.
        - discount (B,): the factor of the next value (γ, or 0 after a termination).
        - noise (B, A): standard normal numbers from which the next actions are sampled.
        """
        with torch.no_grad():
            action, log_prob = TanhNormal(self.actor(next_obs), noise=noise).sampled
            following = torch.cat([next_obs, action], -1)
            entropy_bonus = -self.actor.log_temperature.exp() * log_prob
        if self.config.norm == "batch":
            both = self.critics(torch.cat([taken, following]), rng=self.dropout_rng)
            quantiles, next_quantiles = both.chunk(2, 1)
        else:
            quantiles = self.critics(taken, rng=self.dropout_rng)
            next_quantiles = self.target(following, rng=self.dropout_rng)
        truncated = truncate(next_quantiles, self.config.dropped_quantiles)
        soft = truncated + entropy_bonus.unsqueeze(-1)
        return quantiles, reward.unsqueeze(-1) + discount.unsqueeze(-1) * soft

    def actor_update_loss(
        self, obs: Tensor, counts: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the summed loss of the policy and of its temperature, as a scalar, and metrics.

        - obs (B, O): normalised observations.
        - counts (B,): the weight of each observation in the mean loss.
        - noise (B, A): standard normal numbers from which the actions are sampled.

        No gradient reaches the critics.
        """
        action, log_prob = TanhNormal(self.actor(obs), noise=noise).sampled
        inputs = torch.cat([obs, action], -1)
        value = self.critics(inputs, frozen=True, mean=True, rng=self.dropout_rng)
        log_temperature = self.actor.log_temperature
        temperature = log_temperature.detach().exp()
        policy_losses = actor_loss(value.mean((0, 2)), log_prob, temperature)
        temperature_losses = temperature_loss(log_temperature, log_prob, self.target_entropy)
        weight = counts / counts.sum()
        policy_loss = weight @ policy_losses
        metrics = {
            "loss/policy": policy_loss.detach(),
            "policy/entropy": -(weight @ log_prob).detach(),
            "policy/temperature": temperature,
        }
        return policy_loss + weight @ temperature_losses, metrics

    @property
    def dropout_rng(self) -> torch.Generator | None:
        """Returns the generator that draws the critics' dropout masks, or None without dropout."""
        return self.policy_rng if self.config.dropout else None

    def importance_weights(self, relative_prob: Tensor) -> Tensor:
        """Returns the importance weights of R real windows, divided by the largest of them.

        relative_prob (R,): sampling probabilities divided by the uniform probability. Without
        prioritized sampling all weights are 1.
        """
        return importance_weights(relative_prob, self.beta if self.config.prioritized else 0.0)


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Returns the tables of the replay that Dreamwalker needs: real rows, and a queue of dreams.

    The table of real rows has a batch size, a window length and a sampling rate for each of its
    uses. Without dreams the only use is learning the policy.
    """
    stored = columns(spec, held_out=FLAG)
    consumers = {
        "policy": Consumer(
            config.batch - config.dreamed_windows,
            2,
            config.selector,
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            columns=COLUMNS,
        )
    }
    if config.dreamed_windows:
        consumers["world"] = Consumer(
            config.world_batch,
            config.dream_horizon + 1,
            samples_per_step=config.world_updates_per_step,
            context=config.context,
            columns=(*COLUMNS, "first", "last", "held_out"),
        )
        consumers["start"] = Consumer(
            config.dreams_per_update * config.dream_every,
            min_steps=config.warmup,
            context=config.context,
            columns=("obs", "action", "reward", "first"),
        )
    real = TableSpec(config.capacity, stored, consumers)
    if not config.dreamed_windows:
        return {"real": real}
    return {"real": real, "dream": QueueSpec(1, config.dream_every)}
