"""Defines the data of the system, and the protocols through which its parts work together.

Letters for shapes: B batch size, T rows of a window, N environments of one actor, H steps of a
dream, A size of an action, O shape of an observation. The axis of batches or environments comes
before the axis of time: (B, T, …) or (N, T, …). A row is one time step of an environment, with
these columns:

| column     | dtype      | shape         | value                                                  |
|------------|------------|---------------|--------------------------------------------------------|
| `obs`      | u8 or f32  | `O`           | observation                                            |
| `obs.NAME` | u8         | `O`           | an image of a mixed observation, see `EnvSpec`         |
| `action`   | i64 or f32 | `()` or `(A)` | action chosen for `obs`; continuous actions in [-1, 1] |
| `reward`   | f32        | `()`          | reward that arrived with `obs`; 0 where `first` is set |
| `first`    | bool       | `()`          | whether an episode begins with this row                |
| `last`     | bool       | `()`          | whether the episode ends here, for any reason          |
| `terminal` | bool       | `()`          | whether the environment terminated; implies `last`     |

A factored action, such as a MultiDiscrete of many combinations, is i64 of shape `(k)`: one choice
for each of k factors.

An episode's final observation is a row too. The action of a `last` row is not used. If a row is
`last` but not `terminal`, the episode was truncated, and returns bootstrap from the value of that
row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dreamfleet.core.selectors import Selector, Uniform

Array = np.ndarray
Batch = dict[str, Any]  # columns by name: arrays or tensors with the same leading axes
Weights = dict[str, Array]  # copies of parameters, by name; see also core/weights.py
State = Any  # the state of a recurrent policy, carried from one row to the next
Event = dict[str, Any]  # one line of metrics.jsonl; "kind" says which

ENV_COLUMNS = ("obs", "reward", "first", "last", "terminal")  # the columns without `action`
PRIORITY = "priority"  # in `Feedback.rows`: not a column, but one number for each window


# ------------------------------------------------------------------------------------ spaces


@dataclass(frozen=True)
class Space:
    """The shape and dtype of one observation, one action, or one value of another column."""

    shape: tuple[int, ...]
    dtype: str
    n: int = 0  # number of choices of a discrete space: values 0 … n - 1; 0: not discrete
    choices: tuple[int, ...] = ()  # of each factor of a factored action (k,); empty: not factored

    def __str__(self) -> str:
        if self.choices:
            return f"factors of {self.choices} choices"
        return f"{self.n} choices" if self.discrete else f"{self.dtype} {self.shape}"

    @property
    def discrete(self) -> bool:
        return self.n > 0

    @property
    def image(self) -> bool:
        """Returns whether a value is an image, with axes for height, width and channels."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class EnvSpec:
    """The name of an environment, and its spaces of observations and actions.

    An agent is built for one specification.

    A mixed observation has several parts, each of which is a column of the rows. All parts that are
    not images are concatenated to the vector `obs`. Each image is a column `obs.NAME`. If all parts
    are images, the first one is `obs`.
    """

    env_id: str
    obs: Space
    action: Space
    more_obs: Mapping[str, Space] = field(default_factory=dict, hash=False)  # by column, `obs.NAME`

    def __str__(self) -> str:
        more = "".join(f", {name} {space}" for name, space in self.more_obs.items())
        return f"observations {self.obs}{more} and actions {self.action}"

    @property
    def observations(self) -> dict[str, Space]:
        """Returns the spaces of all columns of an observation, by name; `obs` is the first."""
        return {"obs": self.obs, **self.more_obs}


