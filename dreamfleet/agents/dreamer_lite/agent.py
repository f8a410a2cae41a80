"""Dreamer-Lite: a latent world model, and a policy and a critic that learn in its dreams.

The world model learns from windows of real rows (`learn_world`). At row t, o is the observation, a
the action and z the latent:

    encoder      z_t      = f(o_t)                        scaled to mean 0 and variance 1
    transition   z_{t+1} ~ N(mean_m(z_t, a_t), std_m)     an ensemble, m = 1 … M
    heads        reward(z_t, a_t), continue(z_{t+1}), decoder(z_t)
    re-encoding  z_t     <- f(decoder(z_t))               after each dreamed transition

Latents cannot collapse to a constant: their variance is 1 by construction, and the decoder must
recover the observation, also from latents predicted several steps ahead.

Dreamed latents are decoded and encoded again (re-encoding), because policy and critic learn on
latents of observations. Without re-encoding, dreamed latents drift away from them, and values sink
step by step.

Acting, dreams and policy updates use a slow copy (moving average) of the world model: its dreams
are several times as accurate, and its latents change slowly.

A dream (`dream`) is a rollout of H steps from a real row, by one ensemble member. A dreamed step is
trusted while the disagreement of two members is not much larger than on real rows. Nothing is
learned from the first untrusted step on; returns bootstrap at the row before this step.

Policy and critic (`learn_policy`) learn from dreams and from windows of real rows in one batch. The
critic learns Retrace(λ) returns. In dreams of the current policy these are the λ-returns of
Dreamer. On real rows Retrace corrects for actions of older policies. A discrete policy is fitted to
the softmax of the critic's values. A continuous policy maximises the values of reparameterised
samples. No gradient passes through a dream, so another process can make it.

Sources: `50_final_project` of ChristianLin0420/machine-learning-fundamental (seed project 003, the
code by another author from which Dreamer-Lite started); Dreamer (Hafner et al. 2020; 2023); MBPO
(Janner et al. 2019); Retrace (Munos et al. 2016); clipped double Q (Fujimoto et al. 2018).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.agents.blocks.actions import action_kind
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.captured import captured
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.distributions import Policy
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP, by_turns
from dreamfleet.agents.blocks.normaliser import ReturnRange
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.returns import retrace
from dreamfleet.agents.blocks.rows import NUMBER, columns
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.agents.dreamer_lite.world import LatentWorldModel, continue_loss
from dreamfleet.core.config import check_ranges, within
from dreamfleet.core.errors import UserError
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


@dataclass(frozen=True)
class Config:
    """The settings of Dreamer-Lite. Brackets in a comment name the source of a default."""

    latent: int = within(32, 4, 16_384)  # size of a latent state [seed project 003]
    hidden: int = within(128, 4, 16_384)  # units in every hidden layer [seed project 003]
    members: int = within(5, 1)  # transition networks in the ensemble [MBPO: 7]
    lr_world: float = within(1e-3, 0)  # learning rate of the world model
    lr_policy: float = within(3e-4, 0)  # learning rate of the policy [seed project 003]
    lr_critic: float = within(1e-3, 0)  # learning rate of the critic
    # Gradients of a larger norm are scaled down to this norm.
    max_grad_norm: float = within(10.0, 1e-6)
    # Update rate τ of the slow copy of the world model.
    slow_world: float = within(0.01, 0, 1)
    # Windows per world-model update, split evenly among the members.
    world_batch: int = within(120, 1)
    # Rows per window for the world model, which predicts all but the first open-loop.
    world_window: int = within(5, 2, 1_000)
    world_updates_per_step: float = within(1.0, 1e-3)  # world-model updates per agent step
    dream_horizon: int = within(15, 1, 1_000)  # steps in a dream [seed project 003]
    # A dream is trusted while its members disagree less than this many times their mean
    # disagreement on real rows.
    max_disagreement: float = within(3.0, 0)
    # Discount factor γ. At 0.99 (seed project 003) slow drift in CartPole goes unpunished.
    # [DreamerV3]
    gamma: float = within(0.997, 0, 1)
    lam: float = within(0.95, 0, 1)  # λ of the λ-returns [Dreamer]
    # Trajectories per policy update, both dreams and windows of real rows.
    batch: int = within(80, 1)
    # Fraction of the batch that is dreamed; 0: no dreams. See docs/adr/0006. [MBPO: 0.75 to 0.95]
    dream_share: float = within(0.5, 0, 1)
    # Updates of policy and critic per agent step.
    policy_updates_per_step: float = within(1.0, 1e-3)
    warmup: int = within(250, 0)  # agent steps before the first policy update
    # Weight of the entropy bonus, in units of the return range. [DreamerV3: 3e-4]
    entropy_weight: float = within(3e-3, 0)
    slow_critic: float = within(0.02, 0, 1)  # update rate τ of the slow critic [DreamerV3]
    # Update rate of the moving average of the return range. [DreamerV3]
    return_range_rate: float = within(0.01, 0, 1)
    capacity: int = 100_000  # real rows that the replay holds [seed project 003]

    def __post_init__(self) -> None:
        check_ranges(self, "agent.")
        if self.world_batch % self.members:
            raise UserError(
                f"agent.world_batch must be a multiple of agent.members ({self.members}); "
                f"found {self.world_batch}."
            )

    @property
    def dreams_per_update(self) -> int:
        """Returns the number of dreams per policy update, a multiple of the ensemble's size."""
        return round(self.batch * self.dream_share) // self.members * self.members

    @property
    def windows_per_update(self) -> int:
        """Returns the number of windows of real rows per policy update."""
        return self.batch - self.dreams_per_update


