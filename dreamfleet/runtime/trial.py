"""Tests an agent on synthetic rows before a run starts: it acts, learns and dreams once."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

import numpy as np

from dreamfleet.core.errors import Diverged, EnvironmentFault, UserError
from dreamfleet.core.finite import check_actions, check_weights
from dreamfleet.core.own_code import in_line, interrupts
from dreamfleet.core.types import (
    PRIORITY,
    Agent,
    Array,
    Batch,
    EnvSpec,
    Feedback,
    QueueSpec,
    Sample,
    Space,
    TableSpec,
)
from dreamfleet.core.write_back import rewritten, write_back
from dreamfleet.dreamer_workers.dreamer import sharing_fault
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.blueprint import weight_groups

STREAMS: Final = 8  # environments that produce the rows
CONSUMERS: Final = {  # consumer of the table "real" → the method that gets its samples
    "policy": "learn_policy",
    "world": "learn_world",
    "start": "dream",
}


class Unfit(Exception):
    """Raised when an agent violates a rule of the `Agent` protocol. The message states the rule."""


class Synthetic:
    """N synthetic environments, to test agents. Observations and rewards are cosines of a phase.

    ends: the probability that a step ends the episode. terminal: True: all episodes end in a
    terminal state; False: half of them are truncated.
    """

    def __init__(self, spec: EnvSpec, n: int, ends: float = 0.2, terminal: bool = False) -> None:
        self.spec, self.n, self.ends = spec, n, ends
        self.terminal_share = 1.0 if terminal else 0.5
        self.rng = np.random.default_rng(0)
        self.phase = np.zeros(n)
        self.last = np.ones(n, bool)

    def rows(self) -> Batch:
        """Returns the next row of each of the N environments, without actions: columns (N, …)."""
        first = self.last
        self.phase = np.where(first, self.rng.uniform(-np.pi, np.pi, self.n), self.phase)
        self.last = ~first & (self.rng.random(self.n) < self.ends)
        return {
            **{name: self._observe(space) for name, space in self.spec.observations.items()},
            "reward": np.where(first, 0, np.cos(self.phase)).astype(np.float32),
            "first": first,
            "last": self.last,
            "terminal": self.last & (self.rng.random(self.n) < self.terminal_share),
        }

    def _observe(self, space: Space) -> Array:
        """Returns one observation (N, *O) of each environment, or one part of it, in its space."""
        offsets = np.arange(int(np.prod(space.shape))).reshape(space.shape)
        obs = np.cos(self.phase.reshape(-1, *[1] * len(space.shape)) + offsets)  # (N, *O)
        obs = 127 * (1 + obs) if space.dtype == "uint8" else obs
        return obs.astype(space.dtype)

    def act(self, action: Array) -> None:
        """Applies one action to each of the N environments. action: (N, …)."""
        self.phase = self.phase + 0.3 + 0.1 * action.reshape(self.n, -1).sum(1)


def rollout(agent: Any, env: Synthetic, steps: int) -> Batch:
    """Acts with exploration in N synthetic environments. Returns rows of shape (N, steps, …)."""
    chunk, state = [], agent.initial_state(env.n)
    for _ in range(steps):
        rows = env.rows()
        action, state, extras = agent.act(rows, state, explore=True)
        chunk.append({**rows, "action": action, **extras})
        env.act(action)
    return {key: np.stack([row[key] for row in chunk], axis=1) for key in chunk[0]}


# ---------------------------------------------------------------------------------- the trial


def try_agent(name: str, spec: EnvSpec, build: Callable[[], Agent]) -> None:
    """Builds an agent, and lets it act, learn and dream once on synthetic rows.

    name: `module:Class` of the agent, for messages. spec: the spaces of the environment. build: a
    function that builds the agent. Raises UserError if the agent fails or violates the `Agent`
    protocol.
    """
    with _named(name, "building it"):
        agent = build()
        _check_tables(agent)
    with _named(name, "act"):
        _check_acting(agent, spec)
    with _named(name, "act, as an actor calls it,"):
        replay = _filled_replay(agent, spec)
    for group in weight_groups(agent):
        with _named(name, f"weights, load, state or restore of {group!r}"):
            _check_state(agent, group)
    _check_learning(agent, name, replay)


@contextmanager
def _named(name: str, what: str) -> Iterator[None]:
    """A context manager that turns an error into a UserError with agent, method and source line.

    name: `module:Class` of the agent. what: the method of the agent that is being tested.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and interrupts(error):
            raise
        reason = str(error) if isinstance(error, Unfit | Diverged) else in_line(error)
        reason = " ".join(reason.split()).rstrip(".")
        top = name.partition(":")[0].partition(".")[0]
        places = [
            f" ({frame.f_code.co_filename}:{line})"
            for frame, line in traceback.walk_tb(error.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == top
        ]
        raise UserError(
            f"agent {name!r}: {what} failed. {reason}{places[-1] if places else ''}. "
            f"To test all rules for agents: launch.py check {name}"
        ) from error


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Unfit(what)


def _check_tables(agent: Any) -> None:
    """Raises Unfit unless the replay tables that an agent declares fit the agent's methods.

    Each consumer (a named sampler of a table, such as `policy`) needs its method: "policy" needs
    `learn_policy`, "world" `learn_world` and "start" `dream`.
    """
    tables = getattr(agent, "tables", None)
    _require(isinstance(tables, Mapping), f"`tables` must be a dict, found {tables!r:.80}")
    real, dream = agent.tables.get("real"), agent.tables.get("dream")
    _require(isinstance(real, TableSpec), f"`tables['real']` must be a TableSpec, found {real!r}")
    _require(dream is None or isinstance(dream, QueueSpec), "`tables['dream']` must be a QueueSpec")
    consumers = real.consumers
    unknown = [name for name in consumers if name not in CONSUMERS]
    known = ", ".join(CONSUMERS)
    _require(not unknown, f"unknown consumer {', '.join(unknown)} of 'real'; there are: {known}")
    _require(
        "policy" in consumers or dream is not None, "the table 'real' lacks the consumer 'policy'"
    )
    _require(
        ("start" in consumers) == (dream is not None),
        "the consumer 'start' and the table 'dream' go together: declare both or neither",
    )
    fault = sharing_fault(agent.tables)
    _require(not fault, str(fault))
    for consumer in consumers:
        method = CONSUMERS[consumer]
        has = callable(getattr(agent, method, None))
        _require(has, f"the consumer {consumer!r} needs the method {method}")
    act_groups = getattr(agent, "act_groups", None)
    possible = weight_groups(agent)
    _require(
        isinstance(act_groups, tuple) and bool(act_groups) and set(act_groups) <= set(possible),
        f"`act_groups` must be a tuple of {' and '.join(possible)}, found {act_groups!r}",
    )


def _check_acting(agent: Any, spec: EnvSpec) -> None:
    """Raises Unfit unless an agent's `act` returns valid actions and the columns that it declares.

    The columns are those of the agent's replay table "real".
    """
    declared = agent.tables["real"].columns
    for explore in (True, False):
        rows = Synthetic(spec, 3).rows()
        acted = agent.act(rows, agent.initial_state(3), explore)
        _require(
            isinstance(acted, tuple) and len(acted) == 3,
            f"it must return (actions, state, further columns), found {type(acted).__name__}",
        )
        action, _, extras = acted
        _require(
            isinstance(extras, Mapping), f"its further columns must be a dict, found {extras!r:.80}"
        )
        check_actions(action, extras, spec.action)
    found = {*rows, "action", *extras}
    lacking, unknown = sorted(declared.keys() - found), sorted(found - declared.keys())
    _require(not lacking, f"it does not return the column {', '.join(lacking)} of the table 'real'")
    _require(not unknown, f"the table 'real' does not declare its column {', '.join(unknown)}")


def _filled_replay(agent: Any, spec: EnvSpec) -> ReplayServer:
    """Returns a replay with enough synthetic rows for every consumer to draw a sample at once.

    A consumer is a named sampler of the table "real", such as `policy`.
    """
    real = agent.tables["real"]
    longest = max(consumer.context + consumer.window for consumer in real.consumers.values())
    largest = max(
        consumer.batch * (consumer.context + consumer.window)
        for consumer in real.consumers.values()
    )
    steps = 2 * longest + 32
    unlimited = {
        name: replace(consumer, samples_per_step=None, min_steps=1)
        for name, consumer in real.consumers.items()
    }
    capacity = max(STREAMS * steps, largest)
    table = replace(real, capacity=capacity, max_bytes=None, consumers=unlimited)
    replay = ReplayServer({"real": table}, seed=0)
    try:
        replay.add(
            "real", rollout(agent, Synthetic(spec, STREAMS, ends=0.02), steps), np.arange(STREAMS)
        )
    except EnvironmentFault as error:
        raise Unfit(str(error)) from error
    return replay


def _check_state(agent: Any, group: str) -> None:
    """Raises Unfit unless an agent can return and load the weights and the state of a weight group.

    group: `world` or `policy`. Weights must be a flat dict of arrays, the state must be a dict.
    """
    weights, state = agent.weights(group), agent.state(group)
    flat = isinstance(weights, Mapping) and all(
        isinstance(value, np.ndarray) for value in weights.values()
    )
    _require(flat, "`weights` must be a flat dict of numpy arrays")
    _require(isinstance(state, Mapping), f"`state` must be a dict, found {type(state).__name__}")
    agent.load(group, check_weights(group, weights))
    agent.restore(group, state)


def _check_learning(agent: Any, name: str, replay: ReplayServer) -> None:
    """Lets an agent make one gradient step for each weight group, and one batch of dreams.

    A weight group is `world` or `policy`. name: `module:Class` of the agent. replay: a replay with
    enough rows. Raises UserError if a method of the agent fails.
    """
    consumers = agent.tables["real"].consumers
    samples = {consumer: replay.sample("real", consumer) for consumer in consumers}
    starts, dreams = [samples.get("start")], None
    if "world" in consumers:
        with _named(name, "learn_world"):
            real = cast(Sample, samples["world"])
            feedback = agent.learn_world(real)
            _check_feedback(feedback, real, "world", agent, replay)
            if any(consumer.shares for consumer in consumers.values()):
                starts.append(rewritten(real, feedback))
    if "start" in consumers:
        with _named(name, "dream"):
            for each in starts:
                dreams = agent.dream(each)
                fits = isinstance(dreams, Mapping) and bool(dreams)
                _require(fits, "it must return a dict of columns")
    with _named(name, "learn_policy"):
        windows = samples.get("policy")
        _check_feedback(agent.learn_policy(windows, dreams), windows, "policy", agent, replay)


def _check_feedback(
    feedback: Any, real: Sample | Any, consumer: str, agent: Any, replay: ReplayServer
) -> None:
    """Raises Unfit unless a gradient step returned valid metrics, and priorities if needed.

    Sends new values of rows to the replay, which raises ValueError if they are invalid. feedback:
    what the gradient step returned. real: the sample that it learned from. consumer: the use of the
    sample; prioritized sampling needs priorities.
    """
    _require(isinstance(feedback, Feedback), f"it must return a Feedback, found {feedback!r:.80}")
    for name, value in feedback.metrics.items():
        _require("/" in name, f"the name of a metric must be group/name, found {name!r}")
        graph = getattr(value, "requires_grad", False)
        _require(not graph, f"the metric {name!r} carries gradients: detach it")
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            raise Unfit(f"the metric {name!r} must be a number, found {value!r:.80}") from None
    if real is None:
        _require(not feedback.rows, "it returned new values of rows, but had no real rows")
        return
    if agent.tables["real"].consumers[consumer].selector.uses_priorities:
        found = np.shape(feedback.rows.get(PRIORITY))
        fits = found == real.keys.shape
        _require(fits, f"it must return a priority for each of its {len(real.keys)} windows")
    write_back(replay, consumer, real, feedback)
