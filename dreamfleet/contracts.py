"""Tests of what every agent promises, whatever it learns and however.

`launch.py check AGENT` runs them on one agent, and our own tests run them on every registered one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core import checkpoint
from dreamfleet.core.types import (
    ENV_COLUMNS,
    Batch,
    EnvSpec,
    Feedback,
    Prioritized,
    QueueSpec,
    Sample,
    Space,
    TableSpec,
)
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.blueprint import weight_groups
from dreamfleet.runtime.trial import STREAMS, Synthetic, rollout

OBSERVATIONS = {"vector": Space((4,), "float32"), "image": Space((64, 64, 3), "uint8")}
ACTIONS = {"discrete": Space((), "int64", n=3), "continuous": Space((2,), "float32")}
AGENTS = pytest.StashKey[Iterable[str]]()  # names of the agents to test; none: all registered ones


@dataclass(frozen=True)
class Case:
    """An agent, and the kind of environment it is put into."""

    name: str
    spec: EnvSpec

    def build(self, seed: int = 0) -> Any:
        agent_class = agents.load(self.name)
        return agent_class(agent_class.Config(), self.spec, seed, "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises `case` with every agent, in every kind of space it declares."""
    if "case" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(
            Case(name, EnvSpec("Synthetic-v0", OBSERVATIONS[observation], ACTIONS[action])),
            id=f"{name}-{observation}-{action}",
        )
        for name in metafunc.config.stash.get(AGENTS, agents.REGISTRY)
        for observation in agents.find(name).observations
        for action in agents.find(name).actions
    ]
    metafunc.parametrize("case", cases)


class Experience:
    """Batches for an agent's consumers, out of a replay that makes nobody wait."""

    def __init__(
        self, agent: Any, ends: float = 0.2, terminal: bool = False, env: Synthetic | None = None
    ) -> None:
        self.agent = agent
        env = env or Synthetic(agent.spec, STREAMS, ends, terminal)
        real = agent.tables["real"]
        eager = {
            name: replace(consumer, samples_per_step=None, min_steps=1)
            for name, consumer in real.consumers.items()
        }
        self.replay = ReplayServer({"real": replace(real, consumers=eager)}, seed=0)
        rows = rollout(agent, env, steps=64)
        assert self.replay.add("real", rows, np.arange(STREAMS))

    def sample(self, consumer: str) -> Sample | None:
        """A batch, or None for an agent that does not ask for it."""
        if consumer not in self.agent.tables["real"].consumers:
            return None
        drawn = self.replay.sample("real", consumer)
        assert isinstance(drawn, Sample)
        return drawn


def imagine(agent: Any, starts: Sample | None) -> Batch | None:
    return None if starts is None else agent.dream(starts)


def learn(agent: Any, experience: Experience, steps: int) -> Iterator[Any]:
    """The gradient steps of all groups, yielding all that the agent said and did."""
    for _ in range(steps):
        world = experience.sample("world")
        if world is not None:
            yield vars(agent.learn_world(world))
        dreams = imagine(agent, experience.sample("start"))
        yield dreams or {}
        yield vars(agent.learn_policy(experience.sample("policy"), dreams))
        yield rollout(agent, Synthetic(agent.spec, 3), steps=2)


def learned(agent: Any, steps: int = 2) -> Experience:
    """Learn for a while → what it learned from."""
    experience = Experience(agent)
    for _ in learn(agent, experience, steps):
        pass
    return experience


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts → one dict of copies of what they hold, by path; a flat one stays as it is."""
    if not isinstance(tree, dict):
        return {path: copy.deepcopy(tree)}
    parts = [leaves(value, f"{path}/{key}" if path else key) for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit."""
    ours, theirs = leaves(one), leaves(other)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(np.array_equal(one[path], other[path]) for path in one)


def everything(agent: Any) -> dict[str, Any]:
    """Copies of what the agent is."""
    return leaves({group: agent.state(group) for group in weight_groups(agent)})


# ---------------------------------------------------------------------------------- tables


def test_its_tables_are_ones_a_replay_can_keep(case: Case) -> None:
    agent = case.build()
    ReplayServer(agent.tables, 0)
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    assert {*ENV_COLUMNS, "action"} <= real.columns.keys()
    assert real.columns["obs"] == case.spec.obs
    assert np.dtype(real.columns["action"].dtype) == np.dtype(case.spec.action.dtype)
    assert real.consumers.keys() <= {"world", "start", "policy"}
    assert isinstance(agent.tables.get("dream", QueueSpec(1)), QueueSpec)
    assert ("dream" in agent.tables) == ("start" in real.consumers)
    assert set(agent.act_groups) <= set(weight_groups(agent))


