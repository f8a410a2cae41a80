"""Barlow Dreamer: a recurrent world model without a decoder, and a policy that dreams in it.

The world model (`learn_world`) learns from windows of real rows. At row t, o is the observation, a
the action, r the reward that arrives with o:

    embedding    e_t      = encoder(o_t)
    recurrence   h_t      = GRU(h_{t-1}, z_{t-1}, a_{t-1})     h and z are 0 before an episode
    posterior    z_t    ~ q(z_t | h_t, e_t)                    S one-hot vectors of K classes
    prior        z_t    ~ p(z_t | h_t)
    heads        reward r_t, continue c_t                      from the features (z_t, h_t)
    objective    what the features must tell about e_t         Barlow Twins, without a decoder

The loss is KL(sg q ‖ p) + 0.1 · KL(q ‖ sg p), each at least 1 nat, the cross-entropies of reward
and continue, the objective, and the critic's loss on the real rows (sg: no gradient).

The state before a window is the stored state of the row before it. New states are written back to
their rows, so the stored states follow the world model.

A dream (`dream`) begins at a state of a window that the world model has just learned from. It takes
H steps with the policy's actions and states from the prior. No gradient passes through a dream.

Actor and critic (`learn_policy`) learn from dreams. The critic learns the distribution of λ-returns
and is pulled towards its slow copy. The actor maximises, by REINFORCE, the advantage divided by the
range of returns, with an entropy bonus. The critic also learns λ-returns of the real rows, which
bootstrap from the returns of the dreams that begin there.

Sources: `DecoderFreeMiniDreamer` (seed project 004); DreamerV3 (Hafner et al. 2025); R2-Dreamer
(2026) for the objective; Barlow Twins (Zbontar et al. 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamfleet.agents.barlow_dreamer.behaviour import Behaviour
from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.observations import Decoder
from dreamfleet.agents.barlow_dreamer.planning import plan
from dreamfleet.agents.barlow_dreamer.policies import action_kind
from dreamfleet.agents.barlow_dreamer.probe import Probe
from dreamfleet.agents.barlow_dreamer.world import WorldLoss, WorldModel, joined
from dreamfleet.agents.blocks.arrays import to_array, to_tensors
from dreamfleet.agents.blocks.captured import captured
from dreamfleet.agents.blocks.device import make_rng, resolve_device
from dreamfleet.agents.blocks.laprop import LaProp
from dreamfleet.agents.blocks.masked_mean import masked_mean
from dreamfleet.agents.blocks.normaliser import ReturnRange
from dreamfleet.agents.blocks.optimizer import skipped_step_metrics
from dreamfleet.agents.blocks.returns import retrace
from dreamfleet.agents.blocks.rows import columns
from dreamfleet.agents.blocks.rssm import Cell, RSSMState
from dreamfleet.agents.blocks.soft_update import SoftUpdate
from dreamfleet.agents.blocks.two_hot import LARGEST_NUMBER
from dreamfleet.agents.blocks.weight_groups import GroupState, WeightGroups
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


class BarlowDreamer(WeightGroups):
    """The Barlow Dreamer agent, for all kinds of observations and actions."""

    Config: TypeAlias = Config
    act_groups = ("world", "policy")
    # Settings that an evaluation may change, as they only concern acting.
    act_settings = ("plan", "plan_candidates", "plan_rounds", "plan_horizon")

    def __init__(self, config: Config, spec: EnvSpec, seed: int, device: str) -> None:
        device = resolve_device(device)
        self.config, self.spec, self.device = config, spec, device
        self.dtype = getattr(torch, config.precision)
        self.tables = tables(config, spec)
        self.actions = action_kind(spec.action)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights
            self.world = WorldModel(config, spec, self.actions.size).to(device, self.dtype)
            features = self.world.rssm.features
            self.behaviour = Behaviour(config, features, self.actions)
            self.probe = Probe(config, spec, features).to(device) if config.probe else None
        self.behaviour.to(device, self.dtype)
        if config.compile:
            self.world.cell = Cell.compiled(device)
        self.actor, self.critic = self.behaviour.actor, self.behaviour.critic
        # In 16 bits, the small steps of the moving average would be lost.
        self.slow_critic = copy.deepcopy(self.critic).float().requires_grad_(False)
        self.return_range = ReturnRange(config.return_range_rate).to(device)
        rule = (config.lr, config.max_grad_ratio, config.lr_warmup)
        self.world_optimizer = LaProp(self.world, *rule)
        self.policy_optimizer = LaProp(self.behaviour, *rule)
        self.probe_optimizer = None if self.probe is None else self.probe.optimizer()
        self.critic_soft_update = SoftUpdate(self.slow_critic, self.critic)
        self.act_rng = make_rng(seed, device)
        self.world_rng = make_rng(seed + 1, device)
        probe_net = {} if self.probe is None else {"probe": self.probe}
        probe_optimizer = {"probe": self.probe_optimizer} if self.probe_optimizer else {}
        self.groups = {
            "world": GroupState(
                nets={"world": self.world, **probe_net},
                optimizers={"world": self.world_optimizer, **probe_optimizer},
                rngs={"world": self.world_rng},
                published="world",
            ),
            "policy": GroupState(
                nets={
                    "behaviour": self.behaviour,
                    "slow_critic": self.slow_critic,
                    "return_range": self.return_range,
                },
                optimizers={"policy": self.policy_optimizer},
                rngs={"act": self.act_rng},
                published="behaviour",
            ),
        }

    # --------------------------------------------------------------------------------- acting

    def initial_state(self, n: int) -> State:
        state = self.world.rssm.initial(n)
        return (*state, state.deter.new_zeros(n, self.actions.size))  # the last action, encoded

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        seen = self.tensors({name: rows[name] for name in (*self.world.encoder.names, "first")})
        respond = self.respond_planned if self.config.plan else self.respond
        action, state, stored = respond(seen, state, explore)
        return to_array(action), state, {name: to_array(value) for name, value in stored.items()}

    @captured
    @torch.no_grad()
    def respond(self, rows: Batch, state: State, explore: bool) -> tuple[Tensor, State, Batch]:
        """Returns the policy's actions, the next state of acting, and the states to store.

        rows: columns (n, …). The actions are sampled to explore; otherwise they are the most
        probable ones.
        """
        now = self.seen(rows, state, explore)
        policy = self.actions.policy(self.actor(now.features), self.act_rng)
        action = self.actions.inside(policy.sampled[0] if explore else policy.mode)
        return action, (*now, self.encode(action)), self.stored(now)

    @torch.no_grad()
    def respond_planned(
        self, rows: Batch, state: State, explore: bool
    ) -> tuple[Tensor, State, Batch]:
        """Returns what `respond` does, with planned actions.

        To explore, the actions are drawn near the plan; otherwise they are the plan's mean.
        """
        now = self.seen(rows, state, explore)
        rng = self.act_rng if explore else make_rng(0, self.device)  # greedy: the same every time
        mean, deviation = plan(self.config, self.world, self.behaviour, self.actions, now, rng)
        encoded = self.actions.near(mean, deviation, rng) if explore else mean
        action = self.actions.decode(encoded)
        return action, (*now, self.encode(action)), self.stored(now)

    def seen(self, rows: Batch, state: State, explore: bool) -> RSSMState:
        """Returns the states of n rows, given the states of acting at the rows before."""
        deter, stoch, action = state
        noise = self.noise(len(action), 1, self.act_rng if explore else None)
        windows = {name: value.unsqueeze(1) for name, value in rows.items()}
        before = RSSMState(deter, stoch)
        states, _, _ = self.world.observe(windows, action.unsqueeze(1), before, noise)
        return RSSMState(states.deter[:, 0], states.stoch[:, 0])

    @torch.no_grad()
    def predict(self, window: Batch, context: int) -> Batch:
        """Predicts the rows `context` … T - 1 of real windows open-loop, from the rows before.

        window: all columns of the replay (B, T, …). At the first row, `deter` is the stored one.
        Samples are the most probable classes. Returns columns (B, T - context, …): `reward`,
        `terminal` (a probability), `kl` (of the posterior, which sees the row, from the prediction;
        in nats) and, with `agent.probe` or the objective `reconstruction`, the observation and
        `posterior_…`, the same decoded from the posterior.
        """
        rows, world, rssm = self.tensors(window), self.world, self.world.rssm
        action, embed = self.encode(rows["action"]), world.encoder(rows)
        b, t = rows["reward"].shape
        noise, deter = self.noise(b, t, None), rows["deter"][:, 0].to(self.dtype)
        stoch = rssm.sample(rssm.posterior_logits(deter, embed[:, 0]), noise[:, 0])
        first = rows["first"][:, 1:].to(self.dtype)
        begin = RSSMState(deter, stoch)
        seen, logits = rssm.observe(embed[:, 1:], action[:, :-1], first, begin, noise[:, 1:])
        pairs = zip(begin, seen, strict=True)
        posterior = RSSMState(*(torch.cat([one.unsqueeze(1), more], 1) for one, more in pairs))
        state = RSSMState(*(part[:, context - 1] for part in posterior))
        states = []
        for step in range(context, action.shape[1]):
            state = rssm.imagine(state, action[:, step - 1], noise[:, 0])
            states.append(state)
        dreamed = RSSMState(*(torch.stack(part, 1) for part in zip(*states, strict=True)))
        features = dreamed.features
        predicted = {
            "reward": world.rewards(features),
            "terminal": 1 - world.continues(features),
            "kl": rssm.kl(logits[:, context - 1 :], rssm.prior_logits(dreamed.deter)),
        }
        if (decoder := self.decoder) is not None:
            predicted |= decoder(features.float())
            seen = decoder(posterior.features[:, context:].float())
            predicted |= {f"posterior_{name}": value for name, value in seen.items()}
        return {name: to_array(value) for name, value in predicted.items()}

    @property
    def decoder(self) -> Decoder | None:
        """Returns the decoder of this agent: the probe, or the objective's; None without."""
        if self.probe is not None:
            return self.probe.decoder
        return getattr(self.world.objective, "decoder", None)

    def tensors(self, batch: Batch) -> Batch:
        """Returns the columns as tensors on this agent's device."""
        return to_tensors(batch, self.device)

    def encode(self, action: Tensor) -> Tensor:
        """Returns encoded actions (…, A) in the precision of the networks."""
        return self.actions.encode(action).to(self.dtype)

    def noise(self, b: int, t: int, rng: torch.Generator | None) -> Tensor:
        """Returns numbers (b, t, S, K) from the exponential distribution.

        Without `rng` they are 1, which makes the most probable class the sample.
        """
        sizes = self.config.sizes
        ones = torch.ones(b, t, sizes.groups, sizes.classes, device=self.device)
        return ones if rng is None else ones.exponential_(generator=rng)

    def stored(self, states: RSSMState) -> Batch:
        """Returns states as the replay stores them: float16, and indices of classes as bytes."""
        return {
            "deter": states.deter.to(torch.float16),
            "stoch": states.stoch.argmax(-1).to(torch.uint8),
        }

    def restored(self, rows: Batch) -> RSSMState:
        """Returns the states of rows from their columns `deter` and `stoch`."""
        return RSSMState(rows["deter"].to(self.dtype), self.world.rssm.one_hot(rows["stoch"]))

    # ---------------------------------------------------------------------------- world model

    def learn_world(self, real: Sample) -> Feedback:
        metrics, states, priority = self.update_world(self.tensors(real.data))
        return Feedback(metrics, {**states, "priority": priority})

    @captured
    def update_world(self, rows: Batch) -> tuple[dict[str, Tensor], Batch, Tensor]:
        """Takes one update of the world model.

        Returns metrics, the new states of the rows as the replay stores them, and the new
        priorities (B,) of the windows.

        rows: B windows, columns (B, 1 + T, …); the states `deter` and `stoch` are of the first row
        only. The first row, before the window, serves for its state and its action.
        """
        results: list[WorldLoss] = []

        def losses() -> Iterator[Tensor]:
            for part in split(rows, self.config.accumulate):
                result = self.world_loss(part)
                results.append(result.detached())
                yield torch.stack([*result.terms.values()]).sum() / self.config.accumulate

        grad_norm = self.world_optimizer.step(losses())
        result = joined(results)
        metrics = {**result.terms, **result.metrics, "grad_norm/world": grad_norm}
        metrics |= skipped_step_metrics("world", self.world_optimizer)
        if self.probe is not None and self.probe_optimizer is not None:
            loss = self.probe.loss(result.states, self.window(rows))
            metrics["loss/probe"] = loss.detach()
            self.probe_optimizer.step(loss)
        return metrics, self.stored(result.states), result.priority

    def world_loss(self, rows: Batch) -> WorldLoss:
        """Returns the loss of the world model on B windows, and of the critic on the same rows.

        The critic's loss trains the features of the world model here, not the critic.
        """
        window = self.window(rows)
        noise = self.noise(len(rows["action"]), self.config.window, self.world_rng)
        action = self.encode(rows["action"])
        result = self.world.loss(window, action, self.restored(rows), noise)
        features = result.states.features
        logits = self.critic(features)
        slow = self.slow_critic.mean(features.detach())
        cont = (~window["terminal"]).float()
        bootstrap = self.critic.number.mean(logits.detach())
        loss = self.replay_value_loss(logits, slow, bootstrap, {**window, "cont": cont})
        result.terms["loss/replay_value"] = self.config.replay_value_weight * loss
        return result

    def window(self, rows: Batch) -> Batch:
        """Returns the columns of the rows after the first: (B, 1 + T, …) → (B, T, …)."""
        names = (*self.world.encoder.names, "reward", "first", "last", "terminal")
        return clip_rewards({name: rows[name][:, 1:] for name in names})

    # --------------------------------------------------------------------------------- dreams

    def dream(self, starts: Sample) -> Batch:
        """Rolls the policy out from the last rows of B windows, `starts`.

        Returns dreams (B', H + 1, …), one for each of the last `dream_starts` rows of each window.
        Row 0 of a dream is the real row. The columns are `deter`, `stoch`, `action`, `reward`,
        `cont` (the probability that the episode continues at the row) and `last` (of row 0).
        """
        n = self.config.starts_per_window
        rows = clip_rewards(self.tensors({name: starts.data[name] for name in DREAMED}))
        return self.roll_out({name: rows[name][:, -n:].flatten(0, 1) for name in DREAMED})

    @captured
    @torch.no_grad()
    def roll_out(self, rows: Batch) -> Batch:
        """Returns dreams (B', H + 1, …) that begin at real rows (B', …)."""
        rng, horizon = self.world_rng, self.config.dream_horizon
        states, actions = [self.restored(rows)], []
        noise = self.noise(len(rows["reward"]), horizon, rng).unbind(1)
        for step in range(horizon + 1):
            action = self.actions.policy(self.actor(states[-1].features), rng).sampled[0]
            actions.append(action)
            if step < horizon:
                inputs = states[-1], self.encode(action), noise[step]
                states.append(self.world.rssm.imagine(*inputs, self.world.cell))
        dreamed = RSSMState(*(torch.stack(part, 1) for part in zip(*states, strict=True)))
        features = dreamed.features[:, 1:]
        reward = torch.cat([rows["reward"].unsqueeze(1), self.world.rewards(features)], 1)
        real_cont = (~rows["terminal"]).float().unsqueeze(1)
        return {
            "deter": dreamed.deter,
            "stoch": dreamed.stoch.argmax(-1).to(torch.uint8),
            "action": torch.stack(actions, 1),
            "reward": reward,
            "cont": torch.cat([real_cont, self.world.continues(features)], 1),
            "last": F.pad(rows["last"].unsqueeze(1), (0, horizon)),
        }

    # ------------------------------------------------------------------------ actor and critic

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        assert dreams is not None
        return Feedback(self.update_policy(self.tensors(dreams)))

    @captured
    def update_policy(self, dreams: Batch) -> dict[str, Tensor]:
        """Takes one update of actor and critic on dreams (B', H + 1, …). Returns metrics."""
        config, number = self.config, self.critic.number
        features = self.restored(dreams).features
        logits = self.critic(features)
        with torch.no_grad():
            value, slow = number.mean(logits), self.slow_critic.mean(features)
            discount = config.gamma * dreams["cont"]
            trace = torch.full_like(value, config.lam)
            returns = retrace(dreams["reward"], discount, value, value, trace)  # (B', H)
            weight = (discount.cumprod(1) / config.gamma)[:, :-1]
            return_range = self.return_range.update(returns, weight).clamp(min=1)
            advantage = (returns - value[:, :-1]) / return_range
        policy = self.actions.policy(self.actor(features[:, :-1]), None)
        log_prob, entropy = policy.log_prob(dreams["action"][:, :-1]), policy.entropy()
        losses = {
            "loss/policy": (weight * actor_loss(log_prob, advantage, entropy, config)).mean(),
            "loss/critic": (weight * self.value_loss(logits[:, :-1], returns, slow[:, :-1])).mean(),
            "loss/critic_replay": config.replay_value_weight
            * self.replay_value_loss(
                self.by_window(logits[:, 0]),
                self.by_window(slow[:, 0]),
                self.by_window(returns[:, 0]),
                {name: self.by_window(dreams[name][:, 0]) for name in ("reward", "cont", "last")},
            ),
        }
        metrics = {name: loss.detach() for name, loss in losses.items()} | {
            "grad_norm/policy": self.policy_optimizer.step(torch.stack([*losses.values()]).sum()),
            "policy/entropy": masked_mean(entropy.detach(), weight),
            "value/mean": value.mean(),
            "value/range": return_range,
            "dream/reward": dreams["reward"][:, 1:].mean(),
            "dream/continue": dreams["cont"][:, 1:].mean(),
        }
        metrics |= skipped_step_metrics("policy", self.policy_optimizer)
        self.critic_soft_update.step(config.slow_critic)
        return metrics

    def by_window(self, value: Tensor) -> Tensor:
        """Returns the first rows of dreams (B', …) as the windows they come from, (B, T, …)."""
        return value.unflatten(0, (-1, self.config.starts_per_window))

    def replay_value_loss(
        self, logits: Tensor, slow: Tensor, bootstrap: Tensor, rows: Batch
    ) -> Tensor:
        """Returns the loss of the critic on windows of real rows, a scalar.

        logits (B, T, Z): of the critic. slow (B, T): values of the slow critic. bootstrap (B, T):
        the values from which λ-returns bootstrap. rows: `reward`, `last`, and `cont`, which is 1
        unless the episode terminates at the row.
        """
        inside = (~rows["last"]).float()
        discount, trace = self.config.gamma * rows["cont"], self.config.lam * inside
        returns = retrace(rows["reward"], discount, bootstrap, bootstrap, trace)
        return (inside[:, :-1] * self.value_loss(logits[:, :-1], returns, slow[:, :-1])).mean()

    def value_loss(self, logits: Tensor, returns: Tensor, slow: Tensor) -> Tensor:
        """Returns the critic's loss (…) towards returns (…), and towards its slow copy's (…)."""
        number = self.critic.number
        towards_slow = number.loss(logits, slow)
        return number.loss(logits, returns) + self.config.slow_critic_weight * towards_slow