# ------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Consumer:
    """A named sampler of a table: which windows it samples, how many at a time, and how often.

    A window is `window` consecutive rows of one environment. The `context` rows before a window are
    sampled too: the columns of B windows of T rows have shape (B, context + T, …). If the episode
    has fewer than `context` earlier rows, its first row is repeated.

    The columns `first_columns` are only sampled for the first of these context + T rows: a stored
    latent state is needed at the beginning of a window only. The columns `columns`, or all columns
    that are not among `first_columns`, are sampled for all rows.

    If `shares` names another consumer, a sample of that consumer serves both purposes, and counts
    for both rates. Adding rows never waits for a consumer that shares. If consumer `start` shares
    `world`, dreams begin at the windows that the world model has just learned from. Dreamers that
    do not train the world model still sample `start`.
    """

    batch: int  # windows per sample, B
    window: int = 1  # rows per window, T
    selector: Selector = field(default_factory=Uniform)  # the rule by which windows are drawn
    samples_per_step: float | None = None  # samples per agent step added; None: no limit
    min_steps: int = 1  # agent steps in the table before the first sample
    context: int = 0  # rows before the window, of the same episode
    columns: tuple[str, ...] = ()  # columns of a sample; empty: all
    first_columns: tuple[str, ...] = ()  # columns of a window's first row only: (B, …)
    shares: str = ""  # the consumer whose samples are used for this purpose too; "": none


@dataclass(frozen=True)
class TableSpec:
    """The specification of a table: a ring buffer of rows, which several consumers sample.

    Sampling rates count agent steps. An agent step is a row that is not `last`.
    """

    capacity: int  # rows, at most
    columns: Mapping[str, Space]
    consumers: Mapping[str, Consumer]
    slack: float = 1.0  # samples that a consumer may be behind before adding must wait, at least 1
    max_bytes: int | None = None  # limit of memory, where it allows fewer rows than `capacity`
    episode_return: str = ""  # column whose value on a `last` row is the return of its episode


@dataclass(frozen=True)
class QueueSpec:
    """The specification of a queue of batches (dreams): each batch is returned once, in order."""

    capacity: int  # batches
    updates_per_batch: int = 1  # learner updates that use each batch


class EpisodeStats(NamedTuple):
    """The number of episodes that ended in a table, and the mean return of the newest ones.

    Both are 0 unless the table's setting `episode_return` names the column with episode returns.
    """

    episodes: int = 0  # ever
    mean_return: float = 0.0  # of the last hundred


@dataclass
class Sample:
    """A batch of windows (consecutive rows) that a named sampler of a table has sampled.

    Each window has a key, which identifies its first row after the context rows.
    """

    data: Batch  # (B, context + T, …); the consumer's `first_columns`: (B, …)
    keys: Array  # (B,) i64, of the windows' first rows after the context
    prob: Array  # (B,) f64, the probability of each draw
    size: int  # number of windows that the consumer could have drawn
    episode_stats: EpisodeStats = EpisodeStats()  # noqa: RUF009 - immutable
    priority_mass: float = 0.0  # sum of the weights of all `size` windows


@dataclass
class Feedback:
    """The results of one update: its metrics, and new values for the windows of its batch.

    `rows["priority"]` has shape (B,): a new priority for each window. Any other name in `rows` is a
    column of the table that `act` adds to the rows. Its new values have shape (B, context + T, …),
    or (B, R, …) for the last R rows of each window. Arrays and detached tensors are allowed.
    """

    metrics: dict[str, Any]  # scalars by `group/name`
    rows: Batch = field(default_factory=dict)  # new values by column, in the order of the sample


@dataclass(frozen=True)
class BestEvaluation:
    """The best evaluation of a run so far, with the weights of the policy that it evaluated."""

    at: int  # agent steps in the run before this evaluation
    score: float  # mean return
    episodes: int
    weights: Mapping[str, Weights]  # of all weight groups that acting needs


@dataclass(frozen=True, order=True)
class ChunkId:
    """The id of a chunk of rows, by which the replay detects repeated calls.

    A chunk is the rows that an actor sends in one call.
    """

    actor: int
    restarts: int  # times the actor had been restarted
    sequence: int  # chunks that the actor had sent since that restart


# ----------------------------------------------------------------------------------- protocols


