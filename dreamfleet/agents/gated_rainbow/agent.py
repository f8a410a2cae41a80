"""Gated Rainbow: a gated, noisy, dueling value network that learns from real rows and from dreams.

The value network (`learn_policy`) reads a history h_t = (o_{t-3} … o_t) of four observations:

    body       f(h)                                        hidden features
    gate       0.7 + 0.3 g(h)                              one factor per feature
    streams    Q = V + A - mean A                          noisy layers; mean, atoms or quantiles
    target     r_1 + … + γ^{m-1} r_m + γ^m Q'(h_m, argmax Q(h_m))       m ≤ n steps

A return has m = n steps, or fewer if the episode ends earlier.

Real windows are sampled by priority. An update sets the priority of each window that it sampled to
|δ|^α, with the window's TD error δ and the current priority exponent α. Importance weights use the
current exponent β.

Exploration uses noisy layers, with new noise for each row, and random actions with probability ε,
which decays. Greedy acting uses neither.

The world model (`learn_world`) learns from windows of real rows:

    transition   o_{t+1} - o_t ~ N(mean_m(h_t, a_t), std_m)      an ensemble, m = 1 … M
    outcome      reward(o_t, a_t, o_{t+1}), terminal(o_t, a_t, o_{t+1})

A fraction `held_out_share` of the episodes is held out: the world model never learns from held-out
episodes. Its held-out error after 1, 2, … steps is measured by predicting held-out episodes
open-loop (from its own predictions).

A dream (`dream`) is a rollout in the world model, which starts from a real history. The acting
policy chooses the actions. The world model draws the next rows, which have the columns of real
rows.

A dreamed step is trusted while two quantities are small: the held-out error after this number of
steps, and the disagreement of two ensemble members compared with real rows. A dream is truncated at
the first untrusted step, so values bootstrap from the row before it.

Of the `batch` windows of an update, round(dream_share · batch) start at trusted dreamed rows and
the others are real. If there are fewer trusted rows than dreamed windows, the weights of the
dreamed windows sum to the number of trusted rows. If there is no trusted row, the update learns
from real windows alone.

The metric `dream/share` is the summed weight of the dreamed windows, as a fraction of the summed
weight of all windows.

Sources: `skjazz/Model-based-DQN` (seed project 000, the code by another author from which Gated
Rainbow started); Rainbow (Hessel et al. 2018); MBPO (Janner et al. 2019).
"""

from __future__ import annotations

import copy
from typing import TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.agents.blocks.actions import DiscreteActions
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.captured import captured
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.dreams import (
    add_dreamed_windows,
    end_dreams,
    sample_windows,
    stack_steps,
    steps_to_dream,
    trusted_steps,
)
from dreamfleet.agents.blocks.importance import importance_weights, relative_probability
from dreamfleet.agents.blocks.nets import by_turns
from dreamfleet.agents.blocks.optimizer import Optimizer, skipped_step_metrics
from dreamfleet.agents.blocks.returns import n_step
from dreamfleet.agents.blocks.rows import FLAG, NUMBER, columns
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.torch_compile import compile_on_first_call
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
from dreamfleet.agents.gated_rainbow.act_state import ActState, with_time
from dreamfleet.agents.gated_rainbow.config import CONTEXT, PRIORITY_OFFSET, VALUE_RANGE, Config
from dreamfleet.agents.gated_rainbow.frame_world import FrameWorldModel
from dreamfleet.agents.gated_rainbow.losses import double_q_loss, gate_regulariser
from dreamfleet.agents.gated_rainbow.network import ValueNetwork, gate_metrics
from dreamfleet.agents.gated_rainbow.schedules import Schedules
from dreamfleet.agents.gated_rainbow.vector_world import VectorWorldModel
from dreamfleet.core.selectors import Prioritized, Uniform
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

COLUMNS = ("obs", "action", "reward", "last", "terminal")  # of windows for learning values
FORWARD_PASSES = 3  # per update, each with its own noise: online network twice, target network


