"""Rainbow in eager PyTorch, written like a single-file implementation, to compare ours with.

The structure is that of CleanRL's `rainbow_atari.py` (commit 1149db8).

A second variant, called vectorised, avoids the slow parts: noise is factorised, the projection is
one tensor operation, and the replay is ours. Both variants have the networks of Gated Rainbow
without its gate and normaliser.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import Array, Consumer, Sample, Space, TableSpec
from dreamfleet.replay_server import ReplayServer

ALPHA, BETA = 0.5, 0.4  # exponents of priorities, and of importance weights
EPSILON: Final = 1e-6  # smallest priority
CHUNK: Final = 256  # transitions added to our replay at once
COPY_EVERY: Final = 2_000  # updates; CleanRL: 8,000 steps with an update every 4 steps


@dataclass(frozen=True)
class Sizes:
    """Settings of the eager Rainbow: sizes of networks and replay, and settings of the learner."""

    inputs: int  # numbers in an observation history
    actions: int
    hidden: int
    atoms: int
    value_range: float  # atoms lie between -value_range and value_range
    sigma: float  # initial scale of the noise
    batch: int
    capacity: int
    n_step: int
    gamma: float
    lr: float


class Transition(NamedTuple):
    """A transition over one environment step, or over n steps.

    With n steps, `reward` is the discounted sum of n rewards, and `next_obs` comes after n steps.
    """

    obs: Array
    action: int
    reward: float
    next_obs: Array
    done: bool


def n_step_transitions(
    transitions: Iterable[Transition], n: int, gamma: float
) -> Iterator[Transition]:
    """Yields n-step transitions of one environment, made from its one-step transitions.

    transitions: one-step transitions in order of time. gamma: the discount. As in CleanRL, no
    n-step transition begins in the last n - 1 steps of an episode.
    """
    recent: deque[Transition] = deque(maxlen=n)
    for step in transitions:
        recent.append(step)
        if len(recent) == n:
            reward = 0.0
            for i, transition in enumerate(recent):
                reward += gamma**i * transition.reward
            yield Transition(recent[0].obs, recent[0].action, reward, step.next_obs, step.done)
        if step.done:
            recent.clear()


# ------------------------------------------------------------------------------ the network


class Noisy(nn.Module):
    """A linear layer of a noisy network: noise with a learned scale is added to weights and biases.

    factorised: the noise of a weight is a product of input noise and output noise. sigma: initial
    scale of the noise.
    """

    weight_noise: Tensor
    bias_noise: Tensor

    def __init__(self, fan_in: int, fan_out: int, sigma: float, factorised: bool) -> None:
        super().__init__()
        self.factorised = factorised
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((fan_out, fan_in), sigma * bound))
        self.bias = nn.Parameter(torch.empty(fan_out).uniform_(-bound, bound))
        self.bias_sigma = nn.Parameter(torch.full((fan_out,), sigma * bound))
        self.register_buffer("weight_noise", torch.zeros(fan_out, fan_in))
        self.register_buffer("bias_noise", torch.zeros(fan_out))

    def draw_noise(self) -> None:
        """Draws new noise for all weights and biases of this layer."""
        if self.factorised:
            fan_out, fan_in = self.weight.shape
            input_noise, output_noise = (
                noise.sign() * noise.abs().sqrt()
                for noise in (torch.randn(fan_in), torch.randn(fan_out))
            )
            torch.outer(output_noise, input_noise, out=self.weight_noise)
            self.bias_noise.copy_(output_noise)
        else:
            self.weight_noise.normal_()
            self.bias_noise.normal_()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.weight_sigma * self.weight_noise
        return F.linear(x, weight, self.bias + self.bias_sigma * self.bias_noise)


class Network(nn.Module):
    """Maps observation histories to probabilities of returns, as in Rainbow (dueling, C51).

    The input has the shape (B, inputs) for B histories. The output has the shape (B, A, Z) for A
    actions and Z atoms (possible returns). factorised: as in `Noisy`.
    """

    support: Tensor

    def __init__(self, sizes: Sizes, factorised: bool) -> None:
        super().__init__()
        hidden, atoms = sizes.hidden, sizes.atoms

        def body(fan_in: int) -> list[nn.Module]:
            norm = nn.LayerNorm(hidden, elementwise_affine=False)
            return [nn.Linear(fan_in, hidden), norm, nn.SiLU()]

        def head(size: int) -> nn.Sequential:
            half = hidden // 2
            return nn.Sequential(
                Noisy(hidden, half, sizes.sigma, factorised),
                nn.SiLU(),
                Noisy(half, size, sizes.sigma, factorised),
            )

        self.atoms = atoms
        self.body = nn.Sequential(*body(sizes.inputs), *body(hidden))
        self.value, self.advantage = head(atoms), head(sizes.actions * atoms)
        self.register_buffer(
            "support", torch.linspace(-sizes.value_range, sizes.value_range, atoms)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        value = self.value(features).view(-1, 1, self.atoms)
        advantage = self.advantage(features).view(len(x), -1, self.atoms)
        return F.softmax(value + advantage - advantage.mean(1, keepdim=True), -1)

    def draw_noise(self) -> None:
        """Draws new noise in all noisy layers of this network."""
        for layer in self.modules():
            if isinstance(layer, Noisy):
                layer.draw_noise()


# ------------------------------------------------------------------------------- the replays


class TransitionBatch(NamedTuple):
    """A batch of B transitions: observations have the shape (B, inputs), all other fields (B,)."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    done: Tensor
    weight: Tensor
    keys: Array  # under which priorities are updated