def actor_loss(log_prob: Tensor, advantage: Tensor, entropy: Tensor, config: Config) -> Tensor:
    """Returns the loss of the actor by REINFORCE, with an entropy bonus; all are (B', H)."""
    return -(log_prob * advantage + config.entropy_weight * entropy)


def split(rows: Batch, parts: int) -> list[Batch]:
    """Splits a batch of windows into equal parts."""
    columns_of = {name: column.chunk(parts) for name, column in rows.items()}
    return [{name: chunks[i] for name, chunks in columns_of.items()} for i in range(parts)]


def clip_rewards(rows: Batch) -> Batch:
    """Returns the rows, with rewards clipped to the numbers that the heads can represent."""
    return {**rows, "reward": rows["reward"].clamp(-LARGEST_NUMBER, LARGEST_NUMBER)}


DREAMED = ("deter", "stoch", "reward", "last", "terminal")  # columns of the starts of dreams


def tables(config: Config, spec: EnvSpec) -> dict[str, TableSpec | QueueSpec]:
    """Returns the tables of the replay: real rows with their latents, and a queue of dreams."""
    sizes = config.sizes
    latents = {
        "deter": Space((sizes.deter,), "float16"),
        "stoch": Space((sizes.groups,), "uint8"),
    }
    stored = columns(spec, **latents)
    world = Consumer(
        config.batch,
        config.window,
        config.selector,
        samples_per_step=config.updates_per_step,
        min_steps=config.warmup,
        context=1,
        first_columns=tuple(latents),
    )
    start = Consumer(
        config.batch,
        config.window,
        config.selector,
        samples_per_step=config.updates_per_step,
        min_steps=config.warmup,
        context=1,
        columns=DREAMED,
        shares="world",
    )
    real = TableSpec(config.capacity, stored, {"world": world, "start": start})
    return {"real": real, "dream": QueueSpec(1)}
