"""Dreamwalker: soft actor-critic with truncated quantile critics, recent rows, and dreams.

Policy and values (`learn_policy`), from one batch of windows of two rows:

    actor     π(·|o)                     a Gaussian squashed by tanh
    critics   θ_k(o, a), k = 1 … K       Z quantiles of the return each; all layers read (o, a)
    target    r + γ (1 - terminal) (z - α log π(a'|o')),  a' ~ π(·|o')
              z: quantiles of all target critics at (o', a') but the K · `drop` largest
    α         keeps the entropy at -dim(a)

Truncation bootstraps, as only `terminal` stops a return. Rows are drawn uniformly from the newest,
of which fewer and fewer count within a cycle; by error too, where that is asked for.

World model (`learn_world`): a transformer reads the last rows and says how the next one differs,
what it pays and whether it ends (`world.py`). Episodes held out from it tell how far it is off.

Dreams (`dream`) are rows as the replay has them, made by the model and the policy from real rows.
A dream is believed as far as the held-out error at that horizon is small, and as the model's heads
disagree no more than they do on real rows; there it is truncated. It says which version of the
model it is of. Of `batch` windows an update a `share` starts at believed dreamed rows; where those
are fewer each counts once, and where nothing is believed the update learns from real rows alone.

Sources: seed project 002; SAC (Haarnoja et al. 2018); TQC (Kuznetsov et al. 2020); D2RL (Sinha et
al. 2020); ERE (Wang & Ross 2019); DroQ (Hiraoka et al. 2022); CrossQ (Bhatt et al. 2024); MBPO
(Janner et al. 2019).
"""

from __future__ import annotations