class SegmentTree:
    """A binary tree in an array, whose nodes hold the sum or the minimum of their two children.

    capacity: number of leaves. minimum: hold minimums, not sums.
    """

    def __init__(self, capacity: int, minimum: bool) -> None:
        self.size, self._minimum = 1 << (capacity - 1).bit_length(), minimum
        self.node = np.full(2 * self.size, np.inf if minimum else 0.0, np.float32)

    def set(self, index: int, value: float) -> None:
        """Sets the leaf `index` to `value`, and updates all nodes above this leaf."""
        at = index + self.size
        self.node[at] = value
        while at > 1:
            at //= 2
            left, right = self.node[2 * at], self.node[2 * at + 1]
            self.node[at] = min(left, right) if self._minimum else left + right

    def find(self, total: float) -> int:
        """Returns the first leaf at which the cumulative sum of the leaves reaches `total`.

        The tree must hold sums.
        """
        at = 1
        while at < self.size:
            at *= 2
            if total > self.node[at]:
                total -= self.node[at]
                at += 1
        return at - self.size


class TreeReplay:
    """A prioritized replay in Python that samples and updates one transition at a time."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        capacity = sizes.capacity
        self._obs = np.zeros((capacity, sizes.inputs), np.float32)
        self._next_obs = np.zeros_like(self._obs)
        self._action = np.zeros(capacity, np.int64)
        self._reward = np.zeros(capacity, np.float32)
        self._done = np.zeros(capacity, np.bool_)
        self._sum = SegmentTree(capacity, minimum=False)
        self._minimum = SegmentTree(capacity, minimum=True)
        self._capacity, self._batch = capacity, sizes.batch
        self._rng = np.random.default_rng(seed)
        self._count, self._max_priority = 0, 1.0

    def fill(self, transitions: Iterable[Transition]) -> None:
        for new in transitions:
            at = self._count % self._capacity
            self._obs[at], self._action[at], self._reward[at] = new.obs, new.action, new.reward
            self._next_obs[at], self._done[at] = new.next_obs, new.done
            self._set(at, self._max_priority**ALPHA)
            self._count += 1

    def sample(self) -> TransitionBatch:
        total = float(self._sum.node[1])
        width = total / self._batch  # of a stratum
        keys = [
            self._sum.find(self._rng.uniform(width * i, width * (i + 1)))
            for i in range(self._batch)
        ]
        prob = np.array([self._sum.node[key + self._sum.size] for key in keys]) / total
        weight = (min(self._count, self._capacity) * prob) ** -BETA
        return TransitionBatch(
            torch.from_numpy(self._obs[keys]),
            torch.from_numpy(self._action[keys]),
            torch.from_numpy(self._reward[keys]),
            torch.from_numpy(self._next_obs[keys]),
            torch.from_numpy(self._done[keys]),
            torch.from_numpy((weight / weight.max()).astype(np.float32)),
            np.array(keys),
        )

    def update(self, keys: Array, errors: Array) -> None:
        priorities = np.abs(errors) + EPSILON
        self._max_priority = max(self._max_priority, float(priorities.max()))
        for key, priority in zip(keys, priorities, strict=True):
            self._set(int(key), priority**ALPHA)

    def _set(self, at: int, weight: float) -> None:
        self._sum.set(at, weight)
        self._minimum.set(at, weight)


class OurReplay:
    """The replay of this project, used with a whole transition in each row.

    A row holds both observations of the transition. A sample therefore needs single rows only, and
    no windows of consecutive rows.
    """

    def __init__(self, sizes: Sizes, seed: int) -> None:
        flag, number = Space((), "bool"), Space((), "float32")
        history = Space((sizes.inputs,), "float32")
        flags = dict.fromkeys(("first", "last", "terminal", "done"), flag)
        columns = {"obs": history, "action": Space((), "int64", sizes.actions), **flags}
        columns |= {"reward": number, "next_obs": history}
        read = ("obs", "action", "reward", "next_obs", "done")
        consumer = Consumer(sizes.batch, selector=Prioritized(ALPHA), columns=read)
        spec = TableSpec(sizes.capacity, columns, {"learner": consumer})
        self._server = ReplayServer({"real": spec}, seed)

    def fill(self, transitions: Iterable[Transition]) -> None:
        columns = zip(*transitions, strict=True)
        obs, action, reward, next_obs, done = (np.array(column) for column in columns)
        rows = {"obs": obs, "action": action, "reward": reward.astype(np.float32)}
        rows |= {"next_obs": next_obs, "done": done, "first": np.arange(len(obs)) == 0}
        rows |= dict.fromkeys(("last", "terminal"), np.zeros(len(obs), np.bool_))
        for begin in range(0, len(obs), CHUNK):
            chunk = {name: values[None, begin : begin + CHUNK] for name, values in rows.items()}
            assert self._server.add("real", chunk, np.zeros(1, np.int64))

    def sample(self) -> TransitionBatch:
        sample = self._server.sample("real", "learner")
        assert isinstance(sample, Sample)
        data = {name: torch.from_numpy(values[:, 0]) for name, values in sample.data.items()}
        weight = (sample.size * sample.prob) ** -BETA
        scaled = torch.from_numpy((weight / weight.max()).astype(np.float32))
        return TransitionBatch(**data, weight=scaled, keys=sample.keys)

    def update(self, keys: Array, errors: Array) -> None:
        self._server.update("real", keys, {"priority": np.abs(errors) + EPSILON})


# ------------------------------------------------------------------------------- the learner


class EagerLearner:
    """A Rainbow learner in eager PyTorch. Each call of the object does one update.

    vectorised: use factorised noise, and project target distributions without a loop over the
    batch.
    """

    def __init__(self, sizes: Sizes, replay: TreeReplay | OurReplay, vectorised: bool) -> None:
        self.sizes, self.replay, self.vectorised = sizes, replay, vectorised
        self.online = Network(sizes, factorised=vectorised)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=sizes.lr, eps=1.5e-4)
        self.updates = 0

    def __call__(self) -> None:
        self.online.draw_noise()
        self.target.draw_noise()
        data = self.replay.sample()
        with torch.no_grad():
            target = self.targets(data)
        taken = self.online(data.obs)[torch.arange(len(data.action)), data.action]  # (B, Z)
        loss = -(target * taken.clamp(1e-5, 1 - 1e-5).log()).sum(-1)  # (B,)
        self.replay.update(data.keys, loss.detach().numpy())
        self.optimizer.zero_grad()
        (loss * data.weight).mean().backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % COPY_EVERY == 0:
            self.target.load_state_dict(self.online.state_dict())

    def targets(self, data: TransitionBatch) -> Tensor:
        """Returns the target distributions of a batch of B transitions, with shape (B, Z).

        Each row has the probabilities of Z atoms (possible returns) for the action that was taken.
        """
        support = self.online.support
        best = (self.online(data.next_obs) * support).sum(-1).argmax(-1)  # double Q-learning
        following = self.target(data.next_obs)[torch.arange(len(best)), best]
        discount = self.sizes.gamma**self.sizes.n_step * (1 - data.done.float())
        moved = data.reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
        place = (moved.clamp(support[0], support[-1]) - support[0]) / (support[1] - support[0])
        place = place.clamp(0, len(support) - 1)
        below, above = place.floor().long(), place.ceil().long()
        to_below, to_above = (
            (above + (below == above) - place) * following,
            (place - below) * following,
        )
        target = torch.zeros_like(following)
        if self.vectorised:
            return target.scatter_add_(-1, below, to_below).scatter_add_(-1, above, to_above)
        for i in range(len(target)):
            target[i].index_add_(0, below[i], to_below[i])
            target[i].index_add_(0, above[i], to_above[i])
        return target
