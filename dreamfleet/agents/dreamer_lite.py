"""Dreamer-Lite: a latent world model, and a policy and value that learn inside its dreams.

LatentWorld model (`learn_world`), from windows of real rows:

    encoder      z_t      = f(o_t)                        scaled to unit variance
    transition   z_{t+1} ~ N(mean_m(z_t, a_t), std_m)     an ensemble, m = 1 … M
    heads        reward(z_t, a_t), continue(z_{t+1}), decoder(z_t)
    grounding    z_t     <- f(decoder(z_t)), after each imagined transition

What keeps the latent informative: it cannot shrink, having unit variance by construction, and the
decoder must recover the observation from each encoded latent and from each one predicted open-loop.
What keeps dreams where policy and value know their way: each imagined latent is encoded anew from
what it decodes to. Without that dreams leave the encoder's image, and values sink step by step.
Everyone but the world model's own loss sees a slow copy of it, whose dreams are several times as
accurate and whose latents hold still for the policy.

Dreams (`dream`), H steps from real starts, each under a member of its own. Where two members
disagree by more than they do on real data, a dream is not trusted any further: nothing is learned
from that step nor from later ones, and returns bootstrap at the row before it.

Policy and value (`learn_policy`), from dreams and from a share of real windows. The critic learns
Retrace(lambda) returns: on dreams of the policy itself these are Dreamer's lambda-returns, on real
rows they are the sound off-policy targets, so one loss serves both. The policy follows the critic:
fitted to the softmax of its values for discrete actions, by reparameterised samples for continuous
ones. No gradient passes through a dream, so a dream is plain data that another process can make.

Sources: seed project 003; Dreamer (Hafner et al. 2020; 2023); MBPO (Janner et al. 2019); Retrace
(Munos et al. 2016); clipped double Q (Fujimoto et al. 2018).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.actions import action_kind
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.distributions import Policy
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.nets import MLP, Ensemble
from dreamfleet.agents.blocks.normaliser import Normaliser, ReturnRange
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.returns import retrace
from dreamfleet.agents.blocks.rows import NUMBER, columns
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
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
    Space,
    State,
    TableSpec,
)


@dataclass(frozen=True)
class Config:
    """Settings of Dreamer-Lite. A setting without a source in brackets was chosen here."""

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
    def dreamed(self) -> int:
        """Returns the number of dreams per policy update, a multiple of the members."""
        return round(self.batch * self.dream_share) // self.members * self.members

    @property
    def real(self) -> int:
        """Returns the number of real windows per policy update."""
        return self.batch - self.dreamed


class DreamerLite(WeightGroups):
    """See the module. Built from vector observations and discrete or continuous actions."""

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
            self.world = LatentWorldModel(config, spec.obs, self.actions.size).to(device)
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

    @torch.no_grad()
    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        obs = torch.as_tensor(rows["obs"], device=self.device)
        policy = self.policy_at(self.slow_world.encode(obs), self.act_rng)
        if not explore:
            return to_array(policy.mode), state, {}
        action, log_prob = policy.sampled
        return to_array(action), state, {"log_prob": to_array(log_prob)}

    def policy_at(self, z: Tensor, noise: torch.Generator) -> Policy:
        return self.actions.policy(self.policy(z), noise)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        rows = to_tensors(real.data, self.device)
        self.world.normaliser.update(rows["obs"], rows["reward"])
        loss, metrics = self.world_loss(rows)
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        metrics["data/outliers"] = 1 - self.world.normaliser.inliers(rows["obs"]).mean()
        self.world_soft_update.step(self.rate(self.config.slow_world))
        metrics["model/disagreement"] = self.measure_disagreement(rows)
        return Feedback(metrics)

    def world_loss(self, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Each member predicts its share of the windows open-loop; rows (B, T, …) → scalar."""
        world, members = self.world, self.config.members
        x = world.normaliser(rows["obs"])
        z = world.encode_normalised(x)  # (B, T, L)
        sound = world.normaliser.inliers(rows["obs"])
        alive = (~rows["last"]).float().cumprod(1)[:, :-1]  # is the step from row t still inside?
        alive = alive * sound[:, :1] * sound[:, 1:]  # and from and to what is no fault?

        def share(value: Tensor) -> Tensor:
            return value.unflatten(0, (members, -1))  # (B, …) → (M, B/M, …)

        action = share(self.actions.encode(rows["action"]))
        predicted, means, log_stds = [share(z)[:, :, 0]], [], []
        for t in range(z.shape[1] - 1):
            mean, log_std = world.predict(predicted[-1], action[:, :, t])
            predicted.append(mean)
            means.append(mean)
            log_stds.append(log_std)
        before = torch.stack(predicted[:-1], 2).flatten(0, 1)  # (B, T-1, L)
        after = torch.stack(means, 2).flatten(0, 1)
        log_std = log_stds[0].flatten(0, 1)  # (B, L), of one step

        error = (after - z[:, 1:].detach()).square().mean(-1)  # (B, T-1)
        # The spread is fitted to the one-step error, without pulling on the mean.
        variance = (2 * log_stds[0].flatten(0, 1)).exp()
        squared = (means[0].flatten(0, 1) - z[:, 1]).detach().square()
        spread = (0.5 * squared / variance + 0.5 * variance.log()).mean(-1)
        decoded = (world.decoder(after) - x[:, 1:]).square().mean(-1)  # (B, T-1)
        reward = world.reward(torch.cat([before, action.flatten(0, 1)[:, :-1]], -1)).squeeze(-1)
        real_reward = world.normaliser.cut_outliers(rows["reward"]) / world.normaliser.reward_rms
        reward_error = (reward - real_reward[:, 1:]).square()
        stays = (~rows["terminal"]).float()
        terms = {
            "loss/transition": masked_mean(error, alive),
            "loss/spread": 0.1 * masked_mean(spread, sound[:, 0] * sound[:, 1]),
            "loss/reconstruction": masked_mean((world.decoder(z) - x).square().mean(-1), sound),
            "loss/prediction": masked_mean(decoded, alive),
            "loss/reward": masked_mean(reward_error, alive),
            "loss/continue": masked_mean(continue_loss(world.cont(z), stays), sound)
            + masked_mean(continue_loss(world.cont(after), stays[:, 1:]), alive),
        }
        horizon = decoded.shape[1]
        errors = {
            f"model/error_{t + 1}": masked_mean(decoded[:, t], alive[:, t]).sqrt()
            for t in sorted({0, horizon - 1})  # RMS in standard deviations of the observation
        }
        loss = torch.stack(list(terms.values())).sum()
        return loss, {name: term.detach() for name, term in (terms | errors).items()}

    def rate(self, moving: float) -> Tensor:
        """Of averages over world updates: plain at first, `moving` later."""
        return (1 / self.world.normaliser.updates).clamp(min=moving)

    @torch.no_grad()
    def measure_disagreement(self, rows: Batch) -> Tensor:
        """How far two members differ on the first step of real windows; dreams compare to it."""
        z = self.slow_world.encode(rows["obs"][:, 0]).unflatten(0, (self.config.members, -1))
        code = self.actions.encode(rows["action"][:, 0]).unflatten(0, (self.config.members, -1))
        found = self.slow_world.predict_with_disagreement(z, code)[2].mean()
        return self.world.usual_disagreement.lerp_(found, self.rate(0.01)).clone()

    # --------------------------------------------------------------------------------- dreams

    @torch.no_grad()
    def dream(self, starts: Sample) -> Batch:
        """Rows of latents (B, H+1, …): `latent`, `action`, `log_prob`, `reward`, `cont`, `trust`.

        `cont` is the probability that the episode goes on at a row; `trust` is 1 while the members
        still agree on it.
        """
        world, noise = self.slow_world, self.dream_rng
        obs = torch.as_tensor(starts.data["obs"], device=self.device)[:, -1]
        z = world.encode(obs).unflatten(0, (self.config.members, -1))  # (M, B/M, L)
        latents, actions, log_probs, disagreements = [], [], [], [torch.zeros_like(z[..., 0])]
        for step in range(self.config.dream_horizon + 1):
            action, log_prob = self.policy_at(z, noise).sampled
            latents.append(z)
            actions.append(action)
            log_probs.append(log_prob)
            if step < self.config.dream_horizon:
                mean, log_std, disagreement = world.predict_with_disagreement(
                    z, self.actions.encode(action)
                )
                disagreements.append(disagreement)
                drawn = torch.randn(mean.shape, generator=noise, device=z.device)
                z = world.ground(mean + log_std.exp() * drawn)

        def trajectories(steps: list[Tensor]) -> Tensor:
            return torch.stack(steps, 2).flatten(0, 1)  # (M, B/M, …) each → (B, H+1, …)

        latent, action = trajectories(latents), trajectories(actions)
        agreed = (
            trajectories(disagreements) <= self.config.max_disagreement * world.usual_disagreement
        )
        reward = world.reward(torch.cat([latent, self.actions.encode(action)], -1)).squeeze(-1)
        cont = torch.sigmoid(world.cont(latent)).squeeze(-1)
        cont[:, 0] = 1  # a start is never an end
        return {
            "latent": latent,
            "action": action,
            "log_prob": trajectories(log_probs),
            "reward": F.pad(reward[:, :-1] * world.normaliser.reward_rms, (1, 0)),
            "cont": cont,
            "trust": agreed.float().cumprod(1),
        }

    # -------------------------------------------------------------------- policy and value

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        parts = []
        if dreams is not None:
            parts.append(self.dreamed(to_tensors(dreams, self.device)))
        if real is not None:
            parts.append(self.lived(to_tensors(real.data, self.device)))
        rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        policy = self.policy_at(rows["latent"], self.policy_rng)
        taken, options = self.critic(rows["latent"], rows["action"], policy)
        with torch.no_grad():
            returns = self.returns(rows, policy)
            weight = rows["weight"][:, :-1]
            scale = self.return_range.update(returns, weight)
            dreamt = weight[: 0 if dreams is None else len(dreams["latent"])].sum()

        critic_loss = masked_mean((taken[:, :, :-1] - returns).square().sum(0), weight)
        policy_loss = masked_mean(
            policy.policy_loss(options / scale, self.config.entropy_weight)[:, :-1], weight
        )
        metrics = {
            "loss/critic": critic_loss.detach(),
            "loss/policy": policy_loss.detach(),
            "grad_norm/critic": self.critic_optimizer.step(critic_loss),
            "grad_norm/policy": self.policy_optimizer.step(policy_loss),
            "policy/entropy": masked_mean(policy.entropy().detach()[:, :-1], weight),
            "value/mean": returns.mean() * self.value_unit,
            "value/range": scale * self.value_unit,
            "dream/share": dreamt / weight.sum().clamp(min=1e-6),
            "dream/trust": rows["trust"].mean(),
        }
        metrics |= skipped_step_metrics("policy", self.critic_optimizer, self.policy_optimizer)
        self.critic_soft_update.step(self.config.slow_critic)
        return Feedback(metrics)

    def dreamed(self, dreams: Batch) -> Batch:
        """Dreams as trajectories to learn from.

        A row weighs as much as it is likely to be reached, and nothing where the step from it is
        not trusted: its return would consist of what that step leads to.
        """
        reached = dreams["cont"].cumprod(1)
        trusted = F.pad(dreams["trust"][:, 1:], (0, 1))  # is the step from the row?
        return {**dreams, "weight": reached * trusted, "inside": torch.ones_like(reached)}

    @torch.no_grad()
    def lived(self, rows: Batch) -> Batch:
        """Real windows as trajectories to learn from. A `last` row only bootstraps.

        Nothing is learned from observations with outliers, nor from a step to them.
        """
        inside = (~rows["last"]).float()
        sound = self.slow_world.normaliser.inliers(rows["obs"])
        return {
            "latent": self.slow_world.encode(rows["obs"]),
            "action": rows["action"],
            "log_prob": rows["log_prob"],
            "reward": self.slow_world.normaliser.cut_outliers(rows["reward"]),
            "cont": (~rows["terminal"]).float(),
            "trust": sound,
            "weight": inside * sound * F.pad(sound[:, 1:], (0, 1)),
            "inside": inside,
        }

    def returns(self, rows: Batch, policy: Policy) -> Tensor:
        """Targets of the critic in units of `value_unit`: trajectories (B, T, …) → (B, T-1)."""
        taken, options = self.slow_critic(rows["latent"], rows["action"], policy)
        ratio = (policy.log_prob(rows["action"]) - rows["log_prob"]).exp().clamp(max=1)
        trusted = F.pad(rows["trust"][:, 1:], (0, 1))  # is what follows the row?
        return retrace(
            reward=rows["reward"] / self.value_unit,
            discount=self.config.gamma * rows["cont"],
            value=policy.expect(options),
            q_taken=taken.min(0).values,
            trace=self.config.lam * ratio * rows["inside"] * trusted,
        )

    @property
    def value_unit(self) -> Tensor:
        """What a return is measured in: the return of always getting the typical reward."""
        return self.slow_world.normaliser.reward_rms / (1 - self.config.gamma)