class VectorEnv(Protocol):
    """N environments that are stepped together.

    `info` holds extra values (facts) about the episodes that end with the newest rows: an array
    (N,) under the name of each fact. Integers are categories; floats and bools are averaged. None
    stands for a missing fact.
    """

    spec: EnvSpec
    num_envs: int  # N
    info: Batch

    def reset(self, seeds: Sequence[int] | None = None) -> Batch:
        """Begins new episodes in all N environments.

        Returns their first rows, without actions: columns of shape (N, …). seeds: one per
        environment; None continues their random generators.
        """
        ...

    def step(self, action: Array) -> Batch:
        """Takes one action (N, …) per environment. Returns the next rows: columns of shape (N, …).

        An environment whose previous row was `last` ignores its action and begins a new episode.
        Raises EnvironmentFault if an environment returns a value outside its spaces.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns state that lasts longer than an episode, such as the level of a curriculum."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned, such as the level of a curriculum."""
        ...

    def close(self) -> None:
        """Closes all N environments."""
        ...


class Agent(Protocol):
    """A learning algorithm: networks, losses and optimizers. It uses neither Ray nor processes.

    An agent is built as `Agent(config, spec, seed, device)`. Its networks form two weight groups:
    `learn_world` trains "world", and `learn_policy` trains "policy".

    Two parts are optional:

    - `act_settings: tuple[str, ...]`, a class attribute: the names of those settings that change
      how the agent acts and nothing else. The command `eval` can change them.
    - The method `predict` of `Predictor`. The command `dream` needs it.
    """

    tables: dict[str, TableSpec | QueueSpec]  # the replay that this agent learns from
    act_groups: tuple[str, ...]  # the weight groups that `act` uses

    def initial_state(self, n: int) -> State:
        """Returns the recurrent state of the policy before the first rows of n environments."""
        ...

    def act(self, rows: Batch, state: State, explore: bool) -> tuple[Array, State, Batch]:
        """Chooses actions for rows (N, …) of N environments.

        Returns the actions (N, …), the next recurrent state, and further columns (N, …) to store
        with the rows. state: the recurrent state of the policy. explore: False in evaluations.
        """
        ...

    def learn_world(self, real: Sample) -> Feedback:
        """Takes one update of the world model. Returns metrics and new values for `real`.

        real: a sample of real rows.
        """
        ...

    def dream(self, starts: Sample) -> Batch:
        """Rolls the policy out in the world model, from the last row of each sampled window.

        starts: a sample of windows (consecutive real rows), with columns of shape (B, T, …). If
        consumer `start` shares `world`, it may also be the sample that `learn_world` has just
        learned from, with the new values in `Feedback.rows`; dreams may then begin at any row.
        Returns B' rollouts of H steps each, with columns of shape (B', H + 1, …). B' equals B if
        the agent makes one rollout per window.
        """
        ...

    def learn_policy(self, real: Sample | None, dreams: Batch | None) -> Feedback:
        """Takes one update of policy and critic. Returns metrics and new values for `real`.

        real: a sample of real rows; None if the agent trains its policy on dreams only. dreams:
        None if the agent makes none.
        """
        ...

    def weights(self, group: str) -> Weights:
        """Returns copies of those parameters of a weight group that other processes need.

        A weight group is the networks that one process trains: "world" or "policy".
        """
        ...

    def load(self, group: str, weights: Weights) -> None:
        """Loads parameters that `weights` returned into a weight group ("world" or "policy")."""
        ...

    def state(self, group: str) -> dict[str, Any]:
        """Returns copies of everything in a weight group that a resumed run needs to continue.

        group: "world" or "policy". Returns nested dicts of numpy arrays, numbers, strings and lists
        of numbers.
        """
        ...

    def restore(self, group: str, state: dict[str, Any]) -> None:
        """Restores the networks, optimizers and counters of a weight group ("world" or "policy").

        state: what `state` returned for this weight group.
        """
        ...


