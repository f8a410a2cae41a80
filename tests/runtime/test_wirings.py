"""The same run through both wirings: every row once, the ratio kept, weights back, all saved."""

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
from tests.runtime.runs import FAKE, RHYTHM, assert_counted, config, state_in, streams, train

CLUSTER = pytest.param("cluster", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def fake_agent(monkeypatch):
    monkeypatch.setitem(agents.REGISTRY, "fake", FAKE)


@pytest.fixture
def wiring(request, monkeypatch):
    """`local` or `cluster`; the latter on the Ray of all tests, with short turns."""
    if request.param == "cluster":
        request.getfixturevalue("ray_here")
        from dreamfleet.runtime import fleet

        monkeypatch.setattr(fleet, "TURN_S", 0.2)
    return request.param


both = pytest.mark.parametrize("wiring", ["local", CLUSTER], indirect=True)


@pytest.mark.parametrize(
    ("wiring", "num_actors", "num_dreamers"),
    [
        ("local", 1, 0),
        ("local", 2, 1),
        ("local", 2, 2),
        pytest.param("cluster", 1, 0, marks=pytest.mark.slow),
        pytest.param("cluster", 2, 1, marks=pytest.mark.slow),
        pytest.param("cluster", 1, 2, marks=pytest.mark.slow),
    ],
    indirect=["wiring"],
)
def test_every_row_arrives_once_and_weights_come_back(tmp_path, wiring, num_actors, num_dreamers):
    rhythm = replace(RHYTHM, eval_every=100)
    given = config(tmp_path, rhythm, num_actors=num_actors, num_dreamers=num_dreamers)
    if (wiring, num_actors) == ("cluster", 2):  # slow enough for the second actor to take part
        given = replace(given, steps=1200, agent_options={"capacity": 20_000, "learn_s": 0.02})
    left = train(wiring, given)
    assert left.code == 0
    found = streams(left.state)

    # Rows in are rows seen: of each actor all that its environment produced, in order.
    assert len(found) == num_actors
    for rows in found:
        assert_counted(rows)
    steps = sum(int((~rows["last"]).sum()) for rows in found)
    session = left.state["session"]
    assert steps == session["env_steps"] == left.events[-1]["env_steps"] == given.steps

    # Weights come back: what took a row is never older than what took the row before it.
    versions = [rows["version"] for rows in found]
    assert all((np.diff(version) >= 0).all() for version in versions)
    assert max(version.max() for version in versions) > 0

    # The ratio stays in its band: a chunk may earn one sample more than the slack of 4, and those
    # that were drawn ahead and did not arrive may be drawn again.
    limiter = left.state["replay"]["real"]["limiter"]
    undelivered = {"local": 0, "cluster": 2 * max(1, num_dreamers)}[wiring]
    for consumer, samples in limiter["samples"].items():
        credit = (steps - 8) * 0.25 - samples
        assert 0 <= credit <= 4 + 0.25 * rhythm.chunk + undelivered, consumer

    # A gradient step is a sample, and every one was counted.
    updates, count = session["updates"], left.state["agent"]
    assert updates["learner"] == count["policy"]["count"]
    assert updates["dreamer"] == count["world"]["count"]
    # One may be kept until the dream comes; what is on its way does not count.
    assert 0 <= limiter["samples"]["policy"] - updates["learner"] <= 1

    assert left.kinds.keys() == {"episode", "learn", "world", "run", "eval", "milestone"}
    assert left.kinds["milestone"] == 1
    assert "learning since" in left.said
    assert {event["return_mean"] for event in left.of("eval")} == {15.0}
    assert {(event["return"], event["length"]) for event in left.of("episode")} == {(15.0, 5)}
    finished = sum(int(rows["last"].sum()) for rows in found)
    assert finished <= left.kinds["episode"] <= finished + num_actors * 2  # not yet handed over
    assert all("env_steps" in event and "wall_s" in event for event in left.events)


@both
def test_a_run_with_shards_keeps_every_row_and_the_ratio(tmp_path, wiring):
    rhythm = replace(RHYTHM, replay_shards=2)
    given = config(tmp_path, rhythm, num_actors=2, num_dreamers=1, steps=600)
    left = train(wiring, given)
    assert left.code == 0
    shards = left.state["replay"]
    assert shards.keys() == {"shard-0", "shard-1"}
    found = [streams({"replay": shard}) for shard in shards.values()]
    assert [len(rows) for rows in found] == [1, 1]  # an actor each
    for (rows,) in found:
        assert_counted(rows)
    steps = [int((~rows["last"]).sum()) for (rows,) in found]
    assert sum(steps) == left.state["session"]["env_steps"] == 600
    undelivered = {"local": 0, "cluster": 2}[wiring]
    for shard, taken in zip(shards.values(), steps, strict=True):
        for consumer, samples in shard["real"]["limiter"]["samples"].items():
            credit = (taken - 4) * 0.5 - samples  # of a shard: half the wait, twice the rate
            assert 0 <= credit <= 4 + 0.5 * rhythm.chunk + undelivered, consumer
    run = left.of("run")[-1]
    assert run["replay/env_steps"] == sum(steps)
    resumed = train(wiring, replace(given, steps=800), resume=True)
    assert resumed.code == 0
    assert resumed.state["session"]["env_steps"] == 800


@both
def test_an_environment_that_breaks_now_and_then_is_started_again(tmp_path, wiring):
    rhythm = replace(RHYTHM, eval_every=50)
    left = train(wiring, config(tmp_path, rhythm, env="dreamfleet.envs.probe:FaultyStep-v0"))
    assert left.code == 0
    assert left.state["session"]["env_steps"] >= 300
    faults = left.of("fault")
    assert {event["error"] for event in faults} == {
        "RuntimeError: the probe broke, as it does now and then"
    }
    broke = [event["worker"] for event in faults]
    assert broke.count("actor-0") > 1
    run = left.of("run")[-1]
    assert run["fault/restarts"] == len(faults)
    assert run["fault/refused"] == 0
    found = streams(left.state)
    for rows in found:  # an episode that broke off is never joined with another
        assert_counted(rows)
    assert 1 < len(found) <= 1 + broke.count("actor-0")


@both
@pytest.mark.parametrize(
    ("env", "error"),
    [
        ("dreamfleet.envs.probe:FaultyNaN-v0", "returned an observation of nan"),
        ("dreamfleet.envs.probe:FaultyShape-v0", "returned an observation float32 (3,)"),
        ("dreamfleet.envs.probe:FaultyReset-v0", "RuntimeError: the probe never starts"),
    ],
)
def test_an_environment_that_never_works_ends_the_run(tmp_path, wiring, env, error):
    rhythm = replace(RHYTHM, chunk=16, eval_every=100)
    with pytest.raises(WorkerFailed, match="before it handed over a single row") as failed:
        train(wiring, config(tmp_path, rhythm, env=env, num_actors=2))
    text = str(failed.value)
    assert text.startswith("Traceback") == ("RuntimeError" in error)  # a fault of ours to find
    assert error in text
    assert text.splitlines()[-1].startswith("actor-")


@both
@pytest.mark.parametrize(
    ("call", "worker", "num_dreamers"),
    [("learn_policy", "learner", 0), ("learn_world", "dreamer-0", 1)],
)
def test_who_fails_to_learn_ends_the_run(tmp_path, wiring, call, worker, num_dreamers):
    given = config(tmp_path, agent_options={"fail": call}, num_dreamers=num_dreamers)
    with pytest.raises(WorkerFailed) as failed:
        train(wiring, given)
    text = str(failed.value)
    assert text.startswith("Traceback (most recent call last):")
    assert text.splitlines()[-1] == (
        f"{worker} broke: ArithmeticError: {call} fails, as asked. "
        "It has no checkpoint yet: start a new run."
    )


@pytest.mark.parametrize(
    "wirings",
    [
        ("local", "local"),
        pytest.param(("local", "cluster"), marks=pytest.mark.slow),
        pytest.param(("cluster", "local"), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_goes_on_in_either_wiring(tmp_path, request, wirings):
    if "cluster" in wirings:
        request.getfixturevalue("ray_here")
    first, second = wirings
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
    assert len(found) == 2  # of the same actor, before and after
    for name, column in kept[0].items():
        np.testing.assert_array_equal(found[0][name], column)
    assert_counted(found[1])
    # Nobody acts on anything older than the checkpoint.
    assert found[1]["version"].min() >= before["agent"]["policy"]["count"] > 0
    stamps = [event["env_steps"] for event in after.events]
    assert stamps == sorted(stamps)


def test_two_local_runs_with_one_seed_write_the_same(tmp_path):
    def run(name, seed):
        rhythm = replace(RHYTHM, eval_every=50)
        env = "dreamfleet.envs.probe:FaultyStep-v0"
        left = train("local", config(tmp_path / name, rhythm, env=env, num_actors=2, seed=seed))
        timed = ("wall_s", "took_s", "wait/")
        return [
            {key: value for key, value in event.items() if not key.startswith(timed)}
            for event in left.events
        ]

    once = run("once", 1)
    assert once == run("again", 1)
    assert once != run("other", 2)


# ------------------------------------------------------------------------------ processes alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "error"),
    [
        ("tests.runtime.broken:Killed-v0", "died"),
        ("tests.runtime.broken:Hanging-v0", "a step of its environment took longer than 1.5 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_replaced(tmp_path, ray_here, env, error):
    rhythm = replace(RHYTHM, chunk=2, env_timeout_s=1.5)
    left = train("cluster", config(tmp_path, rhythm, env=env, steps=40))
    assert left.code == 0
    assert left.state["session"]["env_steps"] >= 40
    faults = left.of("fault")
    assert faults
    assert all(event["worker"] == "actor-0" and error in event["error"] for event in faults)
    assert left.of("run")[-1]["fault/restarts"] == len(faults)
    for rows in streams(left.state):
        assert_counted(rows)


@pytest.mark.slow
def test_an_actor_whose_process_ends_after_some_rows_may_do_so_for_ever(tmp_path, ray_here):
    """Its rows are counted in the replay: it dies before it reports them."""
    given = config(tmp_path, env="tests.runtime.broken:Quits-v0", steps=300)
    left = train("cluster", given)
    assert left.code == 0
    assert left.state["session"]["env_steps"] == 300
    assert left.of("run")[-1]["fault/restarts"] > 2


@pytest.mark.slow
def test_a_checkpoint_on_the_way_agrees_with_its_replay(tmp_path, ray_here):
    train("cluster", config(tmp_path, replace(RHYTHM, checkpoint_every=50), steps=400))
    for path in (tmp_path / "checkpoints").iterdir():
        state = checkpoint.load(path)
        steps = state["replay"]["real"]["limiter"]["steps"]
        assert steps == state["session"]["env_steps"] == checkpoint.manifest(path)["env_steps"]


def test_what_was_saved_on_the_way_can_be_resumed(tmp_path):
    rhythm = replace(RHYTHM, checkpoint_every=100)
    train("local", config(tmp_path, rhythm, steps=250))
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:17] for name in saved] == ["ckpt-000000000200", "ckpt-000000000250"]
    assert state_in(tmp_path)["session"]["env_steps"] == 250


def test_two_local_runs_are_identical_wherever_their_environment_draws_from(tmp_path):
    """The returns of all episodes, evaluations in between."""

    def returns(name):
        space = gym.spaces.Box(-1, 1, (2,), np.float64)
        env = own.register(
            "Draws-v0",
            reward=lambda t: random.random() + np.random.rand(),  # noqa: NPY002
            observes=space,
        )
        rhythm = replace(RHYTHM, eval_every=60)
        left = train("local", config(tmp_path / name, rhythm, env=env, num_actors=2))
        assert left.kinds["eval"] > 2
        return [event.get("return", event.get("return_mean")) for event in left.events]

    assert returns("one") == returns("same")


# ------------------------------------------------------------------------------ the last evaluation


@both
def test_the_last_evaluation_is_of_what_was_saved(tmp_path, wiring):
    left = train(wiring, config(tmp_path, replace(RHYTHM, eval_every=100), steps=250))
    saved = left.state["session"]["env_steps"]
    last = left.of("eval")[-1]
    assert last["at"] == saved
    assert last["episodes"] == RHYTHM.eval_episodes
    assert "eval 15.0 ± 0.0 (2 episodes)" in left.said.splitlines()[-1]
    best = checkpoint.read_newest(tmp_path / "best")  # all are equal, so it is the newest
    assert best.env_steps == saved
    weights = {group: int(it["count"]) for group, it in best.state["weights"].items()}
    assert weights == {"policy": left.state["agent"]["policy"]["count"]}


@both
def test_without_evaluations_there_is_no_last_one(tmp_path, wiring):
    left = train(wiring, config(tmp_path, steps=50))
    assert left.of("eval") == []
    assert not (tmp_path / "best").exists()
    assert "eval " not in left.said.splitlines()[-1].partition("next:")[0]


def test_an_interrupted_run_is_saved_and_not_evaluated(tmp_path, monkeypatch):
    """In the middle of an evaluation that would take very long."""
    plays = GymVector.step
    steps = []

    def interrupt(env, action):
        if env.num_envs == RHYTHM.eval_episodes:  # the evaluation's
            steps.append(1)
            if len(steps) == 50:
                os.kill(os.getpid(), signal.SIGINT)
        return plays(env, action)

    monkeypatch.setattr(GymVector, "step", interrupt)
    rhythm = replace(RHYTHM, eval_every=100, eval_steps=10**9)
    left = train("local", config(tmp_path, rhythm, env="tests.runtime.broken:Endless-v0"))
    assert left.code == 130
    assert len(steps) == 50
    assert left.of("eval") == []
    assert left.state["session"]["env_steps"] >= 100
    assert "Go on: --resume" in left.said.splitlines()[-1]


@both
def test_evaluations_end_where_episodes_do_not(tmp_path, wiring):
    rhythm = replace(RHYTHM, eval_every=100, eval_steps=30)
    left = train(wiring, config(tmp_path, rhythm, env="tests.runtime.broken:Endless-v0", steps=150))
    assert left.code == 0
    assert {event["reached_step_limit"] for event in left.of("eval")} == {2}
    assert "2 truncated at 30 steps" in left.said.splitlines()[-1]


def test_the_config_names_every_option_of_the_agent(tmp_path):
    given = config(tmp_path, steps=20)
    train("local", given)
    recorded = read_config(tmp_path).agent_options
    assert recorded == {"capacity": 20_000, "fail": "", "learn_s": 0.0}
    train("local", replace(given, steps=40), resume=True)
    assert read_config(tmp_path) == replace(given, steps=40, agent_options=recorded)