import copy
import math
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.distributions import TanhNormal
from dreamfleet.agents.blocks.dreams import sample_windows
from dreamfleet.agents.blocks.normaliser import Normaliser
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.rows import FLAG, columns
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.agents.dreamwalker.config import PRIORITY, Config
from dreamfleet.agents.dreamwalker.network import (
    Actor,
    actor_loss,
    critic_loss,
    critics,
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

COLUMNS = ("obs", "action", "reward", "terminal")  # of a window to learn values from


class Dreamwalker(WeightGroups):
    """See the module. Built from vector observations and continuous actions."""

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
        """Agent steps since the first update."""
        return self.normaliser.updates / self.config.policy_updates_per_step

    # --------------------------------------------------------------------------------- acting

    def initial_state(self, n: int) -> State:
        """Whether each episode is kept from the world model."""
        return np.zeros(n, bool)

    @torch.no_grad()
    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        policy = self.policy_at(torch.as_tensor(rows["obs"], device=self.device), self.act_rng)
        if not explore:
            return to_array(policy.mode), state, {"held_out": state}
        action = policy.sampled[0]
        drawn = torch.rand(
            len(action), 1 + action.shape[1], generator=self.act_rng, device=self.device
        )
        # What nobody has trained yet explores less than chance does.
        action = torch.where(self.normaliser.updates > 0, action, 2 * drawn[:, 1:] - 1)
        chosen = to_array(drawn[:, 0] < self.config.held_out_share)
        held_out = np.where(rows["first"], chosen, state)
        return to_array(action), held_out, {"held_out": held_out}

    def policy_at(self, obs: Tensor, noise: torch.Generator) -> TanhNormal:
        return TanhNormal(self.actor(self.normaliser(obs)), noise)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        rows = to_tensors(real.data, self.device)
        self.world.update_statistics(rows)
        loss, metrics = self.world.loss(rows, rows["action"])
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        updates = self.world.normaliser.updates
        self.world_soft_update.step((1 / updates).clamp(min=self.config.slow_world))
        metrics |= self.world.update_held_out_error(
            self.slow_world, rows, rows["action"], self.dream_rng
        )
        metrics["model/believed"] = self.trusted_steps().sum()
        return Feedback(metrics)

    def trusted_steps(self) -> Tensor:
        """Whether dreams of 1 … `dream_horizon` steps are (H,): their held-out error is small."""
        error = self.slow_world.expected_error(self.config.dream_horizon)
        return (error <= self.config.max_model_error).cumprod(0)

    # --------------------------------------------------------------------------------- dreams

    @torch.no_grad()
    def dream(self, starts: Sample) -> Batch:
        """Rows (B, H + 1, …): `obs`, `action`, `reward`, `last`, `terminal`, `weight`, `version`.

        `weight` is 1 on rows an action was taken on that are worth learning from. `version` is the
        number of updates the model had. H is as far as the held-out error lets dreams go, 1 at the
        least.
        """
        world, noise = self.slow_world, self.dream_rng
        allowed = self.trusted_steps() * (self.steps >= self.config.dream_after)
        horizon = max(1, int(allowed.sum()))  # the one wait for the device, before a long loop
        rows = to_tensors(starts.data, self.device)
        obs, reward, first = rows["obs"][:, -1].float(), rows["reward"], rows["first"]
        past = None
        if self.config.context:
            before = world.normaliser(rows["obs"][:, :-1])
            tokens = world.tokens(before, rows["action"][:, :-1], reward[:, :-1], first[:, :-1])
            _, past = world.transformer(tokens)
        reward, first = reward[:, -1], first[:, -1]
        lived, actions, rewards, ends, agreed = [obs], [], [reward], [], []
        for _ in range(horizon):
            action = self.policy_at(obs, noise).sampled[0]
            x = world.normaliser(obs)
            token = world.tokens(x[:, None], action[:, None], reward[:, None], first[:, None])
            read, past = world.transformer(token, past)
            step = world.imagine(read[:, -1], obs, noise)
            obs, reward, first = step.obs, step.reward, torch.zeros_like(first)
            lived.append(obs)
            actions.append(action)
            rewards.append(reward)
            ends.append(step.terminal)
            agreed.append(step.disagreement)

        agreement = (
            torch.stack(agreed, 1) <= self.config.max_disagreement * world.usual_disagreement
        )
        terminal = torch.stack(ends, 1)  # (B, H)
        going_on = F.pad((~terminal).cumprod(1)[:, :-1], (1, 0), value=1)
        real = agreement.cumprod(1) * allowed[:horizon] * going_on  # is the step to row h + 1?
        return {
            "obs": torch.stack(lived, 1),
            "action": F.pad(torch.stack(actions, 1), (0, 0, 0, 1)),
            "reward": torch.stack(rewards, 1),
            # A row is the last where the step from it is not; what is terminal is believed to be.
            "last": F.pad(real == 0, (0, 1), value=True),
            "terminal": F.pad(terminal & (real > 0), (1, 0)),
            "weight": F.pad(real.float(), (0, 1)),
            "version": world.normaliser.updates.expand(len(obs), horizon + 1).clone(),
        }

    # -------------------------------------------------------------------------------- policy

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        assert real is not None
        config, metrics, imagined = self.config, {}, None
        lived = to_tensors(real.data, self.device)
        chance = torch.as_tensor(real.size * real.prob, dtype=torch.float32, device=self.device)
        if dreams is not None:
            batch = to_tensors(dreams, self.device)
            imagined = sample_windows(batch, COLUMNS, config.dreamed, 0, 1, self.policy_rng)
            age = self.slow_world.normaliser.updates - batch["version"].mean()
            metrics["dream/age"] = age.clamp(min=0)  # in updates of the model, those heard of
        shape = (
            2,
            len(chance) + config.dreamed * (imagined is not None),
            self.spec.action.shape[0],
        )
        noise = torch.randn(shape, generator=self.policy_rng, device=self.device)

        loss, error, before, counts, found = self.critic_update(lived, chance, imagined, noise[0])
        metrics |= found
        metrics["grad_norm/critic"] = self.critic_optimizer.step(loss)
        loss, found = self.actor_update(before, counts, noise[1])
        metrics |= found
        metrics["grad_norm/policy"] = self.actor_optimizer.step(loss)
        metrics |= skipped_step_metrics("policy", self.critic_optimizer, self.actor_optimizer)
        if config.norm != "batch":
            self.target_soft_update.step(config.slow_critic)
        if not config.prioritized:
            return Feedback(metrics)
        priority = (error * counts)[: len(chance)] + PRIORITY
        return Feedback(metrics, to_array(priority).astype(np.float64))

    def critic_update(
        self, lived: Batch, chance: Tensor, imagined: tuple[Batch, Tensor] | None, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The loss of the critics, each window's error (B,), normalised observations (B, O) and how
        much each counts (B,), metrics.

        From R real windows, how many times likelier than others they were to be drawn (R,), and
        dreamed windows with their weights (D,).
        """
        config, metrics = self.config, {}
        self.normaliser.update(lived["obs"], lived["reward"])
        weight = self.importance(chance)
        rows = {key: lived[key] for key in COLUMNS}
        rows["reward"] = self.normaliser.cut_outliers(rows["reward"])
        sound = self.normaliser.inliers(rows["obs"])
        metrics["data/outliers"] = 1 - sound.mean()
        counts = sound.amin(1)  # nothing is learned from a window with an outlier
        weight = weight * counts
        if imagined is not None:
            dreamed, counting = imagined
            rows = {key: torch.cat([rows[key], dreamed[key]]) for key in rows}
            weight = torch.cat([weight, counting * weight.mean()])
            counts = torch.cat([counts, counting])
            metrics["dream/share"] = counting.sum() / counts.sum()
        before, after = self.normaliser(rows["obs"]).unbind(1)  # (B, O) each
        taken = torch.cat([before, rows["action"][:, 0]], -1)
        reward = config.reward_scale * rows["reward"][:, 1]
        discount = config.gamma * ~rows["terminal"][:, 1]
        quantiles, target = self.quantiles_and_targets(taken, after, reward, discount, noise)
        loss, value = critic_loss(quantiles, target, weight, counts), quantiles.detach()
        surprise = target.mean(-1) - value.mean((0, 2))
        error = surprise.abs()
        if imagined is not None:  # how much more dreams promise than real rows do
            real, dreamt = surprise.split([len(chance), len(counting)])
            optimism = counting @ (dreamt - real.mean()) / counting.sum().clamp(min=1)
            metrics["dream/optimism"] = optimism / config.reward_scale
        metrics |= {
            "loss/critic": loss.detach(),
            "value/mean": value.mean() / config.reward_scale,
            "value/td_error": error.mean() / config.reward_scale,
        }
        return loss, error, before, counts, metrics

    def quantiles_and_targets(
        self, taken: Tensor, after: Tensor, reward: Tensor, discount: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What critics say of (o, a) (B, O + A), and what they should: (K, B, Z), (B, Z').

        With batch statistics both are read in one batch, and no target network is needed (CrossQ).
        """
        with torch.no_grad():
            action, log_prob = TanhNormal(self.actor(after), noise).sampled
            following = torch.cat([after, action], -1)
            entropy_bonus = -self.actor.log_temperature.exp() * log_prob
        if self.config.norm == "batch":
            both = self.critics(torch.cat([taken, following]), noise=self.dropping)
            quantiles, ahead = both.chunk(2, 1)
        else:
            quantiles = self.critics(taken, noise=self.dropping)
            ahead = self.target(following, noise=self.dropping)
        soft = truncate(ahead, self.config.dropped_quantiles) + entropy_bonus.unsqueeze(-1)
        return quantiles, reward.unsqueeze(-1) + discount.unsqueeze(-1) * soft

    def actor_update(
        self, before: Tensor, counts: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the actor and its temperature at observations (B, O), and metrics."""
        action, log_prob = TanhNormal(self.actor(before), noise).sampled
        taken = torch.cat([before, action], -1)
        value = self.critics(taken, held=True, mean=True, noise=self.dropping)
        log_temperature = self.actor.log_temperature
        temperature = log_temperature.detach().exp()
        improving = actor_loss(value.mean((0, 2)), log_prob, temperature)
        heating = temperature_loss(log_temperature, log_prob, self.target_entropy)
        share = counts / counts.sum()
        loss = share @ improving
        metrics = {
            "loss/policy": loss.detach(),
            "policy/entropy": -(share @ log_prob).detach(),
            "policy/temperature": temperature,
        }
        return loss + share @ heating, metrics

    @property
    def dropping(self) -> torch.Generator | None:
        """What draws the units to leave out."""
        return self.policy_rng if self.config.dropout else None

    def importance(self, chance: Tensor) -> Tensor:
        """Weights (B,) that undo the drawing by priority as far as β goes, the largest 1."""
        if not self.config.prioritized:
            return torch.ones_like(chance)
        progress = (self.steps / self.config.anneal_steps).clamp(max=1)
        weight = chance ** -(self.config.beta + (1 - self.config.beta) * progress)
        return weight / weight.max()


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Who samples what, how often: the replay ratios of this agent."""
    # Whether the world model never learns from the episode.
    kept = columns(spec, held_out=FLAG)
    consumers = {
        "policy": Consumer(
            config.batch - config.dreamed,
            2,
            config.selector,
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            columns=COLUMNS,
        )
    }
    if config.dreamed:
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
    real = TableSpec(config.capacity, kept, consumers)
    dreamed = {"dream": QueueSpec(1, config.dream_every)} if config.dreamed else {}
    return {"real": real, **dreamed}