class GatedRainbow(WeightGroups):
    """The Gated Rainbow agent, for vector or image observations and discrete actions."""

    Config: TypeAlias = Config
    act_groups = ("policy",)  # includes the schedules, because acting needs the current ε

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        device, config = resolve_device(device), config.sized(spec.obs)
        if config.observe_time:
            spec = with_time(spec)
        self.config, self.spec, self.device = config, spec, device
        self.tables = tables(config, spec)
        self.actions = DiscreteActions(spec.action)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            self.online = ValueNetwork(config, spec).to(device)
            world = FrameWorldModel if spec.obs.image else VectorWorldModel
            self.world = world(config, spec.obs, self.actions.size).to(device)
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

    def initial_state(self, n: int) -> ActState:
        return ActState.initial(n, self.spec.obs)

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        current, first = cast(ActState, state).next(rows, self.config.observe_time), rows["first"]
        reward = torch.as_tensor(rows["reward"], dtype=torch.float32, device=self.device)
        found = self.respond(torch.as_tensor(current.history, device=self.device), reward, explore)
        current = current.add_reward(first, to_array(found["reward"]), self.config.gamma)
        if explore:
            current = current.hold_out(first, to_array(found["held_out"]))
        extras = {
            "discounted_return": current.discounted_return,
            "episode_return": current.episode_return,
            "held_out": current.held_out,
        }
        if self.config.observe_time:
            extras["obs"] = current.history[:, -1]
        return to_array(found["action"]), current, extras

    @captured
    @torch.no_grad()
    def respond(self, history: Tensor, reward: Tensor, explore: bool) -> Batch:
        """Returns columns (n,): `action`, and `reward` with outliers clipped.

        To explore, also `held_out`: whether an episode that begins now shall be held out.
        """
        found = {"reward": self.online.normaliser.clip_outliers(reward)}
        if explore:
            uniform = torch.rand(reward.shape, generator=self.act_rng, device=self.device)
            found["held_out"] = uniform < self.config.held_out_share
        return {**found, "action": self.choose(history, self.act_rng if explore else None)}

    def choose(self, history: Tensor, rng: torch.Generator | None) -> Tensor:
        """Returns one action for each of B histories.

        history: (B, 4, *O), the last four observations. rng: if given, the actions explore. Without
        `rng` they are greedy.
        """
        noise = None if rng is None else self.online.draw_noise(len(history), rng)
        best = self.online.mean(self.online(history, noise)[0]).argmax(-1)
        if rng is None:
            return best
        uniform = torch.rand(2, *best.shape, generator=rng, device=best.device)
        random_action = (uniform[0] * self.actions.size).long()
        return torch.where(uniform[1] < self.schedules.epsilon, random_action, best)

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        return Feedback(self.update_world(to_tensors(real.data, self.device)))

    @captured
    def update_world(self, rows: Batch) -> dict[str, Tensor]:
        """Takes one update of the world model on real windows (B, C + T, …); returns metrics."""
        one_hot = self.actions.encode(rows["action"])
        self.world.update_statistics(rows)
        loss, metrics = self.world.loss(rows, one_hot)
        metrics["grad_norm/world"] = self.world_optimizer.step(loss)
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        updates = self.world.normaliser.updates
        self.world_soft_update.step((1 / updates).clamp(min=self.config.slow_world))
        metrics |= self.world.update_held_out_error(self.slow_world, rows, one_hot, self.dream_rng)
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
        return self.roll_out(to_tensors(starts.data, self.device)["obs"])

    @captured
    @torch.no_grad()
    def roll_out(self, obs: Tensor) -> Batch:
        """Rolls the policy out in the world model from real rows; returns B dreams of H steps.

        obs: the observations of B windows of real rows, (B, T, *O); a dream starts at the last row
        of each window. The dreams are columns (B, C + 1 + H, …). Their first C + 1 rows are real: C
        rows of context, then the row from which the dream starts. H is `dream_horizon`. On a CPU,
        steps at which the world model's error on held-out episodes is too large are not computed:
        the last computed row is repeated.

        The column `weight` is 1 if the step after the row is trusted, else 0. Values are learned at
        rows of weight 1 only.
        """
        world, rng, horizon = self.slow_world, self.dream_rng, self.config.dream_horizon
        allowed = self.trusted_steps() * (self.schedules.steps >= self.config.dream_after)
        history = obs[:, -CONTEXT - 1 :]  # (B, 4, *O)
        observations = list(history.unbind(1))
        actions, rewards, terminals, disagreements = [], [], [], []
        for _ in range(steps_to_dream(allowed)):
            action = self.choose(history, rng)
            step = world.dream_step(history, self.actions.encode(action), rng)
            history = torch.cat([history[:, 1:], step.obs.unsqueeze(1)], 1)
            observations.append(step.obs)
            actions.append(action)
            rewards.append(step.reward)
            terminals.append(step.terminal)
            disagreements.append(step.disagreement)

        return {
            "obs": stack_steps(observations, CONTEXT + 1 + horizon),
            "action": F.pad(stack_steps(actions, horizon), (CONTEXT, 1)),
            "reward": F.pad(stack_steps(rewards, horizon), (CONTEXT + 1, 0)),
            **end_dreams(
                stack_steps(terminals, horizon),
                stack_steps(disagreements, horizon),
                self.config.max_disagreement * world.mean_disagreement,
                allowed,
                CONTEXT,
            ),
        }

    @torch.no_grad()
    def predict(self, window: Batch, context: int) -> Batch:
        """Predicts the rows after row `context - 1` of B real windows open-loop, by their actions.

        Window b is predicted by ensemble member b modulo the number of members.
        """
        order, back = by_turns(len(window["obs"]), self.config.members)
        obs, action = (
            torch.as_tensor(window[key])[order].to(self.device) for key in ("obs", "action")
        )
        # The first observation of an episode is repeated where a history lacks earlier ones.
        newest = torch.arange(context - CONTEXT - 1, context, device=self.device).clamp(min=0)
        history, steps = obs[:, newest], []
        for taken in self.actions.encode(action)[:, context - 1 : -1].unbind(1):
            steps.append(self.slow_world.dream_step(history, taken, rng=None))
            history = torch.cat([history[:, 1:], steps[-1].obs.unsqueeze(1)], 1)
        return {
            "obs": to_array(torch.stack([step.obs for step in steps], 1)[back]),
            "reward": to_array(torch.stack([step.reward for step in steps], 1)[back]),
            "terminal": to_array(torch.stack([step.terminal_prob for step in steps], 1)[back]),
        }

    # -------------------------------------------------------------------------------- values

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        assert real is not None
        further = {
            "relative_prob": relative_probability(real),
            "episode_stats": np.array(real.episode_stats, np.float32),
        }
        rows = to_tensors(real.data | further, self.device)
        dreamed = None if dreams is None else to_tensors(dreams, self.device)
        metrics, priority = self.update_policy(rows, dreamed)
        if not self.config.prioritized:
            return Feedback(metrics)
        return Feedback(metrics, {"priority": priority})

    @captured
    def update_policy(self, real: Batch, dreams: Batch | None) -> tuple[dict[str, Tensor], Tensor]:
        """Takes one update of the value network; returns metrics and new priorities (R,).

        real: columns of R windows of real rows, with `relative_prob` and `episode_stats` of
        `update_loss` as further columns. dreams: columns of dreams.
        """
        dreamed = None if dreams is None else self.sample_windows(dreams)
        noise = self.online.draw_noise(FORWARD_PASSES, self.policy_rng)
        loss, priority, metrics = self._update_loss(
            real, real["relative_prob"], real["episode_stats"], dreamed, noise
        )
        metrics["grad_norm/value"] = self.optimizer.step(loss, metrics["learn/lr"])
        metrics |= skipped_step_metrics("policy", self.optimizer)
        self.target_soft_update.step(self.config.slow_critic)
        return metrics, priority

    def update_loss(
        self,
        real: Batch,
        relative_prob: Tensor,
        episode_stats: Tensor,
        dreamed: tuple[Batch, Tensor] | None,
        noise: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the loss (a scalar), new priorities (R,) and metrics of one policy update.

        Also updates the running statistics, the unit in which values are predicted, and the
        schedules.

        - real: R windows of real rows.
        - relative_prob (R,): the sampling probability of each real window, divided by that of
          uniform sampling.
        - episode_stats (2,): the number of episodes so far, and the mean return of the last 100.
        - dreamed: D windows of dreams and their weights (D,); None if there are no dreams.
        - noise: standard normal numbers for the noisy layers, one row per forward pass; None if no
          layer is noisy.
        """
        config, schedules, normaliser = self.config, self.schedules, self.online.normaliser
        normaliser.update(real["obs"], real["reward"])
        self.update_value_unit(real["discounted_return"], real["reward"])
        weight = self.importance_weights(relative_prob)
        rows = {key: real[key] for key in COLUMNS}
        rows["reward"] = normaliser.clip_outliers(rows["reward"])
        inliers = normaliser.inliers(real["obs"])
        metrics = {"data/outliers": 1 - inliers.mean()}
        valid = inliers.amin(1)  # a window with an outlier counts 0
        rows, weight, counts = add_dreamed_windows(rows, weight * valid, valid, dreamed)
        if dreamed is not None:
            real_weight, dreamed_weight = weight[: len(valid)].sum(), weight[len(valid) :].sum()
            total_weight = dreamed_weight + real_weight
            metrics["dream/share"] = dreamed_weight / total_weight.clamp(min=1e-6)
        if config.curiosity:
            rows["reward"] = rows["reward"] + config.curiosity * self.curiosity_bonus(rows)

        losses, td_error, gate, value = self.td_losses(rows, noise)
        loss = value_loss = (weight * losses).sum() / counts.sum().clamp(min=1)
        if config.gate != "none":
            gate_loss = gate_regulariser(gate)
            loss = value_loss + config.gate_weight * gate_loss
            metrics |= {"loss/gate": gate_loss.detach(), **gate_metrics(gate.detach())}
        schedules.count_update(episode_stats)
        priority = (valid * td_error[: len(valid)] + PRIORITY_OFFSET) ** schedules.alpha
        metrics |= {
            "loss/value": value_loss.detach(),
            "explore/epsilon": schedules.epsilon,
            "explore/noisy_sigma": self.online.mean_sigma,
            "replay/alpha": schedules.alpha,
            "replay/beta": schedules.beta,
            "value/mean": value.mean() * self.online.unit,
            "value/unit": self.online.unit.clone(),
            "value/td_error": td_error.mean() * self.online.unit,
            "learn/lr": schedules.lr,
            "learn/mean_return": schedules.mean_return.clone(),
        }
        return loss, priority, metrics

    def sample_windows(self, dreams: Batch) -> tuple[Batch, Tensor]:
        """Samples D windows of C + n + 1 rows from dreams; returns them with weights (D,).

        A window consists of C rows of context, a trusted row (a dreamed row that the agent may
        learn from), and the n rows after it.
        """
        return sample_windows(
            dreams,
            COLUMNS,
            self.config.dreamed_windows,
            CONTEXT,
            self.config.n_step,
            self.policy_rng,
        )

    def td_losses(self, rows: Batch, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns losses, absolute TD errors, gate values and predicted values for B windows.

        rows: columns (B, C + n + 1, …), with C rows of context. noise: standard normal numbers for
        the noisy layers, one row per forward pass. The gate values have shape (B, F), the other
        results (B,). Values and TD errors are in units of the value network's `unit`.
        """
        online, noises = self.online, [None] * FORWARD_PASSES if noise is None else noise.split(1)
        reward, last, terminal = (rows[key][:, CONTEXT:] for key in ("reward", "last", "terminal"))
        rewards, steps, discount = n_step(reward / online.unit, last, terminal, self.config.gamma)
        histories = rows["obs"].unfold(1, CONTEXT + 1, 1).movedim(-1, 2)  # (B, n + 1, 4, *O)
        index = torch.arange(len(steps), device=steps.device)
        values, gate = online(histories[:, 0], noises[0])
        taken = values[index, rows["action"][:, CONTEXT]]  # (B, Z)
        with torch.no_grad():
            after = histories[index, steps]  # m steps later
            online_next = online(after, noises[1])[0]
            target_next = self.target(after, noises[2])[0]
        loss, td_error, value = double_q_loss(
            online.head, taken, online_next, target_next, rewards, discount
        )
        return loss, td_error, gate, value

    def importance_weights(self, relative_prob: Tensor) -> Tensor:
        """Returns the importance weights of R real windows, divided by the largest of them.

        relative_prob (R,): sampling probabilities divided by the uniform probability. Without
        prioritized sampling all weights are 1.
        """
        return importance_weights(
            relative_prob, self.schedules.beta if self.config.prioritized else 0.0
        )

    def curiosity_bonus(self, rows: Batch) -> Tensor:
        """Returns a bonus reward for each row of B windows: large where the world model is unsure.

        rows: columns (B, C + n + 1, …), with C rows of context; the result is (B, C + n + 1). The
        bonus is the disagreement of the world model's ensemble about the step to the row, divided
        by the mean disagreement on real rows. This ratio is clipped to at most 10, and multiplied
        by the root mean square reward.
        """
        world = self.slow_world
        disagreement = world.disagreement(rows["obs"], self.actions.encode(rows["action"]))
        relative = disagreement / world.mean_disagreement.clamp(min=1e-8)  # (B, n)
        bonus = relative.clamp(max=10) * self.online.normaliser.reward_rms
        return F.pad(bonus, (CONTEXT + 1, 0))

    @torch.no_grad()
    def update_value_unit(self, discounted_return: Tensor, reward: Tensor) -> None:
        """Enlarges the unit of values if the given rows contain the largest return so far.

        The networks predict returns divided by the unit. discounted_return, reward: columns of
        windows of real rows.
        """
        normaliser = self.online.normaliser
        largest = normaliser.largest_return(discounted_return, reward, self.config.gamma)
        unit = torch.maximum(self.online.unit, (largest / VALUE_RANGE).clamp(min=1e-3))
        for net in (self.online, self.target):
            net.set_unit(unit)


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Returns the tables of the replay that Gated Rainbow needs: real rows, and a queue of dreams.

    The table of real rows has a batch size, a window length and a sampling rate for each of its
    uses. Without dreams there is no queue.
    """
    stored = columns(spec, discounted_return=NUMBER, episode_return=NUMBER, held_out=FLAG)
    consumers = {
        "policy": Consumer(
            config.batch - config.dreamed_windows,
            config.n_step + 1,
            Prioritized() if config.prioritized else Uniform(),
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            context=CONTEXT,
            columns=(*COLUMNS, "discounted_return"),
        )
    }
    if config.has_world_model:
        consumers["world"] = Consumer(
            config.world_batch,
            config.world_window,
            samples_per_step=config.world_updates_per_step,
            context=CONTEXT,
            columns=(*COLUMNS, "held_out"),
        )
    if config.dreamed_windows:
        consumers["start"] = Consumer(
            config.dream_batch,
            samples_per_step=config.policy_updates_per_step,
            min_steps=config.warmup,
            context=CONTEXT,
            columns=("obs",),
        )
    real = TableSpec(config.capacity, stored, consumers, episode_return="episode_return")
    return {"real": real, "dream": QueueSpec(2)} if config.dreamed_windows else {"real": real}
