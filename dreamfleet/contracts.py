"""Contract tests: tests that every agent must pass.

`launch.py check AGENT` runs them on one agent. The project's own tests run them on all of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.agents.blocks.device import available_devices
from dreamfleet.core import checkpoint
from dreamfleet.core.types import (
    ENV_COLUMNS,
    Batch,
    EnvSpec,
    Feedback,
    Predictor,
    QueueSpec,
    Sample,
    Space,
    TableSpec,
)
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.blueprint import weight_groups
from dreamfleet.runtime.trial import STREAMS, Synthetic, rollout

VECTOR, IMAGE = Space((4,), "float32"), Space((64, 64, 3), "uint8")
OBSERVATIONS = {  # kind → the spaces of all columns of an observation
    "vector": {"obs": VECTOR},
    "image": {"obs": IMAGE},
    "mixed": {"obs": VECTOR, "obs.camera": IMAGE},
}
ACTIONS = {
    "discrete": Space((), "int64", n=3),
    "continuous": Space((2,), "float32"),
    "multi-discrete": Space((5,), "int64", choices=(3, 2, 4, 6, 8)),  # 1,152 combinations
}
AGENTS = pytest.StashKey[Iterable[str]]()  # names of the agents to test; by default all of REGISTRY


@dataclass(frozen=True)
class Case:
    """Describes a case of a contract test: an agent, its spaces, and the device that it uses."""

    name: str
    spec: EnvSpec
    device: str = "cpu"

    def build(self, seed: int = 0) -> Any:
        """Returns a new agent of this test case, with the agent's default settings."""
        agent_class = agents.load(self.name)
        return agent_class(agent_class.Config(), self.spec, seed, self.device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises the argument `case` of tests: each test runs once per case.

    There is a case for each tested agent with each kind of observations and actions that it
    declares, on each device here. `costly`: all but one case of each slow kind of observations.
    """
    if "case" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(
            Case(name, specification(observation, action), device),
            id="-".join((name, observation, action, *([] if device == "cpu" else [device]))),
            marks=[] if observation == "vector" or i == j % len(actions) else pytest.mark.costly,
        )
        for name in metafunc.config.stash.get(AGENTS, agents.REGISTRY)
        for actions in [agents.find(name).actions]
        for j, observation in enumerate(agents.find(name).observations)
        for (i, action), device in product(enumerate(actions), available_devices())
    ]
    metafunc.parametrize("case", cases)


def specification(observation: str, action: str) -> EnvSpec:
    """Returns the specification of a synthetic environment.

    observation, action: kinds of observations and actions, keys of OBSERVATIONS and ACTIONS.
    """
    more = dict(OBSERVATIONS[observation])
    return EnvSpec("Synthetic-v0", more.pop("obs"), ACTIONS[action], more)


class Experience:
    """Holds a replay filled with rows of a synthetic environment, for an agent to learn from.

    Sampling from the replay is not rate-limited, so `sample` never waits for more rows.
    """

    def __init__(
        self, agent: Any, ends: float = 0.2, terminal: bool = False, env: Synthetic | None = None
    ) -> None:
        self.agent = agent
        env = env or Synthetic(agent.spec, STREAMS, ends, terminal)
        real = agent.tables["real"]
        without_rates = {
            name: replace(consumer, samples_per_step=None, min_steps=1)
            for name, consumer in real.consumers.items()
        }
        self.replay = ReplayServer({"real": replace(real, consumers=without_rates)}, seed=0)
        rows = rollout(agent, env, steps=64)
        assert self.replay.add("real", rows, np.arange(STREAMS))

    def sample(self, consumer: str) -> Sample | None:
        """Samples a batch of real rows from the replay.

        consumer: the use of the rows: "world" (`learn_world`), "start" (starts of dreams) or
        "policy" (`learn_policy`). Returns None if the agent does not have this use.
        """
        if consumer not in self.agent.tables["real"].consumers:
            return None
        sample = self.replay.sample("real", consumer)
        assert isinstance(sample, Sample)
        return sample


def dream(agent: Any, starts: Sample | None) -> Batch | None:
    """Returns the agent's dreams from the real rows `starts`; returns None if `starts` is None."""
    return None if starts is None else agent.dream(starts)


def learn(agent: Any, experience: Experience, steps: int) -> Iterator[dict[str, Any]]:
    """Trains the whole agent for a number of `steps`, from real rows and from dreams.

    Each step yields these dicts in turn: the results of `learn_world` (only if the agent has a
    world model), the dreams, the results of `learn_policy`, and rows that the agent collects by
    acting.
    """
    for _ in range(steps):
        world = experience.sample("world")
        if world is not None:
            yield vars(agent.learn_world(world))
        dreams = dream(agent, experience.sample("start"))
        yield dreams or {}
        yield vars(agent.learn_policy(experience.sample("policy"), dreams))
        yield rollout(agent, Synthetic(agent.spec, 3), steps=2)


def train(agent: Any, steps: int = 2) -> Experience:
    """Trains the whole agent for some `steps`; returns the Experience (replay) it learned from."""
    experience = Experience(agent)
    for _ in learn(agent, experience, steps):
        pass
    return experience


def on_host(value: Any) -> Any:
    """Returns a tensor of any device as a numpy array, and any other value unchanged."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Flattens nested dicts to one dict of copied values, whose keys are paths such as "a/b".

    Tensors become arrays.
    """
    if not isinstance(tree, dict):
        return {path: copy.deepcopy(on_host(tree))}
    parts = [flatten(value, f"{path}/{key}" if path else key) for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def assert_equal(found: Any, expected: Any) -> None:
    """Fails unless two nested dicts of arrays have the same keys and bit-identical arrays."""
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def full_state(agent: Any) -> dict[str, Any]:
    """Returns copies of an agent's whole training state, with keys such as "world/nets/…"."""
    return flatten({group: agent.state(group) for group in weight_groups(agent)})


# ---------------------------------------------------------------------------------- tables


def test_the_replay_accepts_the_tables_and_they_have_the_required_columns_and_consumers(
    case: Case,
) -> None:
    agent = case.build()
    ReplayServer(agent.tables, 0)
    real = agent.tables["real"]
    assert isinstance(real, TableSpec)
    assert {*ENV_COLUMNS, "action"} <= real.columns.keys()
    assert case.spec.observations.items() <= real.columns.items()
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
        number = np.array(space.choices) if space.choices else space.n  # of choices
        low, high = (0, number - 1) if space.discrete or space.choices else (-1, 1)
        assert (action >= low).all() and (action <= high).all()
        env.act(action)


def test_exploration_tries_every_action(case: Case) -> None:
    rows = rollout(case.build(), Synthetic(case.spec, STREAMS), steps=30)
    action, space = rows["action"], case.spec.action
    if space.choices:
        tried = [np.unique(action[..., i]).size for i in range(len(space.choices))]
        assert tried == [*space.choices]
    elif space.discrete:
        assert np.unique(action).size == space.n
    else:
        assert (action.std((0, 1)) > 0.05).all()


def test_act_returns_every_further_column_that_the_table_declares(case: Case) -> None:
    agent = case.build()
    rows = rollout(agent, Synthetic(case.spec, STREAMS), steps=10)
    assert rows.keys() == agent.tables["real"].columns.keys()
    assert ReplayServer(agent.tables, 0).add("real", rows, np.arange(STREAMS))


def test_the_greedy_action_is_deterministic_and_leaves_the_agent_unchanged(case: Case) -> None:
    agent = case.build()
    train(agent)
    rows = Synthetic(case.spec, 5).rows()
    before = full_state(agent)
    action, _, _ = agent.act(rows, agent.initial_state(5), explore=False)
    again, _, _ = agent.act(rows, agent.initial_state(5), explore=False)
    assert_equal(again, action)
    assert_equal(full_state(agent), before)


def test_agents_of_one_seed_are_equal_and_of_two_seeds_differ(case: Case) -> None:
    agent, same_seed, other_seed = case.build(3), case.build(3), case.build(4)
    assert_equal(full_state(agent), full_state(same_seed))
    rows = [
        rollout(each, Synthetic(case.spec, STREAMS), 10) for each in (agent, same_seed, other_seed)
    ]
    assert_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0]["action"], rows[2]["action"])


