"""Rainbow as one writes it in a single file of eager PyTorch, to compare our learner with.

The structure is that of CleanRL's `rainbow_atari.py` (commit 1149db8): noisy layers with an ε for
every weight, transitions of n steps that hold both observations, segment trees walked sample by
sample in Python, a projection item by item, plain Adam, a hard copy to the target network. `Tidy`
is the same learner without what is slow about it: factorised noise, the projection as one
operation, and our replay. Networks are those of Gated Rainbow without its gate and normaliser.
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

ALPHA, BETA, EPSILON = 0.5, 0.4, 1e-6  # of priorities, of weights; the least priority
CHUNK: Final = 256  # transitions added to our replay at once
COPY_EVERY: Final = 2_000  # updates: CleanRL's 8,000 steps, of which every fourth is one


@dataclass(frozen=True)
class Sizes:
    """Of the networks and of what is learned from."""

    inputs: int  # numbers of a history
    actions: int
    hidden: int
    atoms: int
    span: float  # atoms lie within ± this
    sigma: float
    batch: int
    capacity: int
    n: int
    gamma: float
    lr: float


class Step(NamedTuple):
    """One transition: of one step as it is played, of n as it is stored."""

    obs: Array
    action: int
    reward: float
    next_obs: Array
    done: bool


def of_n_steps(steps: Iterable[Step], n: int, gamma: float) -> Iterator[Step]:
    """Transitions of n steps of one environment; what is left at an episode's end is dropped."""
    recent: deque[Step] = deque(maxlen=n)
    for step in steps:
        recent.append(step)
        if len(recent) == n:
            reward = 0.0
            for i, one in enumerate(recent):
                reward += gamma**i * one.reward
            yield Step(recent[0].obs, recent[0].action, reward, step.next_obs, step.done)
        if step.done:
            recent.clear()


# ------------------------------------------------------------------------------ the network


class Noisy(nn.Module):
    """A linear layer with noise on its weights: an ε for every weight, or one of rank one."""

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

    def draw(self) -> None:
        if self.factorised:
            fan_out, fan_in = self.weight.shape
            entering, leaving = (
                noise.sign() * noise.abs().sqrt()
                for noise in (torch.randn(fan_in), torch.randn(fan_out))
            )
            torch.outer(leaving, entering, out=self.weight_noise)
            self.bias_noise.copy_(leaving)
        else:
            self.weight_noise.normal_()
            self.bias_noise.normal_()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.weight_sigma * self.weight_noise
        return F.linear(x, weight, self.bias + self.bias_sigma * self.bias_noise)


class Network(nn.Module):
    """Histories (B, inputs) → the probabilities of atoms (B, A, Z)."""

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
        self.register_buffer("support", torch.linspace(-sizes.span, sizes.span, atoms))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        value = self.value(features).view(-1, 1, self.atoms)
        advantage = self.advantage(features).view(len(x), -1, self.atoms)
        return F.softmax(value + advantage - advantage.mean(1, keepdim=True), -1)

    def draw(self) -> None:
        for layer in self.modules():
            if isinstance(layer, Noisy):
                layer.draw()


# ------------------------------------------------------------------------------- the replays


