"""Fake environments, agents, replays and connections for tests.

They are deterministic, need numpy alone, and record their calls.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import (
    Array,
    Batch,
    ChunkId,
    Consumer,
    EnvSpec,
    Feedback,
    QueueSpec,
    Sample,
    Space,
    State,
    TableSpec,
    Weights,
)

SPEC = EnvSpec("Fake-v0", obs=Space((2,), "float32"), action=Space((), "int64", n=2))


class FakeEnv:
    """A fake `VectorEnv`.

    In step t of an episode, the observation is [episode, t] and the reward t. Episodes of
    environment i have lengths[i] steps. truncate: whether they are truncated instead of terminated.
    """

    def __init__(self, lengths: Sequence[int] = (3, 3), truncate: bool = False) -> None:
        self.spec, self.num_envs = SPEC, len(lengths)
        self.actions: list[Array] = []
        self.seeds: list[Sequence[int] | None] = []  # of each reset
        self.closed, self.info = False, {}
        self._lengths, self._truncate = np.array(lengths), truncate
        self._episode = np.full(self.num_envs, -1)
        self._t = self._lengths.copy()

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        self.seeds.append(seeds)
        self._t = self._lengths.copy()
        return self._advance()

    def step(self, action: Array) -> Batch:
        self.actions.append(action)
        return self._advance()

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        self.closed = True

    def _advance(self) -> Batch:
        first = self._t == self._lengths
        self._episode = self._episode + first
        self._t = np.where(first, 0, self._t + 1)
        last = self._t == self._lengths
        return {
            "obs": np.stack([self._episode, self._t], axis=1).astype(np.float32),
            "reward": self._t.astype(np.float32),
            "first": first,
            "last": last,
            "terminal": last & (not self._truncate),
        }


@dataclass(frozen=True)
class FakeConfig:
    capacity: int = 1_000  # rows
    fail: str = ""  # the method that raises: learn_world, dream or learn_policy
    learn_s: float = 0.0  # seconds that an update of the policy takes


class FakeAgent:
    """A fake `Agent` whose weights are counters: each update adds one to its weight group.

    A weight group is the networks that one process trains: "world" or "policy". `act` writes the
    "policy" counter into column `version`, so that rows show with which weights an actor acted.
    `seen` lists the calls with their arguments.
    """

    Config = FakeConfig
    act_groups: tuple[str, ...] = ("policy",)

    def __init__(
        self,
        config: FakeConfig = FakeConfig(),
        spec: EnvSpec = SPEC,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.config, self.spec, self.seed, self.device = config, spec, seed, device
        self.count = {"world": 0, "policy": 0}
        self.seen: list[tuple[str, Any]] = []
        flag = Space((), "bool")
        self.tables: dict[str, TableSpec | QueueSpec] = {
            "real": TableSpec(
                capacity=config.capacity,
                columns={
                    **spec.observations,
                    "action": spec.action,
                    "reward": Space((), "float32"),
                    "first": flag,
                    "last": flag,
                    "terminal": flag,
                    "version": Space((), "int64"),
                },
                consumers={
                    "policy": Consumer(4, 2, Prioritized(), samples_per_step=0.25, min_steps=8),
                    "world": Consumer(4, 3, samples_per_step=0.25, min_steps=8),
                    "start": Consumer(2, 1, samples_per_step=0.25, min_steps=8),
                },
                slack=4,
            ),
            "dream": QueueSpec(capacity=2),
        }

    def initial_state(self, n: int) -> State:
        return np.zeros(n, np.int64)

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        self.seen.append(("explore" if explore else "greedy", rows))
        n = len(rows["first"])
        steps = np.where(rows["first"], 0, state + 1)  # of the episode
        if self.spec.action.discrete:
            action = steps % self.spec.action.n
        else:
            action = np.zeros((n, *self.spec.action.shape), self.spec.action.dtype)
        return action, steps, {"version": np.full(n, self.count["policy"])}

    def learn_world(self, real: Sample) -> Feedback:
        self._note("learn_world", real)
        self.count["world"] += 1
        return Feedback({"loss/world": 1.0 / self.count["world"]})

    def dream(self, starts: Sample) -> Batch:
        self._note("dream", starts)
        return {"obs": starts.data["obs"], "world": np.array(self.count["world"])}

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        self._note("learn_policy", (real, dreams))
        time.sleep(self.config.learn_s)
        self.count["policy"] += 1
        rows = {} if real is None else {"priority": np.arange(1.0, len(real.keys) + 1)}
        return Feedback({"loss/policy": np.float32(1.0 / self.count["policy"])}, rows)

    def weights(self, group: str) -> Weights:
        return {"count": np.array(self.count[group])}

    def load(self, group: str, weights: Weights) -> None:
        self.count[group] = int(weights["count"])

    def state(self, group: str) -> dict[str, Any]:
        return {"count": self.count[group]}

    def restore(self, group: str, state: dict[str, Any]) -> None:
        self.count[group] = state["count"]

    def _note(self, call: str, given: Any) -> None:
        if call == self.config.fail:
            raise ArithmeticError(f"{call} fails, as asked")
        self.seen.append((call, given))


class RewritingAgent(FakeAgent):
    """A fake `Agent` that rewrites column `written` of all rows that its world model learns from.

    In new rows `written` is 0. In rows that were rewritten it is the observation plus 1.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        real = self.tables["real"]
        assert isinstance(real, TableSpec)
        columns = {**real.columns, "written": Space((2,), "float16")}
        world = replace(real.consumers["world"], context=1)
        consumers = {**real.consumers, "world": world}
        self.tables["real"] = replace(real, columns=columns, consumers=consumers)

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        action, state, further = super().act(rows, state, explore)
        return action, state, further | {"written": np.zeros((len(action), 2), np.float16)}

    def learn_world(self, real: Sample) -> Feedback:
        feedback = super().learn_world(real)
        feedback.rows = {"written": (real.data["obs"] + 1).astype(np.float16)}
        return feedback


