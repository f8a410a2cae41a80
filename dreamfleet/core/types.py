"""The words every part speaks: rows, tables, and the protocols between the parts.

Letters for shapes: B batch, T rows of a window, N environments of one actor, H imagined steps,
A action size. Leading axes come first in that order, batch before time.

A **row** is one observation, the reward that arrived with it, and the action then chosen:

| key        | dtype          | shape   |                                                        |
|------------|----------------|---------|--------------------------------------------------------|
| `obs`      | u8 or f32      | `(*O)`  | what the agent saw                                     |
| `action`   | i64 or f32     | `()`/`(A)` | what it then chose; continuous actions in [-1, 1]   |
| `reward`   | f32            | `()`    | what arrived with `obs` (0 on the first row)           |
| `first`    | bool           | `()`    | an episode starts here                                 |
| `last`     | bool           | `()`    | the episode ends here for any reason; `action` unused  |
| `terminal` | bool           | `()`    | the return truly stops here (implies `last`)           |

The final observation of an episode is a row too, so no `next_obs` is ever stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from dreamfleet.core.selectors import Selector, Uniform

Array = np.ndarray
Batch = dict[str, Any]  # flat name → array or tensor, leading axes shared
Weights = dict[str, Array]  # flat parameter name → a copy of its values
State = Any  # what a recurrent policy carries between two rows
Event = dict[str, Any]  # one line of metrics.jsonl; has "kind"

ENV_COLUMNS = ("obs", "reward", "first", "last", "terminal")


# ------------------------------------------------------------------------------------ spaces


@dataclass(frozen=True)
class Space:
    """One observation or action, without its leading axes. `n` > 0 means n discrete choices."""

    shape: tuple[int, ...]
    dtype: str
    n: int = 0

    def __str__(self) -> str:
        return f"{self.n} choices" if self.discrete else f"{self.dtype} {self.shape}"

    @property
    def discrete(self) -> bool:
        return self.n > 0

    @property
    def image(self) -> bool:
        """Whether it has rows, columns and channels, in this order."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class EnvSpec:
    """What an agent must know of an environment before it meets it."""

    env_id: str
    obs: Space
    action: Space

    def __str__(self) -> str:
        return f"observations {self.obs} and actions {self.action}"


# ------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Consumer:
    """How one kind of caller samples a table, and how often it may.

    It gets (batch, context + window, …). Where an episode is younger than the context, its first
    row is repeated, so `first` is set on every row that was not there. Frame stacks are contexts,
    and n-step returns windows of n + 1.
    """

    batch: int  # windows a sample, B
    window: int = 1  # rows a window, T
    selector: Selector = field(default_factory=Uniform)
    samples_per_step: float | None = None  # samples taken per agent step added; None: as it likes
    min_steps: int = 1  # agent steps that must be in before the first sample
    context: int = 0  # rows of its episode before the start that come along
    columns: tuple[str, ...] = ()  # what is handed out; empty: everything


@dataclass(frozen=True)
class TableSpec:
    """A ring of rows seen by several consumers.

    `slack`: how many samples the most demanding consumer may lag behind before adding must wait
    (at least 1). An agent step is a row that is not `last`: the rows an action was taken on.
    """

    capacity: int  # rows, at most
    columns: Mapping[str, Space]
    consumers: Mapping[str, Consumer]
    slack: float = 1.0
    max_bytes: int | None = None  # of memory; fewer rows are held where `capacity` takes more
    episode_return: str = ""  # the column whose value in a `last` row is its episode's return


@dataclass(frozen=True)
class QueueSpec:
    """Consume-once: hands over each batch it was given, once, in order, without copying."""

    capacity: int  # batches
    updates_per_batch: int = 1  # learner updates that use each batch


class EpisodeStats(NamedTuple):
    """The episodes that ended in a table so far, where it knows their returns."""

    episodes: int = 0
    mean_return: float = 0.0  # of the last hundred


@dataclass
class Sample:
    """What a table hands out. Keys are opaque; late priorities for overwritten rows are ignored."""

    data: Batch  # (B, T, …), the rows of the context first
    keys: Array  # (B,) i64
    prob: Array  # (B,) f64, the probability of each draw
    size: int  # starts this consumer could have drawn
    episode_stats: EpisodeStats = EpisodeStats()  # noqa: RUF009 - immutable
    priority_mass: float = 0.0  # sum of the weights of all starts, in one unit for all shards