# -------------------------------------------------------------------------------- learning


def assert_valid(feedback: Feedback, real: Sample | None, prioritized: bool) -> None:
    """Fails unless the result of an update has finite metrics and valid priorities.

    feedback: the result of `learn_world` or `learn_policy`. real: the windows that the update
    learned from. prioritized: whether these windows were sampled by priority, so that priorities
    are required.
    """
    for name, value in feedback.metrics.items():
        assert "/" in name
        assert np.isfinite(float(value)), name
    if "priority" not in feedback.rows:
        assert not prioritized, "a Prioritized selector needs priorities in the Feedback"
    else:
        assert real is not None, "the Feedback has priorities, but there was no real batch"
        priorities = np.asarray(on_host(feedback.rows["priority"]))
        assert priorities.shape == real.keys.shape
        assert np.isfinite(priorities).all() and (priorities >= 0).all()


def test_a_gradient_step_reports_finite_metrics_and_valid_priorities(case: Case) -> None:
    agent = case.build()
    experience, consumers = Experience(agent), agent.tables["real"].consumers

    def prioritized(name: str) -> bool:
        return name in consumers and consumers[name].selector.uses_priorities

    for _ in range(3):
        world, policy = experience.sample("world"), experience.sample("policy")
        if world is not None:
            assert_valid(agent.learn_world(world), world, prioritized("world"))
        dreams = dream(agent, experience.sample("start"))
        assert_valid(agent.learn_policy(policy, dreams), policy, prioritized("policy"))


