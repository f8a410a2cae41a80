"""Gated Rainbow: a gated, noisy, dueling value network that learns from real rows and from dreams.

Values (`learn_policy`) are those of a history h_t = (o_{t-3} … o_t), from one batch of windows:

    body       f(h)                                        hidden features
    gate       0.7 + 0.3 g(h)                              a factor for each of them, from h alone
    streams    Q = V + A - mean A                          noisy layers; mean, atoms or quantiles
    target     r_1 + … + γ^{m-1} r_m + γ^m Q'(h_m, argmax Q(h_m))       m ≤ n: early at an end

Real windows are drawn by priority. A row's priority is |δ|^α with the α in force when it was last
updated; importance weights use the current β. Acting mixes noise drawn for every row with an ε that
decays; greedy has neither.

World model (`learn_world`), from windows of real rows:

    transition   o_{t+1} - o_t ~ N(mean_m(h_t, a_t), std_m)      an ensemble, m = 1 … M
    outcome      reward(o_t, a_t, o_{t+1}), end(o_t, a_t, o_{t+1})

A share `held_out` of episodes the world never learns from. On those its error is measured by
horizon, predicting open-loop.

Dreams (`dream`) are rows as the replay has them, made by the model and the acting policy from real
histories; they stay within the range that each number of an observation had in real rows. A dream
is believed as far as the held-out error at that horizon is small, and as its two members disagree
no more than they do on real rows. There it is truncated: values bootstrap from what comes last.

How dreams become a share of a batch: of `batch` windows an update, round(share · batch) start at
dreamed rows, drawn alike among those believed, and the others are real. If fewer dreamed rows are
believed than that, each counts as one window and no more: the dreamed part weighs less, and where
nothing is believed the update learns from the real windows alone. `dream/share` is what it was.

Sources: seed project 000; Rainbow (Hessel et al. 2018), its parts where they stand; MBPO (Janner et
al. 2019) for dreams from real starts.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.actions import DiscreteActions
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.dreams import sample_windows
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.returns import n_step
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.torch_compile import compile_on_first_call
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.agents.gated_rainbow.config import CONTEXT, PRIORITY, RANGE, Config
from dreamfleet.agents.gated_rainbow.frame_world import FrameWorldModel
from dreamfleet.agents.gated_rainbow.network import ValueNetwork, gate_metrics, gate_regulariser
from dreamfleet.agents.gated_rainbow.schedules import Schedules
from dreamfleet.agents.gated_rainbow.tables import COLUMNS, observed_spec, tables
from dreamfleet.agents.gated_rainbow.vector_world import VectorWorldModel
from dreamfleet.core.types import (
    Array,
    Batch,
    EnvSpec,
    Feedback,
    Sample,
    State,
)

MOST = 1e30  # of a reward in sums that shall stay finite in 32 bits
PASSES = 3  # through a network an update: online twice, then target


class Memory(NamedTuple):
    """What acting carries along in each of n environments."""

    history: Array  # (N, 4, *O), of the observations' own kind
    age: Array  # (N,) f32, steps since the episode began
    trace: Array  # (N,) f32, the discounted reward so far: γ · trace + reward
    score: Array  # (N,) f32, the undiscounted one, outliers cut
    held_out: Array  # (N,) bool, whether this episode is kept from the world model


class GatedRainbow(WeightGroups):
    """See the module. Observations are vectors or frames, actions discrete."""

    Config: TypeAlias = Config
    act_groups = ("policy",)  # with the schedules, so that actors elsewhere have today's ε

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        device, config = resolve_device(device), config.sized(spec.obs)
        spec = observed_spec(spec, config.observe_time)
        self.config, self.spec, self.device = config, spec, device
        self.tables = tables(config, spec)
        self.actions = DiscreteActions(spec.action)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            self.online = ValueNetwork(config, spec).to(device)
            self.world = (FrameWorldModel if spec.obs.image else VectorWorldModel)(
                spec.obs,
                self.actions.size,
                context=CONTEXT,
                members=config.members,
                hidden=config.world_hidden,
                horizon=config.world_window - 1,
            ).to(device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.slow_world = copy.deepcopy(self.world).requires_grad_(False)
        self.schedules = Schedules(config).to(device)

        self._update_loss = (
            compile_on_first_call(self.update_loss, device) if config.compile else self.update_loss
        )
        self.optimizer = Optimizer(
            self.online, config.lr_critic, config.max_grad_norm, config.weight_decay
        )
        self.world_optimizer = Optimizer(self.world, config.lr_world, config.max_grad_norm)
        self.target_soft_update = SoftUpdate(self.target, self.online)
        self.world_soft_update = SoftUpdate(self.slow_world, self.world)
        self.act_rng = make_rng(seed, device)
        self.dream_rng = make_rng(seed + 1, device)
        self.policy_rng = make_rng(seed + 2, device)
        acting = nn.ModuleDict({"online": self.online, "schedules": self.schedules})
        self.groups = {
            "world": GroupState(
                nets={"world": self.world, "slow_world": self.slow_world},
                optimizers={"world": self.world_optimizer},
                rngs={"dream": self.dream_rng},
                published="slow_world",
            ),
            "policy": GroupState(
                nets={"acting": acting, "target": self.target},
                optimizers={"online": self.optimizer},
                rngs={"act": self.act_rng, "policy": self.policy_rng},
                published="acting",
            ),
        }

    # --------------------------------------------------------------------------------- acting

    def initial_state(self, n: int) -> Memory:
        history = np.zeros((n, CONTEXT + 1, *self.spec.obs.shape), self.spec.obs.dtype)
        age, trace, score = np.zeros((3, n), np.float32)
        return Memory(history, age, trace, score, np.zeros(n, bool))

    @torch.no_grad()
    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        first, reward = rows["first"], rows["reward"]
        memory: Memory = state
        age = np.where(first, 0, memory.age + 1).astype(np.float32)
        obs, replaced = rows["obs"], {}
        if self.config.observe_time:
            obs = np.concatenate([obs, age[:, None]], -1)
            replaced["obs"] = obs
        fresh = first.reshape(-1, 1, *[1] * len(self.spec.obs.shape))
        newest = obs[:, None]
        history = np.where(fresh, newest, np.concatenate([memory.history[:, 1:], newest], 1))
        counted = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
        reward = to_array(self.online.normaliser.cut_outliers(counted)).clip(-MOST, MOST)
        trace = np.where(first, 0, self.config.gamma * memory.trace + reward).astype(np.float32)
        score = np.where(first, 0, memory.score + reward).astype(np.float32)
        held_out, noise = memory.held_out, None
        if explore:
            noise = self.act_rng
            drawn = torch.rand(first.shape, generator=noise, device=self.device)
            held_out = np.where(first, to_array(drawn < self.config.held_out_share), held_out)
        action = self.choose(torch.as_tensor(history, device=self.device), noise)
        extras = {"trace": trace, "score": score, "held_out": held_out, **replaced}
        return to_array(action), Memory(history, age, trace, score, held_out), extras

    def choose(self, history: Tensor, noise: torch.Generator | None) -> Tensor:
        """Histories (B, 4, *O) → actions (B,): the best, or with `noise` those that explore."""
        perturbed = None if noise is None else self.online.draw(len(history), noise)
        best = self.online.mean(self.online(history, perturbed)[0]).argmax(-1)
        if noise is None:
            return best
        dice = torch.rand(2, *best.shape, generator=noise, device=best.device)
        anything = (dice[0] * self.actions.size).long()
        return torch.where(dice[1] < self.schedules.epsilon, anything, best)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        rows = to_tensors(real.data, self.device)
        code = self.actions.encode(rows["action"])
        self.world.update_statistics(rows)
        loss, metrics = self.world.loss(rows, code)
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        updates = self.world.normaliser.updates
        self.world_soft_update.step((1 / updates).clamp(min=self.config.slow_world))
        metrics |= self.world.update_held_out_error(self.slow_world, rows, code, self.dream_rng)
        metrics["model/believed"] = self.trusted_steps().sum()
        return Feedback(metrics)

    def trusted_steps(self) -> Tensor:
        """Whether dreams of 1 … `dream_horizon` steps are (H,): their held-out error is small."""
        error = self.slow_world.expected_error(self.config.dream_horizon)
        return (error <= self.config.max_model_error).cumprod(0)

    # --------------------------------------------------------------------------------- dreams

    @torch.no_grad()
    def dream(self, starts: Sample) -> Batch:
        """Rows (B, C + H + 1, …): `obs`, `action`, `reward`, `last`, `terminal`, `weight`.

        The first C rows are context. `weight` is 1 on rows an action was taken on that are worth
        learning from. H is as far as the held-out error lets dreams go, 1 at the least.
        """
        world, noise, members = self.slow_world, self.dream_rng, self.config.members
        believed = self.trusted_steps() * (self.schedules.steps >= self.config.dream_after)
        horizon = max(1, int(believed.sum()))  # the one wait for the device, before a long loop
        obs = torch.as_tensor(starts.data["obs"], device=self.device)
        history = obs[:, -CONTEXT - 1 :]  # (B, 4, *O)
        lived, actions, rewards, ends, agreed = list(history.unbind(1)), [], [], [], []
        for _ in range(horizon):
            action = self.choose(history, noise)
            code = self.actions.encode(action)
            step = world.imagine(
                history.unflatten(0, (members, -1)), code.unflatten(0, (members, -1)), noise
            )
            following = step.obs.flatten(0, 1)
            history = torch.cat([history[:, 1:], following.unsqueeze(1)], 1)
            lived.append(following)
            actions.append(action)
            rewards.append(step.reward.flatten())
            ends.append(step.terminal.flatten())
            agreed.append(step.disagreement.flatten())

        agreement = (
            torch.stack(agreed, 1) <= self.config.max_disagreement * world.usual_disagreement
        )
        terminal = torch.stack(ends, 1)  # (B, H)
        going_on = F.pad((~terminal).cumprod(1)[:, :-1], (1, 0), value=1)
        real = agreement.cumprod(1) * believed[:horizon] * going_on  # is the step to row h + 1?
        # A dream ends (`last`) at the first row whose next step is not trusted. A predicted
        # termination counts only on trusted steps.
        last = F.pad(real == 0, (CONTEXT, 1), value=True)
        last[:, :CONTEXT] = False
        return {
            "obs": torch.stack(lived, 1),
            "action": F.pad(torch.stack(actions, 1), (CONTEXT, 1)),
            "reward": F.pad(torch.stack(rewards, 1), (CONTEXT + 1, 0)),
            "last": last,
            "terminal": F.pad(terminal & (real > 0), (CONTEXT + 1, 0)),
            "weight": F.pad(real.float(), (CONTEXT, 1)),
        }

    # -------------------------------------------------------------------------------- values

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        assert real is not None
        lived = to_tensors(real.data, self.device)
        chance = torch.as_tensor(real.size * real.prob, dtype=torch.float32, device=self.device)
        imagined = None if dreams is None else self.sample_windows(dreams)
        noise = self.online.draw(PASSES, self.policy_rng)
        played = torch.tensor(real.episode_stats, dtype=torch.float32, device=self.device)
        loss, priority, metrics = self._update_loss(lived, chance, played, imagined, noise)
        metrics["grad_norm/value"] = self.optimizer.step(loss, metrics["learn/lr"])
        metrics |= skipped_step_metrics("policy", self.optimizer)
        self.target_soft_update.step(self.config.slow_critic)
        if not self.config.prioritized:
            return Feedback(metrics)
        return Feedback(metrics, to_array(priority).astype(np.float64))

    def update_loss(
        self,
        lived: Batch,
        chance: Tensor,
        played: Tensor,
        imagined: tuple[Batch, Tensor] | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All of an update but its gradient step → the loss, priorities (R,) and metrics.

        From R real windows and how many times likelier than others they were to be drawn (R,), how
        many episodes were played and their mean return (2,), and dreamed windows with their weights
        (D,). Only tensors come in and go out, so it compiles.
        """
        config, progress, normaliser = self.config, self.schedules, self.online.normaliser
        normaliser.update(lived["obs"], lived["reward"])
        self.update_value_unit(lived["trace"], lived["reward"])
        weight = self.importance(chance)
        rows = {key: lived[key] for key in COLUMNS}
        rows["reward"] = normaliser.cut_outliers(rows["reward"])
        sound = normaliser.inliers(lived["obs"])
        metrics = {"data/outliers": 1 - sound.mean()}
        sound = sound.amin(1)  # nothing is learned from a window with an outlier
        weight, counts = weight * sound, sound
        if imagined is not None:
            counts = torch.cat([counts, imagined[1]])
            rows = {key: torch.cat([rows[key], imagined[0][key]]) for key in rows}
            dream_weight = imagined[1] * weight.mean()
            both = dream_weight.sum() + weight.sum()
            metrics["dream/share"] = dream_weight.sum() / both.clamp(min=1e-6)
            weight = torch.cat([weight, dream_weight])
        if config.curiosity:
            rows["reward"] = rows["reward"] + config.curiosity * self.curiosity_bonus(rows)

        loss, td_error, openness, value = self.losses(rows, noise)
        total = value_loss = (weight * loss).sum() / counts.sum().clamp(min=1)
        if config.gate != "none":
            gate_loss = gate_regulariser(openness)
            total = value_loss + config.gate_weight * gate_loss
            metrics |= {"loss/gate": gate_loss.detach(), **gate_metrics(openness.detach())}
        progress.learned(played)
        priority = (sound * td_error[: len(chance)] + PRIORITY) ** progress.alpha
        metrics |= {
            "loss/value": value_loss.detach(),
            "explore/epsilon": progress.epsilon,
            "explore/noise": self.online.noisiness,
            "replay/alpha": progress.alpha,
            "replay/beta": progress.beta,
            "value/mean": value.mean() * self.online.unit,
            "value/unit": self.online.unit.clone(),
            "value/td_error": td_error.mean() * self.online.unit,
            "learn/lr": progress.lr,
            "learn/return": progress.mean_return.clone(),
        }
        return total, priority, metrics

    def sample_windows(self, dreams: Batch) -> tuple[Batch, Tensor]:
        """Windows (D, C + n + 1, …) at believed rows of dreams, and how much each counts (D,)."""
        batch, config = to_tensors(dreams, self.device), self.config
        return sample_windows(
            batch, COLUMNS, config.dreamed, CONTEXT, config.n_step, self.policy_rng
        )

    def losses(self, rows: Batch, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Windows (B, C + n + 1, …) → loss, |δ| and value (B,), gate openness (B, F).

        All in the unit of values; the value is that of the action taken. `noise` has a row for each
        pass through a network.
        """
        online, noises = self.online, PASSES * (None,) if noise is None else noise.split(1)
        reward, last, terminal = (rows[key][:, CONTEXT:] for key in ("reward", "last", "terminal"))
        rewards, steps, discount = n_step(reward / online.unit, last, terminal, self.config.gamma)
        histories = rows["obs"].unfold(1, CONTEXT + 1, 1).movedim(-1, 2)  # (B, n + 1, 4, *O)
        item = torch.arange(len(steps), device=steps.device)
        values, openness = online(histories[:, 0], noises[0])
        taken = values[item, rows["action"][:, CONTEXT]]  # (B, Z)
        with torch.no_grad():
            after = histories[item, steps]
            best = online.mean(online(after, noises[1])[0]).argmax(-1)  # double Q-learning
            following = self.target(after, noises[2])[0][item, best]
            value = online.mean(taken.detach())
            td_error = (rewards + discount * online.mean(following) - value).abs()
        loss = online.values.loss(taken, following, rewards, discount)
        assert loss.shape == td_error.shape == value.shape == steps.shape
        return loss, td_error, openness, value

    def importance(self, chance: Tensor) -> Tensor:
        """Weights (B,) that undo the drawing by priority as far as β goes, the largest 1."""
        if not self.config.prioritized:
            return torch.ones_like(chance)
        weight = chance**-self.schedules.beta
        return weight / weight.max()

    def curiosity_bonus(self, rows: Batch) -> Tensor:
        """How much the world's members disagree on the step to each row (B, C + n + 1)."""
        world = self.slow_world
        found = world.disagreement(rows["obs"], self.actions.encode(rows["action"]))  # (B, n)
        usual = world.usual_disagreement.clamp(min=1e-8)
        bonus = (found / usual).clamp(max=10) * self.online.normaliser.reward_rms
        return F.pad(bonus, (CONTEXT + 1, 0))

    @torch.no_grad()
    def update_value_unit(self, trace: Tensor, reward: Tensor) -> None:
        """Grows the unit of values with the largest return seen, and leaves predicted returns."""
        before, normaliser = self.online.unit, self.online.normaliser
        largest = normaliser.largest_return(trace, reward, self.config.gamma)
        unit = torch.maximum(before, (largest / RANGE).clamp(min=1e-3))
        factor = torch.where(before > 0, before / unit, 1.0)
        for net in (self.online, self.target):
            net.rescale(factor)
            net.unit.copy_(unit)