@dataclass
class Feedback:
    """What one gradient step says: scalars to log, and new priorities in the order of its keys."""

    metrics: dict[str, Any]
    priorities: Array | None = None  # (B,)


@dataclass(frozen=True)
class BestEvaluation:
    """An evaluation that was the best of its run so far, and what it played."""

    at: int  # env steps
    score: float  # its mean return
    episodes: int
    weights: Mapping[str, Weights]  # of every group that acting needs


@dataclass(frozen=True, order=True)
class ChunkId:
    """Which chunk of rows this is, so that a repeat of it is recognised."""

    actor: int
    restarts: int  # how often this actor was started before
    sequence: int  # chunks this restarts handed over before


# ----------------------------------------------------------------------------------- protocols


class VectorEnv(Protocol):
    """N environments stepped together; gymnasium stays behind it."""

    spec: EnvSpec
    num_envs: int
    # Facts on the episodes that end with the last rows: name → (N,); usually empty. Integers are
    # categories, which evaluations report separately; floats and bools are averaged. None: this
    # episode has no such fact. `return`, where rewards are shaped, is the return without that.
    info: Batch

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        """Start all episodes, each from a seed of its own where (N,) of them are given.

        → rows without actions, (N, …). What an episode with such a seed meets does not depend on
        the other environments.
        """
        ...

    def step(self, action: Array) -> Batch:
        """Act (N, …) → rows (N, …). Where the previous row was `last`, reset and ignore the action.

        Raises EnvironmentFault when an environment returns what its spaces do not hold.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What outlasts episodes and belongs into checkpoints, as a curriculum does; or empty."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Agent(Protocol):
    """Networks, losses and optimisers. Knows nothing of Ray, processes or clocks.

    Built as `Agent(config, spec, seed, device)`. Weight groups have one writer each:
    "world" is owned by `learn_world`, "policy" by `learn_policy`.
    """

    tables: dict[str, TableSpec | QueueSpec]
    act_groups: tuple[str, ...]  # the weight groups that act() needs

    def initial_state(self, n: int) -> State:
        """What a policy remembers before the first row of n environments."""
        ...

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        """Rows (N, …) → actions (N, …), the next state, further columns of the row (N, …).

        One of a name that the row has already takes its place.
        """
        ...

    def learn_world(self, real: Sample) -> Feedback:
        """One gradient step of the world model."""
        ...

    def dream(self, starts: Sample) -> Batch:
        """Imagine from the last row of each start window: (B, T, …) → (B', H+1, …)."""
        ...

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        """One gradient step of policy and value; priorities belong to `real`."""
        ...

    def weights(self, group: str) -> Weights:
        """Copies of what others need of a group."""
        ...

    def load(self, group: str, weights: Weights) -> None: ...

    def state(self, group: str) -> dict[str, Any]:
        """All of a group that learning continues from: networks, optimisers, generators, counters.

        Nested dicts of numpy arrays, numbers, strings and lists of numbers; never a live view.
        """
        ...

    def restore(self, group: str, state: dict[str, Any]) -> None: ...


class Replay(Protocol):
    """The replay service, or a proxy to it."""

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        """Rows (N, T, …) of the N streams, in order. False: not now, offer the same again.

        A queue table takes a batch of any shape and no streams. A chunk whose `chunk_id` was taken
        before is not stored again. Raises EnvironmentFault when rows are refused (NaN, wrong shape
        or dtype, a missing reset), if not at once then at a later call; refusals are counted by
        reason.
        """
        ...

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        """A Sample, or from a queue table the next batch. None: not now."""
        ...

    def update(self, table: str, keys: Array, priorities: Array) -> None: ...

    def stats(self) -> dict[str, float]:
        """Integer counters and gauges, flat: `env_steps`, `real/inserted`, `real/evicted`, …"""
        ...


class WeightStore(Protocol):
    """Versions only rise. One writer per group; readers pull when there is something newer."""

    def publish(self, group: str, weights: Weights) -> int: ...

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """(version, weights) when newer than `have`, else None."""
        ...


class Worker(Protocol):
    """Actor, Learner, Dreamer, Evaluator."""

    waiting_for: str  # whom the last step that returned False waits for

    def step(self) -> bool:
        """Do one piece of work. False: nothing to do just now."""
        ...

    def drain(self) -> list[Event]:
        """The events since the last call."""
        ...