# -------------------------------------------------------------------------------- the world


class LatentWorldModel(nn.Module):
    """Encoder, transition ensemble, reward, continue and decoder."""

    usual_disagreement: Tensor

    def __init__(self, config: Config, obs: Space, action_size: int) -> None:
        super().__init__()
        size, latent, hidden = math.prod(obs.shape), config.latent, config.hidden
        self.normaliser = Normaliser(obs)
        self.encoder = MLP((size, hidden, hidden, latent))  # seed 003
        self.transition = Ensemble(
            config.members, (latent + action_size, hidden, hidden, 2 * latent), zero_last=True
        )
        self.reward = MLP((latent + action_size, hidden, 1), zero_last=True)
        self.cont = MLP((latent, hidden, 1), zero_last=True)
        self.decoder = MLP((latent, hidden, size))
        self.register_buffer("usual_disagreement", torch.zeros(()))

    def encode(self, obs: Tensor) -> Tensor:
        """Observations (…, *O) → latents (…, L)."""
        return self.encode_normalised(self.normaliser(obs))

    def encode_normalised(self, x: Tensor) -> Tensor:
        return unit_variance(self.encoder(x))

    def ground(self, z: Tensor) -> Tensor:
        """Latents (…, L) → those of the observations they stand for, (…, L)."""
        return self.encode_normalised(self.decoder(z))

    def predict(self, z: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Each member's next latent: (M, B, L), (M, B, A) → mean and log std, (M, B, L)."""
        change, spread = self.transition(torch.cat([z, code], -1)).chunk(2, -1)
        return unit_variance(z + change), -4 + 3 * torch.tanh(spread / 3)

    def predict_with_disagreement(self, z: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `predict`, and by how much the next member disagrees: (M, B).

        Half the squared distance between two members: over pairs its mean is the ensemble's
        variance, at the price of two members instead of all.
        """
        other = z.roll(1, 0), code.roll(1, 0)  # what member m-1 was asked, put to member m
        mean, log_std = self.predict(torch.cat([z, other[0]], 1), torch.cat([code, other[1]], 1))
        (mine, others), log_std = mean.chunk(2, 1), log_std.chunk(2, 1)[0]
        return mine, log_std, 0.5 * (mine - others.roll(-1, 0)).square().mean(-1)


def unit_variance(z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:])


def continue_loss(logit: Tensor, stays: Tensor) -> Tensor:
    """Cross-entropy of going on: (…, 1), (…) → (…)."""
    return F.binary_cross_entropy_with_logits(logit.squeeze(-1), stays, reduction="none")


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Who samples what, how often: the replay ratios of this agent."""
    # Of the action, under the policy that took it.
    kept = columns(spec, log_prob=NUMBER)
    consumers = {
        "world": Consumer(
            config.world_batch, config.world_window, samples_per_step=config.world_updates_per_step
        )
    }
    policy = Consumer(
        config.real,
        config.dream_horizon + 1,
        samples_per_step=config.policy_updates_per_step,
        min_steps=config.warmup,
    )
    if config.dreamed:
        consumers["start"] = replace(policy, batch=config.dreamed, window=1)
    if config.real:
        consumers["policy"] = policy
    real = TableSpec(config.capacity, kept, consumers)
    return {"real": real, "dream": QueueSpec(2)} if config.dreamed else {"real": real}