class Drawn(NamedTuple):
    """A batch: observations (B, inputs), the rest (B,), and the keys of its priorities."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    done: Tensor
    weight: Tensor
    keys: Array


class Tree:
    """A segment tree: each node holds the sum, or the least, of the two below it."""

    def __init__(self, capacity: int, least: bool) -> None:
        self.size, self._least = 1 << (capacity - 1).bit_length(), least
        self.node = np.full(2 * self.size, np.inf if least else 0.0, np.float32)

    def set(self, index: int, value: float) -> None:
        at = index + self.size
        self.node[at] = value
        while at > 1:
            at //= 2
            one, other = self.node[2 * at], self.node[2 * at + 1]
            self.node[at] = min(one, other) if self._least else one + other

    def find(self, mass: float) -> int:
        """The leaf at which the sum over leaves passes `mass`."""
        at = 1
        while at < self.size:
            at *= 2
            if mass > self.node[at]:
                mass -= self.node[at]
                at += 1
        return at - self.size


class TreeReplay:
    """Transitions with priorities, drawn and updated one by one."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        capacity = sizes.capacity
        self._obs = np.zeros((capacity, sizes.inputs), np.float32)
        self._next_obs = np.zeros_like(self._obs)
        self._action = np.zeros(capacity, np.int64)
        self._reward = np.zeros(capacity, np.float32)
        self._done = np.zeros(capacity, np.bool_)
        self._sum, self._least = Tree(capacity, least=False), Tree(capacity, least=True)
        self._capacity, self._batch = capacity, sizes.batch
        self._random = np.random.default_rng(seed)
        self._count, self._largest = 0, 1.0

    def fill(self, steps: Iterable[Step]) -> None:
        for step in steps:
            at = self._count % self._capacity
            self._obs[at], self._action[at], self._reward[at] = step.obs, step.action, step.reward
            self._next_obs[at], self._done[at] = step.next_obs, step.done
            self._set(at, self._largest**ALPHA)
            self._count += 1

    def sample(self) -> Drawn:
        total = float(self._sum.node[1])
        share = total / self._batch
        keys = [
            self._sum.find(self._random.uniform(share * i, share * (i + 1)))
            for i in range(self._batch)
        ]
        prob = np.array([self._sum.node[key + self._sum.size] for key in keys]) / total
        weight = (min(self._count, self._capacity) * prob) ** -BETA
        return Drawn(
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
        self._largest = max(self._largest, float(priorities.max()))
        for key, priority in zip(keys, priorities, strict=True):
            self._set(int(key), priority**ALPHA)

    def _set(self, at: int, mass: float) -> None:
        self._sum.set(at, mass)
        self._least.set(at, mass)


class OurReplay:
    """The same transitions in our replay, as rows that need no others: less than ours gathers."""

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

    def fill(self, steps: Iterable[Step]) -> None:
        obs, action, reward, next_obs, done = (np.array(of) for of in zip(*steps, strict=True))
        rows = {"obs": obs, "action": action, "reward": reward.astype(np.float32)}
        rows |= {"next_obs": next_obs, "done": done, "first": np.arange(len(obs)) == 0}
        rows |= dict.fromkeys(("last", "terminal"), np.zeros(len(obs), np.bool_))
        for begin in range(0, len(obs), CHUNK):
            chunk = {name: of[None, begin : begin + CHUNK] for name, of in rows.items()}
            assert self._server.add("real", chunk, np.zeros(1, np.int64))

    def sample(self) -> Drawn:
        sample = self._server.sample("real", "learner")
        assert isinstance(sample, Sample)
        data = {name: torch.from_numpy(of[:, 0]) for name, of in sample.data.items()}
        weight = (sample.size * sample.prob) ** -BETA
        given = torch.from_numpy((weight / weight.max()).astype(np.float32))
        return Drawn(**data, weight=given, keys=sample.keys)

    def update(self, keys: Array, errors: Array) -> None:
        self._server.update("real", keys, np.abs(errors) + EPSILON)


# ------------------------------------------------------------------------------- the learner


class Learner:
    """One call, one update. `tidy`: see the module."""

    def __init__(self, sizes: Sizes, replay: TreeReplay | OurReplay, tidy: bool) -> None:
        self.sizes, self.replay, self.tidy = sizes, replay, tidy
        self.online = Network(sizes, factorised=tidy)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=sizes.lr, eps=1.5e-4)
        self.updates = 0

    def __call__(self) -> None:
        self.online.draw()
        self.target.draw()
        data = self.replay.sample()
        with torch.no_grad():
            wanted = self.targets(data)
        taken = self.online(data.obs)[torch.arange(len(data.action)), data.action]  # (B, Z)
        loss = -(wanted * taken.clamp(1e-5, 1 - 1e-5).log()).sum(-1)  # (B,)
        self.replay.update(data.keys, loss.detach().numpy())
        self.optimizer.zero_grad()
        (loss * data.weight).mean().backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % COPY_EVERY == 0:
            self.target.load_state_dict(self.online.state_dict())

    def targets(self, data: Drawn) -> Tensor:
        """The distribution that the action taken should have: (B, Z)."""
        support = self.online.support
        best = (self.online(data.next_obs) * support).sum(-1).argmax(-1)  # double Q-learning
        following = self.target(data.next_obs)[torch.arange(len(best)), best]
        discount = self.sizes.gamma**self.sizes.n * (1 - data.done.float())
        moved = data.reward.unsqueeze(-1) + discount.unsqueeze(-1) * support
        place = (moved.clamp(support[0], support[-1]) - support[0]) / (support[1] - support[0])
        place = place.clamp(0, len(support) - 1)
        below, above = place.floor().long(), place.ceil().long()
        to_below, to_above = (
            (above + (below == above) - place) * following,
            (place - below) * following,
        )
        wanted = torch.zeros_like(following)
        if self.tidy:
            return wanted.scatter_add_(-1, below, to_below).scatter_add_(-1, above, to_above)
        for i in range(len(wanted)):
            wanted[i].index_add_(0, below[i], to_below[i])
            wanted[i].index_add_(0, above[i], to_above[i])
        return wanted
