"""Tests runs in one thread and on Ray: rows, sampling rates, weights, faults, checkpoints."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from dreamfleet import agents
from dreamfleet.core import checkpoint
from dreamfleet.core.errors import WorkerFailed
from dreamfleet.envs.vector import GymVector
from dreamfleet.runtime.run_folder import read_config
from tests.envs import own
from tests.runtime.runs import (
    FAKE,
    INTERVALS,
    REWRITING,
    SHARING,
    assert_counted,
    config,
    state_in,
    streams,
    train,
)

CLUSTER = pytest.param("cluster", marks=pytest.mark.ray)


@pytest.fixture(autouse=True)
def fake_agent(monkeypatch):
    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)


@pytest.fixture
def placement(request, monkeypatch):
    """Yields `local` (one thread) or `cluster` (Ray).

    On Ray, the tests share one Ray, and processes report every 0.2 seconds.
    """
    if request.param == "cluster":
        request.getfixturevalue("ray_here")
        from dreamfleet.runtime import fleet

        monkeypatch.setattr(fleet, "TURN_S", 0.2)
    return request.param


both = pytest.mark.parametrize("placement", ["local", CLUSTER], indirect=True)


@pytest.mark.parametrize(
    ("placement", "num_actors", "num_dreamers"),
    [
        ("local", 1, 0),
        ("local", 2, 1),
        ("local", 2, 2),
        pytest.param("cluster", 1, 0, marks=(pytest.mark.ray, pytest.mark.costly)),
        pytest.param("cluster", 2, 1, marks=pytest.mark.ray),
        pytest.param("cluster", 1, 2, marks=(pytest.mark.ray, pytest.mark.costly)),
    ],
    indirect=["placement"],
)
def test_every_row_is_stored_once_and_actors_get_new_weights(
    tmp_path, placement, num_actors, num_dreamers
):
    intervals = replace(INTERVALS, eval_every=100)
    given = config(tmp_path, intervals, num_actors=num_actors, num_dreamers=num_dreamers)
    if (placement, num_actors) == (
        "cluster",
        2,
    ):  # slow enough for the second actor to start in time
        given = replace(given, steps=1200, agent_options={"capacity": 20_000, "learn_s": 0.02})
    run = train(placement, given)
    assert run.code == 0
    found = streams(run.state)

    # The replay has all rows of each environment, in order.
    assert len(found) == num_actors
    for rows in found:
        assert_counted(rows)
    steps = sum(int((~rows["last"]).sum()) for rows in found)
    session = run.state["session"]
    assert steps == session["env_steps"] == run.events[-1]["env_steps"] == given.steps

    # Actors get new weights: the version of a row is never below that of the row before.
    versions = [rows["version"] for rows in found]
    assert all((np.diff(version) >= 0).all() for version in versions)
    assert max(version.max() for version in versions) > 0

    # The credit stays within bounds: a chunk may add one sample to the slack of 4, and prefetched
    # samples that did not arrive may be drawn again.
    limiter = run.state["replay"]["real"]["limiter"]
    undelivered = {"local": 0, "cluster": 2 * max(1, num_dreamers)}[placement]
    for consumer, samples in limiter["samples"].items():
        credit = (steps - 8) * 0.25 - samples
        assert 0 <= credit <= 4 + 0.25 * intervals.chunk + undelivered, consumer

    # Each gradient step used a sample, and every step was counted.
    updates, count = session["updates"], run.state["agent"]
    assert updates["learner"] == count["policy"]["count"]
    assert updates["dreamer"] == count["world"]["count"]
    # The learner may keep one sample until a dream comes; samples in transit do not count.
    assert 0 <= limiter["samples"]["policy"] - updates["learner"] <= 1

    assert run.kinds.keys() == {"episode", "learn", "world", "run", "eval", "milestone"}
    assert run.kinds["milestone"] == 1
    assert "first gradient step" in run.output
    assert {event["return_mean"] for event in run.of("eval")} == {15.0}
    assert {(event["return"], event["length"]) for event in run.of("episode")} == {(15.0, 5)}
    finished = sum(int(rows["last"].sum()) for rows in found)
    assert (
        finished <= run.kinds["episode"] <= finished + num_actors * 2
    )  # some episodes are not in the replay yet
    assert all("env_steps" in event and "wall_s" in event for event in run.events)


@both
def test_all_parts_of_a_mixed_observation_reach_the_replay(tmp_path, placement):
    given = config(tmp_path, env=own.car("Car-v0"), num_dreamers=1)
    run = train(placement, given)
    assert run.code == 0
    (rows,) = streams(run.state)
    t = np.arange(len(rows["first"])) % 6  # five steps, six rows
    np.testing.assert_array_equal(rows["obs"], np.stack([t / 2, -t], 1))
    np.testing.assert_array_equal(rows["obs.camera"].min((1, 2, 3)), t)
    np.testing.assert_array_equal(rows["obs.camera"].max((1, 2, 3)), t)
    assert rows["obs.camera"].shape[1:] == (64, 64, 3) and rows["obs.camera"].dtype == np.uint8


@both
def test_a_run_with_two_shards_keeps_every_row_and_the_sampling_rate(tmp_path, placement):
    intervals = replace(INTERVALS, replay_shards=2)
    given = config(tmp_path, intervals, num_actors=2, num_dreamers=1, steps=600)
    run = train(placement, given)
    assert run.code == 0
    shards = run.state["replay"]
    assert shards.keys() == {"shard-0", "shard-1"}
    found = [streams({"replay": shard}) for shard in shards.values()]
    assert [len(rows) for rows in found] == [1, 1]  # one actor each
    for (rows,) in found:
        assert_counted(rows)
    steps = [int((~rows["last"]).sum()) for (rows,) in found]
    assert sum(steps) == run.state["session"]["env_steps"] == 600
    undelivered = {"local": 0, "cluster": 2}[placement]
    for shard, taken in zip(shards.values(), steps, strict=True):
        for consumer, samples in shard["real"]["limiter"]["samples"].items():
            credit = (taken - 4) * 0.5 - samples  # of a shard: half of min_steps, twice the rate
            assert 0 <= credit <= 4 + 0.5 * intervals.chunk + undelivered, consumer
    last = run.of("run")[-1]
    assert last["replay/env_steps"] == sum(steps)
    resumed = train(placement, replace(given, steps=800), resume=True)
    assert resumed.code == 0
    assert resumed.state["session"]["env_steps"] == 800


@pytest.mark.parametrize("shards", [1, 2])
@both
def test_new_values_of_an_update_reach_the_rows_of_its_windows(
    tmp_path, placement, shards, monkeypatch
):
    monkeypatch.setitem(agents.REGISTRY, "fake", REWRITING)
    intervals = replace(INTERVALS, replay_shards=shards)
    run = train(placement, config(tmp_path, intervals, num_actors=2, num_dreamers=1, steps=400))
    assert run.code == 0
    parts = [run.state["replay"]] if shards == 1 else run.state["replay"].values()
    rewritten = 0
    for rows in (rows for part in parts for rows in streams({"replay": part})):
        assert_counted(rows)
        written = rows["written"][:, 1] > 0
        np.testing.assert_array_equal(rows["written"], (rows["obs"] + 1) * written[:, None])
        rewritten += written.sum()
    assert rewritten > 200  # of 480
    assert run.of("run")[-1]["replay/real/stale_updates"] == 0


@pytest.mark.parametrize(
    ("placement", "num_dreamers"),
    [
        ("local", 1),
        ("local", 2),
        pytest.param("cluster", 0, marks=(pytest.mark.ray, pytest.mark.costly)),
        pytest.param("cluster", 1, marks=(pytest.mark.ray, pytest.mark.costly)),
        pytest.param("cluster", 2, marks=pytest.mark.ray),
    ],
    indirect=["placement"],
)
def test_shared_samples_give_one_dream_for_each_update_of_the_world_model(
    tmp_path, placement, num_dreamers, monkeypatch
):
    """Holds in every placement, although nobody may sample the consumer that shares.

    Dreamers that do not train only make dreams for samples that the world model has not taken yet.
    """
    monkeypatch.setitem(agents.REGISTRY, "fake", SHARING)
    for steps in (400, 800):
        given = config(tmp_path, steps=steps, num_actors=2, num_dreamers=num_dreamers)
        run = train(placement, given, resume=steps == 800)
        assert run.code == 0 and run.state["session"]["env_steps"] == steps
        samples = run.state["replay"]["real"]["limiter"]["samples"]
        updates, undelivered = run.state["session"]["updates"], 4 if placement == "cluster" else 0
        credit = (steps - 8) * 0.25 - samples["world"]
        assert 0 <= credit <= 4 + 0.25 * 2 * INTERVALS.chunk + undelivered
        assert 0 <= samples["world"] - updates["dreamer"] <= undelivered
        if num_dreamers < 2:
            assert samples["start"] == 0
        else:
            assert samples["start"] <= 8 + undelivered
        dreams = updates["dreamer"] + samples["start"]
        # Each dream is used once. The queue and the workers hold some, which a resume loses.
        lost = (2 + 1 + max(num_dreamers, 1)) * (1 if steps == 400 else 2) + undelivered
        assert dreams - lost <= updates["learner"] <= dreams


@both
def test_an_environment_that_breaks_now_and_then_is_restarted(tmp_path, placement):
    intervals = replace(INTERVALS, eval_every=50)
    run = train(placement, config(tmp_path, intervals, env="dreamfleet.envs.probe:FaultyStep-v0"))
    assert run.code == 0
    assert run.state["session"]["env_steps"] >= 300
    faults = run.of("fault")
    assert {event["error"] for event in faults} == {
        "RuntimeError: the probe broke, as it does now and then"
    }
    broke = [event["worker"] for event in faults]
    assert broke.count("actor-0") > 1
    last = run.of("run")[-1]
    assert last["fault/restarts"] == len(faults)
    assert last["fault/refused"] == 0
    found = streams(run.state)
    for rows in found:  # a broken episode is never continued by another
        assert_counted(rows)
    assert 1 < len(found) <= 1 + broke.count("actor-0")


@both
@pytest.mark.parametrize(
    ("env", "error"),
    [
        ("dreamfleet.envs.probe:FaultyNaN-v0", "returned an observation of nan"),
        pytest.param(
            "dreamfleet.envs.probe:FaultyShape-v0",
            "returned an observation float32 (3,)",
            marks=pytest.mark.costly,
        ),
        pytest.param(
            "dreamfleet.envs.probe:FaultyReset-v0",
            "RuntimeError: the probe never starts",
            marks=pytest.mark.costly,
        ),
    ],
)
def test_an_environment_that_always_breaks_ends_the_run(tmp_path, placement, env, error):
    intervals = replace(INTERVALS, chunk=16, eval_every=100)
    with pytest.raises(WorkerFailed, match="before it handed over a single row") as failed:
        train(placement, config(tmp_path, intervals, env=env, num_actors=2))
    text = str(failed.value)
    assert text.startswith("Traceback") == (
        "RuntimeError" in error
    )  # only exceptions have a traceback
    assert error in text
    assert text.splitlines()[-1].startswith("actor-")


@both
@pytest.mark.parametrize(
    ("call", "worker", "num_dreamers"),
    [("learn_policy", "learner", 0), ("learn_world", "dreamer-0", 1)],
)
def test_an_exception_of_learner_or_dreamer_ends_the_run(
    tmp_path, placement, call, worker, num_dreamers
):
    given = config(tmp_path, agent_options={"fail": call}, num_dreamers=num_dreamers)
    with pytest.raises(WorkerFailed) as failed:
        train(placement, given)
    text = str(failed.value)
    assert text.startswith("Traceback (most recent call last):")
    assert text.splitlines()[-1] == (
        f"{worker} broke: ArithmeticError: {call} fails, as asked. "
        "It has no checkpoint yet: start a new run."
    )


@pytest.mark.parametrize(
    "placements",
    [
        ("local", "local"),
        pytest.param(("local", "cluster"), marks=pytest.mark.ray),
        pytest.param(("cluster", "local"), marks=pytest.mark.ray),
    ],
)
def test_a_run_can_be_resumed_locally_and_on_ray(tmp_path, request, placements):
    if "cluster" in placements:
        request.getfixturevalue("ray_here")
    first, second = placements
    before = train(first, config(tmp_path, steps=100)).state
    assert before["session"]["env_steps"] == 100
    steps = 300
    after = train(second, config(tmp_path, steps=steps), resume=True)
    session = after.state["session"]
    assert session["env_steps"] == steps
    assert session["wall_s"] > before["session"]["wall_s"]
    for role, group in (("learner", "policy"), ("dreamer", "world")):
        assert session["updates"][role] > before["session"]["updates"][role]
        assert session["updates"][role] == after.state["agent"][group]["count"]

    found = streams(after.state)
    kept = streams(before)
    assert len(found) == 2  # of the same actor, before and after the resume
    for name, column in kept[0].items():
        np.testing.assert_array_equal(found[0][name], column)
    assert_counted(found[1])
    # No row was taken with weights older than the checkpoint.
    assert found[1]["version"].min() >= before["agent"]["policy"]["count"] > 0
    stamps = [event["env_steps"] for event in after.events]
    assert stamps == sorted(stamps)


def test_two_local_runs_with_the_same_seed_write_the_same_metrics(tmp_path):
    def events(name, seed):
        intervals = replace(INTERVALS, eval_every=50)
        env = "dreamfleet.envs.probe:FaultyStep-v0"
        run = train("local", config(tmp_path / name, intervals, env=env, num_actors=2, seed=seed))
        timed = ("wall_s", "took_s", "wait/", "speed/")
        return [
            {key: value for key, value in event.items() if not key.startswith(timed)}
            for event in run.events
        ]

    once = events("once", 1)
    assert once == events("again", 1)
    assert once != events("other", 2)


# ----------------------------------------------------------------------- failures of processes


@pytest.mark.ray
@pytest.mark.parametrize(
    ("env", "error"),
    [
        ("tests.runtime.broken:Killed-v0", "died"),
        ("tests.runtime.broken:Hanging-v0", "a step of its environment took longer than 1.5 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_replaced(tmp_path, ray_here, env, error):
    intervals = replace(INTERVALS, chunk=2, env_timeout_s=1.5)
    run = train("cluster", config(tmp_path, intervals, env=env, steps=40))
    assert run.code == 0
    assert run.state["session"]["env_steps"] >= 40
    faults = run.of("fault")
    assert faults
    assert all(event["worker"] == "actor-0" and error in event["error"] for event in faults)
    assert run.of("run")[-1]["fault/restarts"] == len(faults)
    for rows in streams(run.state):
        assert_counted(rows)


@pytest.mark.ray
def test_an_actor_whose_process_dies_after_some_rows_is_always_restarted(tmp_path, ray_here):
    """The actor dies before its report, so the driver asks the replay whether its rows arrived."""
    given = config(tmp_path, env="tests.runtime.broken:Quits-v0", steps=300)
    run = train("cluster", given)
    assert run.code == 0
    assert run.state["session"]["env_steps"] == 300
    assert run.of("run")[-1]["fault/restarts"] > 2


@pytest.mark.ray
def test_a_periodic_checkpoint_has_the_env_steps_of_its_replay(tmp_path, ray_here):
    train("cluster", config(tmp_path, replace(INTERVALS, checkpoint_every=50), steps=400))
    for path in (tmp_path / "checkpoints").iterdir():
        state = checkpoint.load(path)
        steps = state["replay"]["real"]["limiter"]["steps"]
        assert steps == state["session"]["env_steps"] == checkpoint.manifest(path)["env_steps"]


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    intervals = replace(INTERVALS, checkpoint_every=100)
    train("local", config(tmp_path, intervals, steps=250))
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:17] for name in saved] == ["ckpt-000000000200", "ckpt-000000000250"]
    assert state_in(tmp_path)["session"]["env_steps"] == 250


def test_two_local_runs_are_identical_though_the_environment_uses_global_generators(tmp_path):
    """Compares the returns of all episodes. Evaluations take place between the episodes."""

    def returns(name):
        space = gym.spaces.Box(-1, 1, (2,), np.float64)
        env = own.register(
            "Draws-v0",
            reward=lambda t: random.random() + np.random.rand(),  # noqa: NPY002
            observes=space,
        )
        intervals = replace(INTERVALS, eval_every=60)
        run = train("local", config(tmp_path / name, intervals, env=env, num_actors=2))
        assert run.kinds["eval"] > 2
        return [event.get("return", event.get("return_mean")) for event in run.events]

    assert returns("one") == returns("same")


# ------------------------------------------------------------------------------ the last evaluation


@both
def test_the_last_evaluation_is_of_the_saved_policy(tmp_path, placement):
    run = train(placement, config(tmp_path, replace(INTERVALS, eval_every=100), steps=250))
    saved = run.state["session"]["env_steps"]
    last = run.of("eval")[-1]
    assert last["at"] == saved
    assert last["episodes"] == INTERVALS.eval_episodes
    assert "eval 15.0 ± 0.0 (2 episodes)" in run.output.splitlines()[-1]
    best = checkpoint.read_newest(tmp_path / "best")  # all scores are equal, so it is the newest
    assert best.env_steps == saved
    weights = {group: int(it["count"]) for group, it in best.state["weights"].items()}
    assert weights == {"policy": run.state["agent"]["policy"]["count"]}


@both
def test_without_evaluations_there_is_no_last_evaluation(tmp_path, placement):
    run = train(placement, config(tmp_path, steps=50))
    assert run.of("eval") == []
    assert not (tmp_path / "best").exists()
    assert "eval " not in run.output.splitlines()[-1].partition("next:")[0]


def test_an_interrupted_run_is_saved_and_not_evaluated(tmp_path, monkeypatch):
    """The interrupt comes in the middle of an evaluation that would take very long."""
    step = GymVector.step
    steps = []

    def interrupt(env, action):
        if env.num_envs == INTERVALS.eval_episodes:  # the environments of the evaluation
            steps.append(1)
            if len(steps) == 50:
                os.kill(os.getpid(), signal.SIGINT)
        return step(env, action)

    monkeypatch.setattr(GymVector, "step", interrupt)
    intervals = replace(INTERVALS, eval_every=100, eval_steps=10**9)
    run = train("local", config(tmp_path, intervals, env="tests.runtime.broken:Endless-v0"))
    assert run.code == 130
    assert len(steps) == 50
    assert run.of("eval") == []
    assert run.state["session"]["env_steps"] >= 100
    assert "Go on: --resume" in run.output.splitlines()[-1]


@both
def test_evaluations_of_endless_episodes_end_after_eval_steps(tmp_path, placement):
    intervals = replace(INTERVALS, eval_every=100, eval_steps=30)
    run = train(
        placement, config(tmp_path, intervals, env="tests.runtime.broken:Endless-v0", steps=150)
    )
    assert run.code == 0
    assert {event["reached_step_limit"] for event in run.of("eval")} == {2}
    assert "2 truncated at 30 steps" in run.output.splitlines()[-1]


def test_the_config_records_every_option_of_the_agent(tmp_path):
    given = config(tmp_path, steps=20)
    train("local", given)
    recorded = read_config(tmp_path).agent_options
    assert recorded == {"capacity": 20_000, "fail": "", "learn_s": 0.0}
    train("local", replace(given, steps=40), resume=True)
    assert read_config(tmp_path) == replace(given, steps=40, agent_options=recorded)
