"""Tests that a blueprint builds the same parts of a run, with the same seeds, in every process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import EnvironmentFault, UserError
from dreamfleet.core.types import Space
from dreamfleet.learner.weight_store import LocalWeights
from dreamfleet.runtime.blueprint import Blueprint, Dependencies, Progress, weight_groups
from tests.fakes import SPEC, FakeAgent, FakeConfig, FakeReplay
from tests.runtime.runs import FAKE, config


@pytest.fixture
def blueprint(monkeypatch, tmp_path) -> Blueprint:
    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)
    return Blueprint.of(config(tmp_path, num_actors=3, envs_per_actor=2))


def test_replay_gb_limits_the_memory_of_the_replay(blueprint):
    agent = FakeAgent()
    assert blueprint.tables(agent) is agent.tables
    train = replace(blueprint.config.train, replay_gb=1e-5)
    limited = replace(blueprint, config=replace(blueprint.config, train=train))
    assert limited.tables(agent)["real"].max_bytes == 10_000


@pytest.mark.parametrize("name", agents.REGISTRY)
def test_every_agent_has_the_option_capacity_that_messages_advise(name):
    assert hasattr(agents.load(name).Config(), "capacity")


def test_memory_is_not_checked_for_a_run_on_a_joined_cluster(blueprint):
    agent = FakeAgent(FakeConfig(capacity=10**12))
    with pytest.raises(UserError, match="of memory are free"):
        blueprint.tables(agent)
    config = replace(blueprint.config, address="elsewhere:6379")
    assert replace(blueprint, config=config).tables(agent) is agent.tables


def test_a_run_has_workers_of_every_role_that_it_needs(blueprint):
    def names(groups=("world", "policy"), **flags):
        return replace(blueprint, config=replace(blueprint.config, **flags)).worker_names(groups)

    actors = ["actor-0", "actor-1", "actor-2"]
    assert names() == [*actors, "dreamer-0", "learner"]
    assert names(num_dreamers=0) == [*actors, "dreamer-0", "learner"]
    assert names(num_dreamers=2) == [*actors, "dreamer-0", "dreamer-1", "learner"]
    assert names(("policy",)) == [*actors, "learner"]
    assert names(train=RunConfig().train)[-1] == "evaluator"


def test_every_part_and_every_start_has_its_own_seed(blueprint):
    again = Blueprint(blueprint.config, SPEC, blueprint.agent_path)
    parts = [(part, starts) for part in ("env-0", "env-1", "learner") for starts in range(3)]
    seeds = [blueprint.seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [again.seed(*part) for part in parts]
    other = replace(blueprint, config=replace(blueprint.config, seed=1))
    assert not set(seeds) & {other.seed(*part) for part in parts}


def test_every_start_of_every_actor_writes_to_its_own_streams(blueprint):
    agent, used = blueprint.agent("test", "cpu"), []
    for starts in range(3):
        for index in range(3):
            replay = FakeReplay()
            deps = Dependencies(agent, replay, LocalWeights(), (), Progress(starts=starts))
            actor = blueprint.worker(f"actor-{index}", deps)
            while not replay.added:
                actor.step()
            used += replay.added[0][2].tolist()
    assert sorted(used) == list(range(3 * 3 * 2))


def test_workers_start_from_the_progress_of_the_run(blueprint):
    deps = Dependencies(
        FakeAgent(), FakeReplay(), LocalWeights(), (), Progress(500, {"learner": 7, "dreamer": 9})
    )
    given = replace(blueprint, config=replace(blueprint.config, train=RunConfig().train))
    assert given.worker("learner", deps).updates == 7
    assert given.worker("dreamer-0", deps).updates == 9
    assert given.worker("dreamer-1", deps).updates == 0  # dreamer-1 does not train
    evaluator = given.worker("evaluator", deps)
    assert not evaluator.step()
    assert "1000" in evaluator.waiting_for


def dependencies(**progress):
    return Dependencies(FakeAgent(), FakeReplay(), LocalWeights(), (), Progress(**progress))


def test_environments_get_their_arguments_and_those_of_actors_their_saved_state(
    blueprint,
):
    config = replace(blueprint.config, env="NumberGame-v1", env_options={"progressive": True})
    given, saved = Blueprint.of(config), {"level": 2, "scores": [5.0]}
    assert given.worker("actor-0", dependencies(env=saved)).env_state == saved
    assert given.evaluation_env(2).state() == {"level": 0, "scores": []}
    plain = replace(config, eval_env_options={"progressive": False})
    assert Blueprint.of(plain).evaluation_env(2).state() == {}


def test_the_agent_is_built_for_the_environment_with_its_arguments(blueprint):
    config = replace(blueprint.config, env="LunarLander-v3", env_options={"continuous": True})
    assert Blueprint.of(config).spec.action == Space((2,), "float32")


def test_an_environment_with_other_spaces_than_the_agent_is_refused(blueprint):
    other = replace(blueprint, config=replace(blueprint.config, env="CartPole-v1"))
    message = r"CartPole-v1 has observations float32 \(4,\).*agent has observations float32 \(2,\)"
    with pytest.raises(EnvironmentFault, match=message):
        other.worker("actor-0", dependencies())
    with pytest.raises(EnvironmentFault, match=message):
        other.evaluation_env(2)


def test_rewards_are_shaped_in_training_only(blueprint):
    config = replace(blueprint.config, env_options={"reward_floor": 3.5})
    env = replace(blueprint, config=config).evaluation_env(1)
    env.reset()
    assert env.step(np.zeros(1, np.int64))["reward"].tolist() == [1.0]


def test_a_model_free_agent_has_no_weight_group_world():
    agent = FakeAgent()
    assert weight_groups(agent) == ("world", "policy")
    consumers = {"policy": agent.tables["real"].consumers["policy"]}
    agent.tables = {"real": replace(agent.tables["real"], consumers=consumers)}
    assert weight_groups(agent) == ("policy",)


def test_an_actor_adds_rows_of_shape_streams_by_chunk_length(blueprint):
    replay = FakeReplay()
    deps = Dependencies(blueprint.agent("test", "cpu"), replay, LocalWeights(), (), Progress())
    actor = blueprint.worker("actor-1", deps)
    while not replay.added:
        actor.step()
    table, rows, streams = replay.added[0]
    assert table == "real"
    assert rows["obs"].shape == (2, blueprint.config.train.chunk, 2)
    np.testing.assert_array_equal(streams, [2, 3])


def test_a_process_gets_an_environment_that_only_the_driver_registered(tmp_path):
    import gymnasium as gym

    from dreamfleet.runtime.hosts import build_problem

    gym.register("Cell-v0", "dreamfleet.envs.probe:Count")
    try:
        blueprint = Blueprint.of(RunConfig(agent="gated-rainbow", env="Cell-v0"))
    finally:
        entry = gym.registry.pop("Cell-v0")  # as in another process
    assert blueprint.registry_entry is entry
    try:
        assert build_problem(blueprint) == ""
        other = replace(blueprint, spec=replace(blueprint.spec, obs=Space((5,), "float32")))
        assert "differs" in build_problem(other)
        unknown = replace(blueprint, config=replace(blueprint.config, env="Cel-v0"))
        assert 'cannot be built: env "Cel-v0" not found' in build_problem(replace(unknown))
    finally:
        gym.registry.pop("Cell-v0")


def test_recorded_options_are_the_resolved_options_of_the_agent(tmp_path):
    """Gated Rainbow replaces a size of 0 in its options by a size that suits the observations."""
    given = Blueprint.of(RunConfig(agent="gated-rainbow", agent_options={"hidden": 64}))
    agent = given.agent("test", "cpu")
    options = given.agent_options(agent)
    assert (options["hidden"], options["batch"], options["world_window"]) == (64, 256, 9)
    again = Blueprint.of(RunConfig(agent="gated-rainbow", agent_options=options))
    assert again.agent("test", "cpu").config == agent.config