@runtime_checkable
class Predictor(Protocol):
    """The optional method of an agent whose world model can be compared with real episodes."""

    def predict(self, window: Batch, context: int) -> Batch:
        """Predicts rows of real windows open-loop: from the rows before, and the real actions.

        window: columns (B, T, …) of B windows of real rows, with all columns of the table `real`.
        context: the number of first rows, at least 1, that the prediction starts from. These rows
        belong to one episode.

        Returns arrays of shape (B, T - context, …) for the rows `context` … T-1. The prediction of
        a row depends on the first `context` rows, and on the actions of the rows before it:

        - `obs`: the observation, in the units of the environment. It is missing if the agent cannot
          decode observations.
        - `reward`: the reward that arrives with the row.
        - `terminal`: the probability that the row is terminal, if the episode reaches the row.

        Two optional columns compare this prediction with the model's state after it has read the
        real rows up to and including this row (the posterior):

        - `posterior_obs`: the observation that is decoded from the posterior.
        - `kl`: the Kullback-Leibler divergence KL(posterior || prediction), in nats.

        Predictions are means or most probable values, not random draws. The call changes nothing.
        """
        ...


class Replay(Protocol):
    """The replay: stores rows in tables and batches in queues, and returns samples of them.

    A proxy in another process has the same methods.
    """

    def add(
        self,
        table: str,
        rows: Batch,
        streams: Array | None = None,
        chunk_id: ChunkId | None = None,
    ) -> bool:
        """Adds T rows to each of N streams of a table, or a batch to a queue.

        A stream is the rows of one environment. rows: columns of shape (N, T, …); a batch for a
        queue may have any shape. streams: (N,), the streams' ids; None for a queue. chunk_id:
        identifies these rows, so that a repeated call does not store them twice.

        Returns False, and stores nothing, if there is no room. Raises EnvironmentFault for rows
        with NaN or with a wrong shape or dtype, and for a row that follows a `last` row but is not
        `first`.
        """
        ...

    def sample(self, table: str, consumer: str) -> Sample | Batch | None:
        """Returns the next sample of a consumer (a named sampler), or the next batch of a queue.

        Returns None if none is available yet.
        """
        ...

    def update(self, table: str, keys: Array, rows: Batch, consumer: str = "") -> None:
        """Replaces priorities and other values of sampled windows.

        keys: (B,), the keys that came with the sample. rows: numpy arrays with the shapes that
        class `Feedback` describes. consumer: the sampler that drew the windows; only needed if
        `rows` has other names than "priority". New values for overwritten rows are ignored and
        counted. Raises ValueError for an unknown column, a wrong shape and a wrong dtype, and for a
        column that an environment or the action has filled.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Returns counters by name, such as `env_steps` (agent steps) and `<table>/inserted`."""
        ...


class WeightStore(Protocol):
    """Holds the newest weights of each weight group: the networks that one process trains.

    One process publishes a weight group, and all other processes pull it.
    """

    def publish(self, group: str, weights: Weights) -> int:
        """Stores new weights of a weight group. Returns their version, which counts from 1.

        A weight group is the networks that one process trains.
        """
        ...

    def wanted(self, group: str) -> bool:
        """Returns whether anybody could read a version that was published now.

        If not, the caller need not make and publish it, unless it would be the first one.
        """
        ...

    def latest(self, group: str, have: int) -> tuple[int, Weights] | None:
        """Returns the newest version and weights of a weight group.

        Returns None if there is no version newer than `have`, the version that the caller has. A
        weight group is the networks that one process trains.
        """
        ...


class Worker(Protocol):
    """A part of a run that works in steps: an actor, the learner, a dreamer or the evaluator."""

    waiting_for: str  # `worker: reason`, why the last step returned False; "" if it did not

    def step(self) -> bool:
        """Does one piece of work, such as one update. Returns False if no work was possible."""
        ...

    def drain(self) -> list[Event]:
        """Returns the events since the last call. An event is one line of metrics.jsonl."""
        ...