def test_all_columns_of_dreams_are_finite_and_have_the_same_leading_axes(case: Case) -> None:
    agent = case.build()
    starts = train(agent).sample("start")
    if starts is None:
        pytest.skip("the agent does not dream")
    dreams = agent.dream(starts)
    leading_axes = {tuple(value.shape[:2]) for value in dreams.values()}
    assert len(leading_axes) == 1  # (B', H+1)
    assert min(leading_axes.pop()) > 1
    for name, value in dreams.items():
        assert np.isfinite(np.asarray(on_host(value))).all(), name


def test_each_gradient_step_changes_its_own_weight_group_only(case: Case) -> None:
    agent = case.build()
    experience = Experience(agent)

    def changed_by(step: Callable[[], Any]) -> set[str]:
        before = {group: flatten(agent.state(group)) for group in weight_groups(agent)}
        step()
        after = {group: flatten(agent.state(group)) for group in weight_groups(agent)}
        return {
            group
            for group, old in before.items()
            if not all(np.array_equal(value, after[group][path]) for path, value in old.items())
        }

    world, starts = experience.sample("world"), experience.sample("start")
    if world is not None:
        assert changed_by(lambda: agent.learn_world(world)) == {"world"}
    dreams = dream(agent, starts)
    policy = experience.sample("policy")
    assert changed_by(lambda: agent.learn_policy(policy, dreams)) == {"policy"}
    if starts is not None:
        assert changed_by(lambda: agent.dream(starts)) <= {"world"}  # its generator


def test_the_loss_falls_on_a_fixed_batch(case: Case) -> None:
    """Checks that 60 updates on one batch reduce the summed loss to less than half.

    Every episode has one step, so that the targets of the losses stay fixed. `loss/policy` is left
    out.
    """
    agent = case.build()
    experience = Experience(agent, ends=1, terminal=True)

    def assert_falls(step: Callable[[], Feedback], steps: int) -> None:
        losses = []
        for _ in range(steps):
            metrics = step().metrics
            terms = [name for name in metrics if name.startswith("loss/") and name != "loss/policy"]
            losses.append(sum(float(metrics[name]) for name in terms))
        assert terms, "no metric is called loss/…"
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses

    if (world := experience.sample("world")) is not None:
        assert_falls(lambda: agent.learn_world(world), 60)
    real, dreams = experience.sample("policy"), dream(agent, experience.sample("start"))
    assert_falls(lambda: agent.learn_policy(real, dreams), 60)


@pytest.mark.parametrize("context", [1, 5])
def test_a_prediction_depends_on_its_context_and_on_earlier_actions_only(
    case: Case, context: int
) -> None:
    """Checks the method `predict`: its columns, and which rows of a window each row depends on."""
    agent = case.build()
    if not isinstance(agent, Predictor):
        pytest.skip("the agent has no method `predict`")
    train(agent)
    windows, steps = 7, 6
    window = rollout(agent, Synthetic(case.spec, windows, ends=0), context + steps)
    other = {name: np.roll(value, 1, axis=0) for name, value in window.items()}
    before = full_state(agent)
    predicted = agent.predict(window, context)
    assert_equal(agent.predict(window, context), predicted)
    assert_equal(full_state(agent), before)
    assert {"reward", "terminal"} <= predicted.keys()
    for name, value in predicted.items():
        scalar = name in ("reward", "terminal", "kl")
        column = "reward" if scalar else name.removeprefix("posterior_")
        assert value.shape == (windows, steps, *window[column].shape[2:]), name
        assert np.isfinite(value).all(), name
    assert (predicted["terminal"] >= 0).all() and (predicted["terminal"] <= 1).all()

    def mixed(begin: int, end: int, columns: Iterable[str]) -> Batch:
        """Returns the predictions if the rows begin … end - 1 of some columns are other rows."""
        changed = copy.deepcopy(window)
        for name in columns:
            changed[name][:, begin:end] = other[name][:, begin:end]
        found: Batch = agent.predict(changed, context)
        return found

    for begin in range(context, context + steps):  # later rows change nothing
        for name, value in mixed(begin, context + steps, window).items():
            rows = begin - context + (name in ("obs", "reward", "terminal"))
            np.testing.assert_allclose(value[:, :rows], predicted[name][:, :rows], atol=1e-6)
    found = mixed(context, context + steps, window.keys() - {"action"})
    for name in predicted.keys() & {"obs", "reward", "terminal"}:
        np.testing.assert_allclose(found[name], predicted[name], atol=1e-6)
    for name in ("obs", "action"):  # the last row of the context is not ignored
        found = mixed(context - 1, context, [name])
        assert any((found[key] != predicted[key]).any() for key in ("reward", "terminal")), name