# ---------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("explore", [True, False])
def test_actions_lie_in_the_space(case: Case, n: int, explore: bool) -> None:
    agent, env = case.build(), Synthetic(case.spec, n)
    space, state = case.spec.action, agent.initial_state(n)
    for _ in range(20):
        action, state, _ = agent.act(env.rows(), state, explore)
        assert action.shape == (n, *space.shape)
        assert action.dtype == np.dtype(space.dtype)
        low, high = (0, space.n - 1) if space.discrete else (-1, 1)
        assert (action >= low).all() and (action <= high).all()
        env.act(action)


def test_exploring_tries_every_action(case: Case) -> None:
    rows = rollout(case.build(), Synthetic(case.spec, STREAMS), steps=30)
    action = rows["action"]
    if case.spec.action.discrete:
        assert np.unique(action).size == case.spec.action.n
    else:
        assert (action.std((0, 1)) > 0.05).all()


def test_rows_with_what_act_adds_are_what_the_table_takes(case: Case) -> None:
    agent = case.build()
    rows = rollout(agent, Synthetic(case.spec, STREAMS), steps=10)
    assert rows.keys() == agent.tables["real"].columns.keys()
    assert ReplayServer(agent.tables, 0).add("real", rows, np.arange(STREAMS))


def test_the_greedy_action_is_always_the_same_and_draws_nothing(case: Case) -> None:
    agent = case.build()
    learned(agent)
    rows = Synthetic(case.spec, 5).rows()
    before = everything(agent)
    one, _, _ = agent.act(rows, agent.initial_state(5), explore=False)
    other, _, _ = agent.act(rows, agent.initial_state(5), explore=False)
    assert_same(one, other)
    assert_same(before, everything(agent))


def test_a_seed_names_the_agent(case: Case) -> None:
    one, same, other = case.build(3), case.build(3), case.build(4)
    assert_same(everything(one), everything(same))
    rows = [rollout(agent, Synthetic(case.spec, STREAMS), 10) for agent in (one, same, other)]
    assert_same(rows[0], rows[1])
    assert not np.array_equal(rows[0]["action"], rows[2]["action"])


# -------------------------------------------------------------------------------- learning


def assert_reported(feedback: Feedback, real: Sample | None, prioritized: bool) -> None:
    for name, value in feedback.metrics.items():
        assert "/" in name
        assert np.isfinite(float(value)), name
    if feedback.priorities is None:
        assert not prioritized, "somebody draws by priority, but learning gives none"
    else:
        assert real is not None, "priorities of nothing"
        priorities = np.asarray(feedback.priorities)
        assert priorities.shape == real.keys.shape
        assert np.isfinite(priorities).all() and (priorities >= 0).all()


def test_a_gradient_step_reports_numbers_and_priorities(case: Case) -> None:
    agent = case.build()
    experience, consumers = Experience(agent), agent.tables["real"].consumers

    def prioritized(name: str) -> bool:
        return name in consumers and isinstance(consumers[name].selector, Prioritized)

    for _ in range(3):
        world, policy = experience.sample("world"), experience.sample("policy")
        if world is not None:
            assert_reported(agent.learn_world(world), world, prioritized("world"))
        dreams = imagine(agent, experience.sample("start"))
        assert_reported(agent.learn_policy(policy, dreams), policy, prioritized("policy"))


def test_dreams_are_trajectories(case: Case) -> None:
    agent = case.build()
    starts = learned(agent).sample("start")
    if starts is None:
        pytest.skip("does not dream")
    dreams = agent.dream(starts)
    leads = {tuple(value.shape[:2]) for value in dreams.values()}
    assert len(leads) == 1  # (B', H+1)
    assert min(leads.pop()) > 1
    for name, value in dreams.items():
        assert np.isfinite(np.asarray(value)).all(), name


def test_each_gradient_step_changes_its_own_group_and_no_other(case: Case) -> None:
    agent = case.build()
    experience = Experience(agent)

    def changed_by(step: Callable[[], Any]) -> set[str]:
        before = {group: leaves(agent.state(group)) for group in weight_groups(agent)}
        step()
        after = {group: leaves(agent.state(group)) for group in weight_groups(agent)}
        return {group for group in before if not same(before[group], after[group])}

    world, starts = experience.sample("world"), experience.sample("start")
    if world is not None:
        assert changed_by(lambda: agent.learn_world(world)) == {"world"}
    dreams = imagine(agent, starts)
    policy = experience.sample("policy")
    assert changed_by(lambda: agent.learn_policy(policy, dreams)) == {"policy"}
    if starts is not None:
        assert changed_by(lambda: agent.dream(starts)) <= {"world"}  # it draws