class SharingAgent(RewritingAgent):
    """A fake `Agent` whose dreams begin at the windows of the newest update of the world model.

    `dream` checks that these windows hold the new values of column `written`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        real = self.tables["real"]
        assert isinstance(real, TableSpec)
        policy = replace(real.consumers["policy"], samples_per_step=None)
        world = replace(real.consumers["world"], first_columns=("written",))
        start = replace(real.consumers["start"], shares="world")
        self.tables["real"] = replace(
            real, consumers={"policy": policy, "world": world, "start": start}
        )

    def learn_world(self, real: Sample) -> Feedback:
        assert real.data["written"].shape == (4, 2) and real.data["obs"].shape == (4, 4, 2)
        return super().learn_world(real)

    def dream(self, starts: Sample) -> Batch:
        written, obs = starts.data["written"], starts.data["obs"]
        assert written.shape == obs.shape and obs.shape[1] in (4, 1)
        if obs.shape[1] == 4:  # the windows of an update, and not of a sample of `start`
            np.testing.assert_array_equal(written, (obs + 1).astype(np.float16))
        return super().dream(starts)


class FakeReplay:
    """A fake `Replay` whose answers the test gives in advance.

    offers: for each (table, consumer), the results of its next calls of `sample`. After that,
    "dream" returns the batches that were added to it, and any other table returns None. refusals:
    for each table, how many of its next calls of `add` return False.
    """

    def __init__(
        self,
        offers: Mapping[tuple[str, str], Sequence[Sample | Batch | None]] | None = None,
        refusals: Mapping[str, int] | None = None,
    ) -> None:
        self.offers = {key: deque(values) for key, values in (offers or {}).items()}
        self.refusals = Counter(refusals or {})
        self.added: list[tuple[str, Batch, Array | None]] = []
        self.chunk_ids: list[ChunkId | None] = []
        self.updated: list[tuple[str, Array, Batch, str]] = []
        self.asked: Counter[tuple[str, str]] = Counter()
        self.env_steps = 0
        self._dreams: deque[Batch] = deque()

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        if self.refusals[table] > 0:
            self.refusals[table] -= 1
            return False
        self.added.append((table, rows, streams))
        self.chunk_ids.append(chunk_id)
        if table == "dream":
            self._dreams.append(rows)
        else:
            self.env_steps += int(np.sum(~rows["last"]))
        return True

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        self.asked[table, consumer] += 1
        if self.offers.get((table, consumer)):
            return self.offers[table, consumer].popleft()
        return self._dreams.popleft() if table == "dream" and self._dreams else None

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        self.updated.append((table, keys, rows, consumer))

    def stats(self) -> dict[str, float]:
        return {"env_steps": self.env_steps}


@dataclass
class FakeClock:
    """Replaces the module `time`. Its clock advances only while a test waits."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(eq=False)
class FakeCall:
    """A call through a `FakeConnection`, with its answer and the answer's time of arrival."""

    method: str
    args: tuple[Any, ...]
    reply: Any = None
    at: float = math.inf


class FakeConnection:
    """A fake `Connection` to another process. The test answers its calls.

    A reply that is an exception is raised. `wait` advances the fake clock to the first answer, but
    at most by `seconds`.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.calls: list[FakeCall] = []
        self._clock = clock

    def call(self, method: str, *args: Any) -> FakeCall:
        self.calls.append(FakeCall(method, args))
        return self.calls[-1]

    def wait(self, calls: Collection[FakeCall], seconds: float) -> bool:
        first = min(call.at for call in calls)
        self._clock.now = max(self._clock.now, min(first, self._clock.now + seconds))
        return first <= self._clock.now

    def get(self, call: FakeCall) -> Any:
        assert call.at <= self._clock.now, f"{call.method} blocks"
        if isinstance(call.reply, Exception):
            raise call.reply
        return call.reply

    def answer(self, reply: Any, of: int = -1, after: float = 0.0) -> None:
        """Answers a call. The answer arrives after `after` seconds of the fake clock.

        reply: the answer; `get` raises it if it is an exception. of: the index of the call, by
        default the newest.
        """
        assert self.calls[of].at == math.inf, "it was answered before"
        self.calls[of].reply, self.calls[of].at = reply, self._clock.now + after


def sample(*keys: int) -> Sample:
    """Returns a `Sample` of windows of one row with these keys.

    The observation of a row is [key, 0].
    """
    obs = np.array([[[key, 0]] for key in keys], np.float32)
    n = len(keys)
    return Sample({"obs": obs}, np.array(keys, np.int64), np.full(n, 1 / n), size=n)
