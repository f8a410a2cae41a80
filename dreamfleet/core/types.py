"""The dictionary of the system: its data, and the protocols through which its parts work together.

Letters for shapes: B batch size, T rows of a window, N environments of one actor, H steps of a
dream, A size of an action, O shape of an observation. Leading axes come first in this order, so
batch before time. A row is one time step of an environment:

| column     | dtype      | shape         | value                                                  |
|------------|------------|---------------|--------------------------------------------------------|
| `obs`      | u8 or f32  | `O`           | observation                                            |
| `action`   | i64 or f32 | `()` or `(A)` | action chosen for `obs`; continuous actions in [-1, 1] |
| `reward`   | f32        | `()`          | reward that arrived with `obs`; 0 where `first` is set |
| `first`    | bool       | `()`          | whether an episode begins with this row                |
| `last`     | bool       | `()`          | whether the episode ends here, for any reason          |
| `terminal` | bool       | `()`          | whether the environment terminated; implies `last`     |

An episode's final observation is a row too, so no column for the next observation is needed. The
action of a `last` row is not used. Values are bootstrapped where a row is `last` but not
`terminal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from dreamfleet.core.selectors import Selector, Uniform

Array = np.ndarray
Batch = dict[str, Any]  # columns by name: arrays or tensors with the same leading axes
Weights = dict[str, Array]  # copies of parameters, by name
State = Any  # the state of a recurrent policy, carried from one row to the next
Event = dict[str, Any]  # one line of metrics.jsonl; "kind" says which

ENV_COLUMNS = ("obs", "reward", "first", "last", "terminal")  # the columns without `action`


# ------------------------------------------------------------------------------------ spaces


@dataclass(frozen=True)
class Space:
    """Shape and dtype of one observation, action or other column, without leading axes."""

    shape: tuple[int, ...]
    dtype: str
    n: int = 0  # number of choices of a discrete space: values 0 … n - 1; 0: not discrete

    def __str__(self) -> str:
        return f"{self.n} choices" if self.discrete else f"{self.dtype} {self.shape}"

    @property
    def discrete(self) -> bool:
        return self.n > 0

    @property
    def image(self) -> bool:
        """Whether the axes are rows, columns and channels of an image."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class EnvSpec:
    """The description of an environment that an agent is built for: its name and its spaces."""

    env_id: str
    obs: Space
    action: Space

    def __str__(self) -> str:
        return f"observations {self.obs} and actions {self.action}"


# ------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Consumer:
    """How one use of a table samples it: the windows it draws, and how often.

    A window is `window` consecutive rows of one stream, with the `context` rows before them. A
    sample's columns have shape (B, context + T, …). Where an episode has fewer rows before the
    window than `context`, its first row is repeated, with `first` set each time. A frame stack is a
    context; an n-step return needs a window of n + 1 rows.
    """

    batch: int  # windows per sample, B
    window: int = 1  # rows per window, T
    selector: Selector = field(default_factory=Uniform)  # the rule by which windows are drawn
    samples_per_step: float | None = None  # samples per agent step added; None: no limit
    min_steps: int = 1  # agent steps in the table before the first sample
    context: int = 0  # rows before the window, of the same episode
    columns: tuple[str, ...] = ()  # columns of a sample; empty: all


@dataclass(frozen=True)
class TableSpec:
    """A table: a ring buffer of rows, which several consumers sample.

    An agent step is a row that is not `last`, so one on which an action was taken.
    """

    capacity: int  # rows, at most
    columns: Mapping[str, Space]
    consumers: Mapping[str, Consumer]
    slack: float = 1.0  # samples that a consumer may be behind before adding must wait, at least 1
    max_bytes: int | None = None  # limit of memory, where it allows fewer rows than `capacity`
    episode_return: str = ""  # column whose value on a `last` row is the return of its episode


@dataclass(frozen=True)
class QueueSpec:
    """A queue of batches: each batch added is returned once, in order, without copying."""

    capacity: int  # batches
    updates_per_batch: int = 1  # learner updates that use each batch


class EpisodeStats(NamedTuple):
    """Statistics of the episodes that ended in a table, where `episode_return` is specified."""

    episodes: int = 0  # ever
    mean_return: float = 0.0  # of the last hundred


@dataclass
class Sample:
    """The windows that a consumer drew from a table.

    A key identifies a row for `Replay.update`; priorities for rows overwritten since are ignored.
    """

    data: Batch  # (B, context + T, …)
    keys: Array  # (B,) i64, of the windows' first rows after the context
    prob: Array  # (B,) f64, the probability of each draw
    size: int  # number of windows that the consumer could have drawn
    episode_stats: EpisodeStats = EpisodeStats()  # noqa: RUF009 - immutable
    priority_mass: float = 0.0  # sum of the weights of all `size` windows


@dataclass
class Feedback:
    """The results of one update: metrics, and new priorities for the windows it learned from."""

    metrics: dict[str, Any]  # scalars by `group/name`
    priorities: Array | None = None  # (B,), in the order of the sample


@dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation of a run so far, with the weights that it played with."""

    at: int  # agent steps in the run before this evaluation
    score: float  # mean return
    episodes: int
    weights: Mapping[str, Weights]  # of all weight groups that acting needs


@dataclass(frozen=True, order=True)
class ChunkId:
    """Identifies a chunk of rows, so that the replay recognises a chunk that it has stored."""

    actor: int
    restarts: int  # times the actor had been restarted
    sequence: int  # chunks that the actor had sent since that restart


# ----------------------------------------------------------------------------------- protocols


class VectorEnv(Protocol):
    """N environments that are stepped together. No other part of the system knows gymnasium.

    `info`: extra facts per environment about the episodes that end with the newest rows, name →
    (N,); usually empty. Integers are categories: evaluations report each category separately.
    Floats and bools are averaged. None stands for a missing fact. Where rewards are shaped, the
    fact `return` is the return of the unshaped rewards.
    """

    spec: EnvSpec
    num_envs: int  # N
    info: Batch

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        """Begins new episodes in all environments → their rows (N, …), without actions.

        seeds: one per environment; None: the environments draw on. An episode with a given seed
        does not depend on the other environments.
        """
        ...

    def step(self, action: Array) -> Batch:
        """Takes one action per environment, (N, …) → the next rows (N, …), without actions.

        An environment whose previous row was `last` ignores its action and begins a new episode.
        Raises EnvironmentFault when an environment returns values outside of its spaces.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns the state that outlasts episodes, such as the level of a curriculum."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`."""
        ...

    def close(self) -> None:
        """Closes all environments."""
        ...


class Agent(Protocol):
    """An algorithm: networks, losses and optimizers. It knows nothing of Ray, processes or clocks.

    Built as `Agent(config, spec, seed, device)`. Its networks form two weight groups, each trained
    by one method: "world" by `learn_world`, and "policy" by `learn_policy`.
    """

    tables: dict[str, TableSpec | QueueSpec]  # the replay that this agent learns from
    act_groups: tuple[str, ...]  # the weight groups that `act` uses

    def initial_state(self, n: int) -> State:
        """Returns the policy's state before the first row of n environments."""
        ...

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        """Chooses actions for rows (N, …) → actions (N, …), the next state, more columns (N, …).

        The columns are stored with the rows; one with the name of an existing column replaces it.
        explore: False for evaluations.
        """
        ...

    def learn_world(self, real: Sample) -> Feedback:
        """Takes one update of the world model."""
        ...

    def dream(self, starts: Sample) -> Batch:
        """Rolls the policy out in the world model, from the last row of each window (B, T, …).

        Returns dreams (B', H + 1, …).
        """
        ...

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        """Takes one update of policy and critic. Priorities in the feedback belong to `real`."""
        ...

    def weights(self, group: str) -> Weights:
        """Returns copies of the parameters of a weight group that other processes need."""
        ...

    def load(self, group: str, weights: Weights) -> None:
        """Loads parameters, as method `weights` returned them, into a weight group."""
        ...

    def state(self, group: str) -> dict[str, Any]:
        """Returns copies of all of a weight group that learning continues from.

        Networks, optimizers, random generators and counters, as nested dicts of numpy arrays,
        numbers, strings and lists of numbers.
        """
        ...

    def restore(self, group: str, state: dict[str, Any]) -> None:
        """Continues from a `state` of a weight group."""
        ...


class Replay(Protocol):
    """The replay service, or a proxy of it in another process."""

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        """Adds rows (N, T, …) that continue N streams, given by their ids (N,).

        A queue takes a batch of any shape, without streams. Returns False when nothing was stored
        because there is no room now: add the same rows again later. A chunk with the id of a stored
        chunk is not stored again. Raises EnvironmentFault, in this call or a later one, for rows
        with NaN, a wrong shape or dtype, or a missing reset.
        """
        ...

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        """Returns a consumer's next sample, or a queue's next batch; None: not available now."""
        ...

    def update(self, table: str, keys: Array, priorities: Array) -> None:
        """Replaces the priorities (B,) of windows, given by the keys (B,) of a sample."""
        ...

    def stats(self) -> dict[str, float]:
        """Returns counters by name: `env_steps` (agent steps), `<table>/inserted` and others."""
        ...


class WeightStore(Protocol):
    """The newest weights of each weight group. One process writes a group; all others pull it."""

    def publish(self, group: str, weights: Weights) -> int:
        """Stores the weights of a group → their version, which is 1 or one more than before."""
        ...

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns a group's newest version and weights; None if the version is not above `have`."""
        ...


class Worker(Protocol):
    """An actor, learner, dreamer or evaluator."""

    waiting_for: str  # `worker: reason`, why the last step returned False; "" if it did not

    def step(self) -> bool:
        """Does one piece of work → whether there was anything to do."""
        ...

    def drain(self) -> list[Event]:
        """Returns the events since the last call."""
        ...