def test_the_loss_falls_on_a_fixed_batch(case: Case) -> None:
    """Every episode is one step long, so that no target moves while its regression is fitted.

    `loss/policy` is left out: what a policy ascends moves with the values.
    """
    agent = case.build()
    experience = Experience(agent, ends=1, terminal=True)

    def falls(step: Callable[[], Feedback], steps: int) -> None:
        losses = []
        for _ in range(steps):
            metrics = step().metrics
            terms = [name for name in metrics if name.startswith("loss/") and name != "loss/policy"]
            losses.append(sum(float(metrics[name]) for name in terms))
        assert terms, "no regression is reported as loss/…"
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses

    if (world := experience.sample("world")) is not None:
        falls(lambda: agent.learn_world(world), 60)
    real, dreams = experience.sample("policy"), imagine(agent, experience.sample("start"))
    falls(lambda: agent.learn_policy(real, dreams), 60)


# ------------------------------------------------------------------------ weights and state


def zero(tree: Any) -> None:
    for value in tree.values():
        if isinstance(value, dict):
            zero(value)
        elif isinstance(value, np.ndarray):
            value[...] = 0


@pytest.mark.parametrize("take", ["weights", "state"])
def test_what_an_agent_hands_out_are_copies(case: Case, take: str) -> None:
    agent = case.build()
    experience = learned(agent)

    def taken() -> dict[str, Any]:
        return {group: getattr(agent, take)(group) for group in weight_groups(agent)}

    before = taken()
    kept = leaves(before)
    for _ in learn(agent, experience, 1):
        pass
    assert_same(before, kept)  # learning does not reach into it
    after = taken()
    kept = leaves(after)
    zero(after)
    assert_same(taken(), kept)  # nor does it reach into the agent


def test_weights_are_flat_names_and_arrays(case: Case) -> None:
    agent = case.build()
    for group in weight_groups(agent):
        weights = agent.weights(group)
        assert weights
        assert all(isinstance(name, str) for name in weights)
        assert all(isinstance(value, np.ndarray) for value in weights.values())


def test_loaded_weights_act_alike(case: Case) -> None:
    agent, other = case.build(seed=1), case.build(seed=2)
    learned(agent, steps=5)
    for group in agent.act_groups:
        other.load(group, agent.weights(group))
    rows = Synthetic(case.spec, 50).rows()
    one, _, _ = agent.act(rows, agent.initial_state(50), explore=False)
    same, _, _ = other.act(rows, other.initial_state(50), explore=False)
    assert_same(one, same)


def test_a_restored_agent_continues_bit_for_bit(case: Case, tmp_path: Path) -> None:
    """Through a file, into an agent of another seed."""
    agent, other = case.build(seed=1), case.build(seed=2)
    experience = learned(agent, steps=3)
    state = {group: agent.state(group) for group in weight_groups(agent)}
    path = checkpoint.save(tmp_path, 0, state, agent=case.name, env=case.spec.env_id)
    loaded = checkpoint.load(path)
    for group in weight_groups(agent):
        other.restore(group, loaded[group])
    drawn = experience.replay.state()
    ours = list(map(leaves, learn(agent, experience, 3)))
    experience.replay.restore(drawn)
    theirs = list(map(leaves, learn(other, experience, 3)))
    for one, same in zip(ours, theirs, strict=True):
        assert_same(one, same)
    assert_same(everything(agent), everything(other))


def test_learning_needs_of_another_group_no_more_than_its_weights(case: Case) -> None:
    """As on Ray, where the dreamer and the learner live in processes of their own."""
    dreamer, learner = case.build(), case.build()
    if "world" not in weight_groups(dreamer):
        pytest.skip("learns in one process")
    experience = Experience(dreamer)
    for _ in range(3):
        dreamer.learn_world(experience.sample("world"))
    learner.load("world", dreamer.weights("world"))
    dreams = imagine(dreamer, experience.sample("start"))
    real = experience.sample("policy")
    assert_same(vars(learner.learn_policy(real, dreams)), vars(dreamer.learn_policy(real, dreams)))
    assert_same(learner.weights("policy"), dreamer.weights("policy"))