class DreamerLite(WeightGroups):
    """The Dreamer-Lite agent, for vector observations and discrete or continuous actions."""

    Config: TypeAlias = Config
    act_groups = ("world", "policy")

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        device = resolve_device(device)
        self.config, self.spec, self.device = config, spec, device
        self.tables = tables(config, spec)
        self.actions = action_kind(spec.action)
        sizes = (config.latent, config.hidden, config.hidden, self.actions.policy_outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            self.world = LatentWorldModel(
                spec.obs,
                self.actions.size,
                latent=config.latent,
                hidden=config.hidden,
                members=config.members,
            ).to(device)
            self.policy = MLP(sizes, zero_last=True).to(device)
            self.critic = self.actions.critic(config.latent, config.hidden).to(device)
        self.slow_world = copy.deepcopy(self.world).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_range = ReturnRange(config.return_range_rate).to(device)

        self.world_optimizer = Optimizer(self.world, config.lr_world, config.max_grad_norm)
        self.policy_optimizer = Optimizer(self.policy, config.lr_policy, config.max_grad_norm)
        self.critic_optimizer = Optimizer(self.critic, config.lr_critic, config.max_grad_norm)
        self.world_soft_update = SoftUpdate(self.slow_world, self.world)
        self.critic_soft_update = SoftUpdate(self.slow_critic, self.critic)
        self.act_rng = make_rng(seed, device)
        self.dream_rng = make_rng(seed + 1, device)
        self.policy_rng = make_rng(seed + 2, device)
        self.groups = {
            "world": GroupState(
                nets={"world": self.world, "slow_world": self.slow_world},
                optimizers={"world": self.world_optimizer},
                rngs={"dream": self.dream_rng},
                published="slow_world",
            ),
            "policy": GroupState(
                nets={
                    "policy": self.policy,
                    "critic": self.critic,
                    "slow_critic": self.slow_critic,
                    "return_range": self.return_range,
                },
                optimizers={"policy": self.policy_optimizer, "critic": self.critic_optimizer},
                rngs={"act": self.act_rng, "policy": self.policy_rng},
                published="policy",
            ),
        }

    # --------------------------------------------------------------------------------- acting

    def initial_state(self, n: int) -> State:
        return None

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        obs = torch.as_tensor(rows["obs"], device=self.device)
        action, log_prob = self.respond(obs, explore)
        stored = {} if log_prob is None else {"log_prob": to_array(log_prob)}
        return to_array(action), state, stored

    @captured
    @torch.no_grad()
    def respond(self, obs: Tensor, explore: bool) -> tuple[Tensor, Tensor | None]:
        """Returns actions at observations (n, *O), and to explore also their log-probabilities.

        To explore, the actions are sampled; otherwise they are the most probable ones.
        """
        policy = self.policy_at(self.slow_world.encode(obs), self.act_rng)
        return policy.sampled if explore else (policy.mode, None)

    def policy_at(self, z: Tensor, rng: torch.Generator) -> Policy:
        """Returns the policy's distributions at latents `z`; `rng` draws the sampled actions."""
        return self.actions.policy(self.policy(z), rng)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        return Feedback(self.update_world(to_tensors(real.data, self.device)))

    @captured
    def update_world(self, rows: Batch) -> dict[str, Tensor]:
        """Takes one update of the world model on real windows (B, T, …); returns metrics."""
        self.world.normaliser.update(rows["obs"], rows["reward"])
        loss, metrics = self.world_loss(rows)
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        metrics["data/outliers"] = 1 - self.world.normaliser.inliers(rows["obs"]).mean()
        self.world_soft_update.step(self.averaging_rate(self.config.slow_world))
        metrics["model/disagreement"] = self.update_disagreement(rows)
        return metrics

    def world_loss(self, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of the world model on real windows (B, T, …), a scalar, and metrics.

        The windows are split evenly among the ensemble members. Each member encodes the first row
        of its windows and predicts the other rows from its own predictions.
        """
        world = self.world
        x = world.normaliser(rows["obs"])
        z = world.encode_normalised(x)  # (B, T, L)
        inlier = world.normaliser.inliers(rows["obs"])
        # A prediction counts if no earlier row of the window ends the episode, and if neither the
        # first observation nor the predicted one has an outlier.
        inside = (~rows["last"]).float().cumprod(1)[:, :-1]
        counts = inside * inlier[:, :1] * inlier[:, 1:]  # (B, T-1)

        action = self.by_member(self.actions.encode(rows["action"]))
        predicted, means, log_stds = [self.by_member(z)[:, :, 0]], [], []
        for t in range(z.shape[1] - 1):
            mean, log_std = world.predict(predicted[-1], action[:, :, t])
            predicted.append(mean)
            means.append(mean)
            log_stds.append(log_std)
        before = torch.stack(predicted[:-1], 2).flatten(0, 1)  # (B, T-1, L)
        after = torch.stack(means, 2).flatten(0, 1)

        error = (after - z[:, 1:].detach()).square().mean(-1)  # (B, T-1)
        # The standard deviation is fitted to the error of one step. The mean gets no gradient.
        variance = (2 * log_stds[0].flatten(0, 1)).exp()
        squared_error = (means[0].flatten(0, 1) - z[:, 1]).detach().square()
        gaussian_nll = (0.5 * squared_error / variance + 0.5 * variance.log()).mean(-1)
        decoded = (world.decoder(after) - x[:, 1:]).square().mean(-1)  # (B, T-1)
        reward = world.reward(torch.cat([before, action.flatten(0, 1)[:, :-1]], -1)).squeeze(-1)
        real_reward = world.normaliser.clip_outliers(rows["reward"]) / world.normaliser.reward_rms
        reward_error = (reward - real_reward[:, 1:]).square()
        continues = (~rows["terminal"]).float()
        terms = {
            "loss/transition": masked_mean(error, counts),
            "loss/transition_std": 0.1 * masked_mean(gaussian_nll, inlier[:, 0] * inlier[:, 1]),
            "loss/reconstruction": masked_mean((world.decoder(z) - x).square().mean(-1), inlier),
            "loss/prediction": masked_mean(decoded, counts),
            "loss/reward": masked_mean(reward_error, counts),
            "loss/continue": masked_mean(continue_loss(world.cont(z), continues), inlier)
            + masked_mean(continue_loss(world.cont(after), continues[:, 1:]), counts),
        }
        horizon = decoded.shape[1]
        errors = {
            f"model/error_{t + 1}": masked_mean(decoded[:, t], counts[:, t]).sqrt()
            for t in sorted({0, horizon - 1})  # RMS in standard deviations of the observation
        }
        loss = torch.stack(list(terms.values())).sum()
        return loss, {name: term.detach() for name, term in (terms | errors).items()}

    def by_member(self, value: Tensor) -> Tensor:
        """Splits a batch of B entries evenly among M ensemble members: (B, …) to (M, B/M, …)."""
        return value.unflatten(0, (self.config.members, -1))

    def averaging_rate(self, least: float) -> Tensor:
        """Returns the rate of a moving average: 1 / (world-model updates), but at least `least`."""
        return (1 / self.world.normaliser.updates).clamp(min=least)

    @torch.no_grad()
    def update_disagreement(self, rows: Batch) -> Tensor:
        """Updates the running mean disagreement of ensemble members on real rows; returns it."""
        z = self.by_member(self.slow_world.encode(rows["obs"][:, 0]))
        action = self.by_member(self.actions.encode(rows["action"][:, 0]))
        disagreement = self.slow_world.predict_with_disagreement(z, action)[2].mean()
        rate = self.averaging_rate(0.01)
        return self.world.real_disagreement.lerp_(disagreement, rate).clone()

    # --------------------------------------------------------------------------------- dreams

    def dream(self, starts: Sample) -> Batch:
        return self.roll_out(to_tensors(starts.data, self.device)["obs"][:, -1])

    @captured
    @torch.no_grad()
    def roll_out(self, obs: Tensor) -> Batch:
        """Rolls the policy out from B observations `obs`; returns dreams of H steps (B, H+1, …).

        The columns are `latent`, `action`, `log_prob`, `reward`, `cont` (the probability that the
        episode continues at the row) and `trusted`. `trusted` is 1 up to the first untrusted step,
        then 0.
        """
        world, rng = self.slow_world, self.dream_rng
        z = self.by_member(world.encode(obs))  # (M, B/M, L)
        latents, actions, log_probs, disagreements = [], [], [], [torch.zeros_like(z[..., 0])]
        for step in range(self.config.dream_horizon + 1):
            action, log_prob = self.policy_at(z, rng).sampled
            latents.append(z)
            actions.append(action)
            log_probs.append(log_prob)
            if step < self.config.dream_horizon:
                mean, log_std, disagreement = world.predict_with_disagreement(
                    z, self.actions.encode(action)
                )
                disagreements.append(disagreement)
                noise = torch.randn(mean.shape, generator=rng, device=z.device)
                z = world.reencode(mean + log_std.exp() * noise)

        def trajectories(steps: list[Tensor]) -> Tensor:
            return torch.stack(steps, 2).flatten(0, 1)  # (M, B/M, …) each → (B, H+1, …)

        latent, action = trajectories(latents), trajectories(actions)
        bound = self.config.max_disagreement * world.real_disagreement
        agreed = trajectories(disagreements) <= bound
        reward = world.reward(torch.cat([latent, self.actions.encode(action)], -1)).squeeze(-1)
        cont = torch.sigmoid(world.cont(latent)).squeeze(-1)
        cont[:, 0] = 1  # no start ends an episode
        return {
            "latent": latent,
            "action": action,
            "log_prob": trajectories(log_probs),
            "reward": F.pad(reward[:, :-1] * world.normaliser.reward_rms, (1, 0)),
            "cont": cont,
            "trusted": agreed.float().cumprod(1),
        }

    @torch.no_grad()
    def predict(self, window: Batch, context: int) -> Batch:
        """Predicts the rows after row `context - 1` of B real windows open-loop, by their actions.

        Window b is predicted by ensemble member b modulo the number of members.
        """
        world = self.slow_world
        order, back = by_turns(len(window["obs"]), self.config.members)
        rows = {key: torch.as_tensor(window[key])[order] for key in ("obs", "action")}
        taken = self.actions.encode(rows["action"].to(self.device))
        z = world.encode(rows["obs"][:, context - 1].to(self.device))
        steps = []
        for action in taken[:, context - 1 : -1].unbind(1):
            reward = world.reward(torch.cat([z, action], -1)).squeeze(-1)
            mean, _ = world.predict(self.by_member(z), self.by_member(action))
            x = world.decoder(mean.flatten(0, 1))
            z = world.encode_normalised(x)
            steps.append((x, reward, torch.sigmoid(-world.cont(z)).squeeze(-1)))
        x, reward, terminal = (torch.stack(column, 1)[back] for column in zip(*steps, strict=True))
        obs = world.normaliser.denormalise(x).unflatten(-1, self.spec.obs.shape)
        predicted = {"obs": obs, "reward": reward * world.normaliser.reward_rms}
        return {key: to_array(value) for key, value in (predicted | {"terminal": terminal}).items()}

    # -------------------------------------------------------------------- policy and critic

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        rows = None if real is None else to_tensors(real.data, self.device)
        dreamed = None if dreams is None else to_tensors(dreams, self.device)
        return Feedback(self.update_policy(rows, dreamed))

    @captured
    def update_policy(self, real: Batch | None, dreams: Batch | None) -> dict[str, Tensor]:
        """Takes one update of policy and critic on real windows and dreams; returns metrics."""
        parts = []
        if dreams is not None:
            parts.append(self.dreamed_trajectories(dreams))
        if real is not None:
            parts.append(self.real_trajectories(real))
        rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        policy = self.policy_at(rows["latent"], self.policy_rng)
        q_taken, q_candidates = self.critic(rows["latent"], rows["action"], policy)
        with torch.no_grad():
            targets = self.critic_targets(rows, policy)
            weight = rows["weight"][:, :-1]
            return_range = self.return_range.update(targets, weight)
            dreamed_weight = weight[: 0 if dreams is None else len(dreams["latent"])].sum()

        critic_loss = masked_mean((q_taken[:, :, :-1] - targets).square().sum(0), weight)
        policy_loss = policy.policy_loss(q_candidates / return_range, self.config.entropy_weight)
        policy_loss = masked_mean(policy_loss[:, :-1], weight)
        metrics = {
            "loss/critic": critic_loss.detach(),
            "loss/policy": policy_loss.detach(),
            "grad_norm/critic": self.critic_optimizer.step(critic_loss),
            "grad_norm/policy": self.policy_optimizer.step(policy_loss),
            "policy/entropy": masked_mean(policy.entropy().detach()[:, :-1], weight),
            "value/mean": targets.mean() * self.value_unit,
            "value/range": return_range * self.value_unit,
            "dream/share": dreamed_weight / weight.sum().clamp(min=1e-6),
            "dream/trusted": rows["trusted"].mean(),
        }
        metrics |= skipped_step_metrics("policy", self.critic_optimizer, self.policy_optimizer)
        self.critic_soft_update.step(self.config.slow_critic)
        return metrics

    def dreamed_trajectories(self, dreams: Batch) -> Batch:
        """Returns dreams (B, H+1, …) with the columns `weight` and `inside` for `learn_policy`.

        `weight` is 0 on the row before the first untrusted step and on all later rows; on earlier
        rows it is the probability that the episode reaches the row. `inside` is 1 on all rows.
        """
        reached = dreams["cont"].cumprod(1)
        next_trusted = F.pad(dreams["trusted"][:, 1:], (0, 1))
        return {**dreams, "weight": reached * next_trusted, "inside": torch.ones_like(reached)}

    @torch.no_grad()
    def real_trajectories(self, rows: Batch) -> Batch:
        """Returns windows of real rows (B, T, …) with the columns of dreams, for `learn_policy`.

        `inside` is 0 on the last row of an episode, else 1. `weight` is 0 on the last row of an
        episode, and where the observation of this or the next row has an outlier; else it is 1.
        """
        inside = (~rows["last"]).float()
        inlier = self.slow_world.normaliser.inliers(rows["obs"])
        return {
            "latent": self.slow_world.encode(rows["obs"]),
            "action": rows["action"],
            "log_prob": rows["log_prob"],
            "reward": self.slow_world.normaliser.clip_outliers(rows["reward"]),
            "cont": (~rows["terminal"]).float(),
            "trusted": inlier,
            "weight": inside * inlier * F.pad(inlier[:, 1:], (0, 1)),
            "inside": inside,
        }

    def critic_targets(self, rows: Batch, policy: Policy) -> Tensor:
        """Returns the critic's targets (B, T-1): Retrace returns in units of `value_unit`.

        rows: B trajectories of T rows, by column. policy: distributions of actions at these rows. A
        return ends at an episode's last row, or before an untrusted dreamed step.
        """
        q_taken, q_candidates = self.slow_critic(rows["latent"], rows["action"], policy)
        ratio = (policy.log_prob(rows["action"]) - rows["log_prob"]).exp().clamp(max=1)
        next_trusted = F.pad(rows["trusted"][:, 1:], (0, 1))
        return retrace(
            reward=rows["reward"] / self.value_unit,
            discount=self.config.gamma * rows["cont"],
            value=policy.mean_value(q_candidates),
            q_taken=q_taken.min(0).values,
            trace_coefficient=self.config.lam * ratio * rows["inside"] * next_trusted,
        )

    @property
    def value_unit(self) -> Tensor:
        """Returns the value unit: the return if each reward were the root mean square reward."""
        return self.slow_world.normaliser.reward_rms / (1 - self.config.gamma)


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Returns the tables of the replay for Dreamer-Lite: real rows, and a queue of dreams."""
    kept = columns(spec, log_prob=NUMBER)  # log_prob: of the action, under the acting policy
    consumers = {
        "world": Consumer(
            config.world_batch, config.world_window, samples_per_step=config.world_updates_per_step
        )
    }
    policy = Consumer(
        config.windows_per_update,
        config.dream_horizon + 1,
        samples_per_step=config.policy_updates_per_step,
        min_steps=config.warmup,
    )
    if config.dreams_per_update:
        consumers["start"] = replace(policy, batch=config.dreams_per_update, window=1)
    if config.windows_per_update:
        consumers["policy"] = policy
    real = TableSpec(config.capacity, kept, consumers)
    return {"real": real, "dream": QueueSpec(2)} if config.dreams_per_update else {"real": real}