def test_the_settings_of_acting_are_settings(case: Case) -> None:
    agent = case.build()
    names = {field.name for field in fields(type(agent).Config)}
    assert set(getattr(agent, "act_settings", ())) <= names


# ------------------------------------------------------------------------ weights and state


def set_to_zero(tree: Any) -> None:
    """Sets all arrays of nested dicts to 0, in place."""
    for value in tree.values():
        if isinstance(value, dict):
            set_to_zero(value)
        elif isinstance(value, np.ndarray):
            value[...] = 0


@pytest.mark.parametrize("method", ["weights", "state"])
def test_weights_and_states_are_copies(case: Case, method: str) -> None:
    agent = case.build()
    experience = train(agent)

    def copies() -> dict[str, Any]:
        return {group: getattr(agent, method)(group) for group in weight_groups(agent)}

    before = copies()
    expected = flatten(before)
    for _ in learn(agent, experience, 1):
        pass
    assert_equal(before, expected)  # learning did not change the copies
    after = copies()
    expected = flatten(after)
    set_to_zero(after)
    assert_equal(copies(), expected)  # changing the copies did not change the agent


def test_weights_are_a_flat_dict_of_arrays(case: Case) -> None:
    agent = case.build()
    for group in weight_groups(agent):
        weights = agent.weights(group)
        assert weights
        assert all(isinstance(name, str) for name in weights)
        assert all(isinstance(value, np.ndarray) for value in weights.values())


def test_two_agents_with_the_same_weights_act_alike(case: Case) -> None:
    agent, other = case.build(seed=1), case.build(seed=2)
    train(agent, steps=5)
    for group in agent.act_groups:
        other.load(group, agent.weights(group))
    rows = Synthetic(case.spec, 50).rows()
    action, _, _ = agent.act(rows, agent.initial_state(50), explore=False)
    other_action, _, _ = other.act(rows, other.initial_state(50), explore=False)
    assert_equal(other_action, action)


def test_a_restored_agent_continues_bit_for_bit(case: Case, tmp_path: Path) -> None:
    """Checks that an agent restored from a checkpoint file learns exactly as the original agent.

    The restored agent was made with another seed.
    """
    agent, other = case.build(seed=1), case.build(seed=2)
    experience = train(agent, steps=3)
    state = {group: agent.state(group) for group in weight_groups(agent)}
    path = checkpoint.save(tmp_path, 0, state, agent=case.name, env=case.spec.env_id)
    loaded = checkpoint.load(path)
    for group in weight_groups(agent):
        other.restore(group, loaded[group])
    replay_state = experience.replay.state()
    expected = list(map(flatten, learn(agent, experience, 3)))
    experience.replay.restore(replay_state)
    found = list(map(flatten, learn(other, experience, 3)))
    for other_step, step in zip(found, expected, strict=True):
        assert_equal(other_step, step)
    assert_equal(full_state(other), full_state(agent))


def test_policy_learning_needs_only_the_weights_of_the_world_group(case: Case) -> None:
    """Checks that `learn_policy` needs only the published weights of the world model.

    The policy is trained once by the agent that trained the world model, and once by another agent
    that has only a copy of the published weights. The results must be equal.
    """
    dreamer, learner = case.build(), case.build()
    if "world" not in weight_groups(dreamer):
        pytest.skip("the agent has no weight group `world`")
    experience = Experience(dreamer)
    for _ in range(3):
        dreamer.learn_world(experience.sample("world"))
    learner.load("world", dreamer.weights("world"))
    dreams = dream(dreamer, experience.sample("start"))
    real = experience.sample("policy")
    assert_equal(vars(learner.learn_policy(real, dreams)), vars(dreamer.learn_policy(real, dreams)))
    assert_equal(learner.weights("policy"), dreamer.weights("policy"))
