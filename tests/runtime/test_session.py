from __future__ import annotations

import io
import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig, TrainConfig
from dreamfleet.core.errors import WorkerFailed
from dreamfleet.core.types import BestEvaluation
from dreamfleet.runtime.display import Display
from dreamfleet.runtime.run_folder import RunFolder
from dreamfleet.runtime.session import MOST_FAILED_STARTS, Session
from dreamfleet.runtime.worker_runner import Fault, Report

STATS = {"env_steps": 40, "real/ratio_policy": 0.5}
QUIET = Report("learner", [], 0.0, {}, 0, 0, {}, 0, None)


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def opened(tmp_path, said):
    """Returns a function that opens a session in one run folder. Each call starts the run again."""

    @contextmanager
    def open_session(resumed=None, **train):
        config = RunConfig(
            agent="fake", run_dir=str(tmp_path / "run"), steps=100, train=TrainConfig(**train)
        )
        start = RunFolder.reopen(tmp_path / "run", config) if resumed else RunFolder.create(config)
        with (
            start as folder,
            Display("test", Console(file=said)) as display,
            Session(folder.config, folder, display, resumed) as session,
        ):
            yield session

    return open_session


def events(session: Session) -> list[dict]:
    return [json.loads(line) for line in session.folder.metrics.read_text().splitlines()]


def report(worker: str, **what) -> Report:
    return replace(QUIET, worker=worker, **what)


def test_the_memory_of_the_replay_is_printed_once(opened, said):
    with opened() as session:
        for _ in range(2):
            session.take(QUIET, {**STATS, "real/capacity": 5000, "real/bytes": 7_168_000})
    assert said.getvalue().count("replay: table 'real', 5,000 rows, 7.17 MB") == 1


def fault(environment: bool = False) -> Fault:
    return Fault("OSError: no", "Traceback (most recent call last):\nOSError: no\n", environment)


def test_events_become_lines_stamped_with_steps_and_time(opened):
    with opened() as session:
        ended = {"kind": "episode", "return": 7.0, "length": 7, "actor": 1}
        session.take(report("actor-1", events=[ended]), STATS)
        (line,) = events(session)
    assert line["env_steps"] == 40
    assert line["wall_s"] >= 0
    assert {key: line[key] for key in ended} == ended


def test_updates_are_the_highest_reported_and_the_first_is_a_milestone(opened, said):
    with opened() as session:
        assert not session.learning
        session.take(report("actor-0"), STATS)
        assert not session.learning
        session.take(report("dreamer-0", updates=3), STATS)
        assert session.learning
        session.take(report("dreamer-1", updates=0), STATS)
        session.take(report("learner", updates=2), STATS)
        assert session.updates == {"dreamer": 3, "learner": 2}
        assert [event["kind"] for event in events(session)] == ["milestone"]
        assert events(session)[0]["what"] == "first gradient step"
    assert said.getvalue().count("first gradient step after 0.") == 1


def test_a_resumed_run_learns_again_when_it_takes_a_step_of_its_own(opened):
    earlier = {"env_steps": 30, "wall_s": 5.0, "updates": {"learner": 4}}
    with opened() as session:
        pass
    with opened(resumed={"session": earlier}) as session:
        assert (session.env_steps, session.updates["learner"]) == (30, 4)
        session.take(report("learner", updates=4), STATS)
        assert not session.learning
        session.take(report("learner", updates=5), STATS)
        assert session.learning
        assert events(session)[0]["wall_s"] >= 5.0


def test_the_newest_metrics_of_learner_and_dreamer_are_shown(opened):
    told = [
        ("learner", "learn", {"loss/value": 2.0, "dream/share": 0.3}),
        ("dreamer-0", "world", {"loss/transition": 5.0}),
        ("learner", "learn", {"loss/value": 1.0}),
    ]
    with opened() as session:
        for worker, kind, metrics in told:
            event = {"kind": kind, "updates": 1, **metrics}
            session.take(report(worker, events=[event]), STATS)
        newest = {"loss/value": 1.0, "dream/share": 0.3, "loss/transition": 5.0}
        assert session.status().metrics == newest


def test_lag_is_the_newest_version_minus_the_version_in_use(opened):
    with opened() as session:
        session.take(report("learner", published=7), STATS)
        session.take(report("dreamer-0", published=3), STATS)
        for version in (7, 5, 4):
            session.take(report("actor-0", versions={"policy": version, "world": 3}), STATS)
        assert session.status().lag == {"policy": (2.0, pytest.approx(2.9)), "world": (0.0, 0.0)}


def test_waits_are_fractions_of_the_time_of_a_role(opened, monkeypatch):
    monkeypatch.setattr("dreamfleet.runtime.session.PERIOD_S", 0.0)
    with opened() as session:
        session._period_ends = 0.0
        spent = {"busy_s": 6.0, "waits_s": {"replay": 3.0, "replay + dreamer": 1.0}}
        session.take(report("learner", **spent), STATS)
        run = events(session)[-1]
        assert run["kind"] == "run"
        assert run["wait/learner_for_replay"] == pytest.approx(0.3)
        assert run["wait/learner_for_replay_dreamer"] == pytest.approx(0.1)
        assert run["replay/real/ratio_policy"] == 0.5
        assert run["fault/restarts"] == 0
        assert run["speed/env_steps_per_s"] > 0 and run["speed/updates_per_s"] == 0.0
        assert session.status().waits["learner → replay"] == pytest.approx(0.3)
        session.take(report("learner", updates=1), STATS)
        assert session.status().waits == {}  # the learner had to wait for the first rows


@pytest.mark.parametrize(
    ("ratios", "shown"),
    [({"start": 0.25, "world": 0.5}, 0.25), ({"start": 0.25, "policy": 4.0}, 4.0), ({}, None)],
)
def test_the_replay_ratio_is_that_of_the_policy_or_of_its_dreams(opened, ratios, shown):
    with opened() as session:
        ratios = {f"real/ratio_{name}": value for name, value in ratios.items()}
        session.take(QUIET, {"env_steps": 40} | ratios)
        assert session.status().replay_ratio == shown


def test_the_mean_return_of_the_last_hundred_episodes_is_a_metric(opened):
    with opened() as session:
        for total in range(200):
            event = {"kind": "episode", "return": float(total), "length": 1, "actor": 0}
            session.take(report("actor-0", events=[event]), STATS)
        session.finish()
        assert events(session)[-1]["episode/return_mean_100"] == np.mean(range(100, 200))


def test_the_phase_says_what_a_run_waits_for(opened):
    with opened() as session:
        assert session.status().phase == "waiting for the first rows"
        session.take(report("actor-0"), STATS)
        assert session.status().phase == "collecting rows until learning starts"
        session.take(report("learner", updates=1), STATS)
        assert session.status().phase == ""
        session.take(report("actor-0"), {"env_steps": 100})
        assert session.status().phase.startswith("all steps taken")
        session.save({}, {})
        assert session.status().phase == "playing 10 evaluation episodes"


def test_a_success_rate_stands_in_the_last_line(opened, said):
    with opened() as session:
        session.take(report("actor-0"), {"env_steps": 100})
        session.save({}, {})
        session.take_last_evaluation(report("evaluator", events=[EVAL | {"success_mean": 0.5}]))
        assert session.finish() == 0
    assert "eval 9.0 ± 1.0 (10 episodes), success 50%" in said.getvalue()


def test_an_actor_that_broke_is_started_again_with_other_seeds(opened, said):
    with opened() as session:
        assert session.progress("actor-0").starts == 0
        session.take(report("actor-0", fault=fault(environment=True)), STATS)
        assert session.progress("actor-0").starts == 1
        assert session.progress("actor-1").starts == 0
        assert session.status().faults == {"restarts": 1, "refused": 1}
        assert events(session)[-1]["error"] == "OSError: no"
    assert "actor-0 restarted: OSError: no" in said.getvalue()


def test_an_actor_that_never_hands_over_a_row_ends_the_run(opened):
    with opened() as session:
        for _ in range(MOST_FAILED_STARTS - 1):
            session.take(report("actor-0", fault=fault()), STATS)
        with pytest.raises(WorkerFailed) as failed:
            session.take(report("actor-0", fault=fault()), STATS)
    assert str(failed.value).startswith("Traceback (most recent call last):\nOSError: no\n")
    assert "actor-0 broke 5 times in a row before it handed over a single row: OSError: no" in str(
        failed.value
    )


def test_an_actor_that_hands_over_rows_may_break_any_number_of_times(opened):
    with opened() as session:
        for _ in range(3 * MOST_FAILED_STARTS):
            session.take(report("actor-0", chunks=1, fault=fault()), STATS)
            session.take(report("actor-1", fault=fault()), STATS)
            session.take(report("actor-1", chunks=1), STATS)


def test_environments_keep_their_state_over_a_restart_and_a_resume(opened):
    with opened() as session:
        assert session.progress("actor-1").env == {}
        for env in ({"level": 1}, {"level": 2, "scores": [3.0]}):
            session.take(report("actor-1", env=env), STATS)
        session.take(report("learner"), STATS)
        assert (session.progress("actor-1").env, session.progress("actor-0").env) == (env, {})
        state = checkpoint.load(session.save({}, {}))
    with opened(resumed=state) as session:
        assert session.progress("actor-1").env == env


def test_an_evaluator_that_reports_may_break_any_number_of_times(opened):
    with opened() as session:
        for _ in range(3 * MOST_FAILED_STARTS):
            session.take(report("evaluator", fault=fault()), STATS)
            session.take(report("evaluator"), STATS)
        with pytest.raises(WorkerFailed, match="evaluator broke 5 times in a row at once"):
            for _ in range(MOST_FAILED_STARTS):
                session.broke("evaluator", fault())


@pytest.mark.parametrize("worker", ["learner", "dreamer-0", "dreamer-1"])
def test_a_learner_or_dreamer_that_breaks_ends_the_run(opened, worker):
    with opened() as session, pytest.raises(WorkerFailed) as failed:
        session.take(report(worker, fault=fault()), STATS)
    assert str(failed.value).startswith("Traceback")
    assert str(failed.value).endswith(f"{worker} broke: OSError: no")


@pytest.mark.parametrize("worker", ["learner", "dreamer-0", "actor-0"])
def test_a_fault_that_a_restart_cannot_help_ends_the_run_with_one_line(opened, worker):
    with opened() as session, pytest.raises(WorkerFailed) as failed:
        session.take(report(worker, fault=Fault("no finite loss", "", final=True)), STATS)
    assert str(failed.value) == f"{worker}: no finite loss"


def test_skipped_gradient_steps_are_shown_as_faults(opened):
    with opened() as session:
        for skipped in (0.0, 3.0):
            event = {"kind": "learn", "updates": 1, "fault/skipped_policy": skipped}
            session.take(report("learner", events=[event]), STATS)
            faults = session.status().faults
            assert faults.get("skipped_policy", 0) == skipped


def test_a_checkpoint_is_due_at_every_multiple(opened):
    with opened(checkpoint_every=30) as session:
        assert not session.save_due
        session.take(report("actor-0"), {"env_steps": 31})
        assert session.save_due
        session.take(report("learner", updates=8), {"env_steps": 31})
        path = session.save({"policy": {"count": 8}}, {"real": {}})
        assert not session.save_due
        session.take(report("actor-0"), {"env_steps": 60})
        assert session.save_due
    state = checkpoint.load(path, agent="fake", env="CartPole-v1")
    assert state["session"]["env_steps"] == 31
    assert state["session"]["updates"] == {"learner": 8}


def test_a_resumed_run_repeats_no_seeds_of_earlier_starts(opened):
    used = []
    resumed = None
    for _ in range(3):
        with opened(resumed) as session:
            used += [(name, session.progress(name).starts) for name in ("actor-0", "actor-1")]
            session.take(report("actor-0", fault=fault()), STATS)
            used.append(("actor-0", session.progress("actor-0").starts))
            resumed = checkpoint.load(session.save({}, {}))
    assert len(set(used)) == len(used)


def test_the_first_signal_ends_the_run_in_order(opened, said):
    before = signal.getsignal(signal.SIGTERM)
    with opened() as session:
        assert not session.over
        os.kill(os.getpid(), signal.SIGTERM)
        assert session.over
        session.refresh()
        session.refresh()
        session.save({}, {})
        assert session.finish() == 143
    assert said.getvalue().count("SIGTERM: saving, then leaving") == 1
    assert "--resume" in said.getvalue()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_it_at_once(opened, number, code):
    with pytest.raises(SystemExit) as left, opened():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        pytest.fail("still here")
    assert left.value.code == code


def test_enough_steps_end_the_run(opened, said):
    with opened() as session:
        session.take(report("actor-0"), {"env_steps": 100})
        session.save({}, {})
        session.take_last_evaluation(report("evaluator", events=[EVAL]))
        assert session.over
        assert session.finish() == 0
        assert [event["kind"] for event in events(session)] == ["eval", "run"]
    assert "done 100 steps" in said.getvalue()
    assert "eval 9.0 ± 1.0" in said.getvalue()


EVAL = {"kind": "eval", "at": 100, "return_mean": 9.0, "return_std": 1.0, "episodes": 10}


def test_every_line_reaches_tensorboard(opened):
    with opened() as session:
        session.take(report("evaluator", events=[EVAL]), STATS)
        folder = session.folder.path / "tensorboard"
        assert not folder.exists()  # not while the run starts
    (file,) = folder.glob("events.out.tfevents.*")
    assert b"eval/return_mean" in file.read_bytes()


def full(monkeypatch) -> None:
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", refuse)


def test_a_full_disk_gives_one_warning_a_minute_and_the_run_goes_on(opened, said, monkeypatch):
    with opened(checkpoint_every=1) as session:
        clock = [time.monotonic()]
        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        with monkeypatch.context() as patch:
            full(patch)
            patch.setattr(session._metrics, "write", checkpoint.save)
            for step in range(1, 131):  # a second each
                session.take(report("actor-0"), {"env_steps": step})
                assert session.save_due
                assert session.save({}, {}) is None
                clock[0] += 1.0
        assert said.getvalue().count("warning: ") == 3
        assert "No space left on device" in said.getvalue()
        session.take(report("actor-0"), {"env_steps": 200})
        assert session.save({}, {})
        assert session.finish() == 0


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_could_not_be_saved_exits_with_1_and_names_its_last_checkpoint(
    opened, said, monkeypatch, interrupted
):
    with opened() as session:
        session.take(report("actor-0"), {"env_steps": 40})
        session.save({}, {})
        session.take(report("actor-0"), {"env_steps": 100})
        session.interrupts.number = signal.SIGINT if interrupted else None
        full(monkeypatch)
        session.save({}, {})
        assert session.finish() == 1
    last = said.getvalue().strip().splitlines()[-1]
    assert last.startswith("stopped at 100 steps, not saved: [Errno 28] No space left on device.")
    assert "The newest checkpoint is of 40 steps" in last


def test_without_a_checkpoint_resuming_is_not_advised(opened, said, monkeypatch):
    with opened() as session:
        full(monkeypatch)
        session.save({}, {})
        assert session.finish() == 1
    assert said.getvalue().rstrip().endswith("There is no checkpoint.")


def test_nan_is_not_saved_and_the_older_checkpoint_stays(opened, said):
    with opened() as session:
        path = session.save({"policy": {"w": np.ones(2)}}, {})
        session.take(report("actor-0"), {"env_steps": 50})
        assert session.save({"policy": {"w": np.array([1.0, np.nan])}}, {}) is None
        assert session.finish() == 1
    assert checkpoint.newest(path.parent) == path
    assert "agent.policy.w holds nan (1 of 2 numbers)" in said.getvalue()


def test_a_checkpoint_counts_the_steps_that_its_replay_holds(opened):
    """The saved replay holds 44 steps, while the last report of the replay said 40."""
    replay = {"real": {"limiter": {"steps": 44}}}
    with opened() as session:
        session.take(report("actor-0"), {"env_steps": 40})
        path = session.save({}, replay)
        shards = {"shard-0": replay, "shard-1": replay}
        sharded = session.save({}, shards)
    assert checkpoint.manifest(path)["env_steps"] == 44
    assert checkpoint.load(sharded)["session"]["env_steps"] == 88


def best(at: int, score: float, weight: float) -> BestEvaluation:
    return BestEvaluation(at, score, 10, {"policy": {"w": np.array([weight])}})


def kept(session: Session) -> tuple[int, float]:
    saved = checkpoint.read_newest(session.folder.best)
    assert len(list(session.folder.best.iterdir())) == 1
    return saved.env_steps, saved.state["weights"]["policy"]["w"].item()


def test_the_best_evaluation_is_kept_and_remembered_by_a_resumed_run(opened, said):
    with opened() as session:
        assert session.progress("evaluator").best_score is None
        for at, score in ((10, 5.0), (20, 7.0), (30, 6.0), (40, 7.0)):
            session.take(report("evaluator", best=best(at, score, at)), STATS)
        assert kept(session) == (40, 40.0)  # of equal ones the newer
        assert session.progress("evaluator").best_score == 7.0
        resumed = checkpoint.load(session.save({}, {}))
    with opened(resumed) as session:
        assert session.progress("evaluator").best_score == 7.0
        session.take(report("evaluator", best=best(50, 6.9, 50)), STATS)
        assert kept(session) == (40, 40.0)
        session.take_last_evaluation(report("evaluator", best=best(60, 8.0, 60)))
        assert kept(session) == (60, 60.0)
    damaged = next(session.folder.best.iterdir()) / "arrays.npz"
    damaged.write_bytes(b"")
    with opened(resumed) as session:
        assert session.progress("evaluator").best_score is None
    assert "The next evaluation counts as the best so far" in said.getvalue()


def test_a_resumed_run_writes_a_resume_event(opened):
    with opened() as session:
        session.take(report("actor-0"), STATS)
        resumed = checkpoint.load(session.save({}, {}))
        assert "resume" not in {event["kind"] for event in events(session)}
    for times in (1, 2):
        with opened(resumed) as session:
            marks = [event for event in events(session) if event["kind"] == "resume"]
            assert [mark["resumes"] for mark in marks] == list(range(1, times + 1))
            assert marks[-1]["env_steps"] == 40
            resumed = checkpoint.load(session.save({}, {}))


def test_a_last_evaluation_that_breaks_does_not_fail_the_run(opened, said):
    with opened() as session:
        session.take(report("evaluator", events=[EVAL | {"at": 40}]), {"env_steps": 100})
        session.save({}, {})
        session.take_last_evaluation(report("evaluator", fault=fault()))
        assert session.finish() == 0
    assert "the last evaluation broke: OSError: no" in said.getvalue()
    assert "eval 9.0" not in said.getvalue().splitlines()[-1]  # of another policy


def test_the_delay_between_failed_starts_doubles(opened):
    with opened() as session:
        rests = []
        for _ in range(MOST_FAILED_STARTS - 1):
            session.broke("actor-0", fault())
            rests.append(session.rest_s("actor-0"))
        assert rests == [0.0, 0.2, 0.4, 0.8]
        session.broke("actor-0", fault(), useful=True)
        assert session.rest_s("actor-0") == 0.0
        for _ in range(3 * MOST_FAILED_STARTS):  # it hands over rows each time, unheard
            session.broke("actor-0", fault(), useful=True)


@pytest.mark.parametrize(
    ("error", "ends"),
    [(WorkerFailed("a trace\nlearner broke: no."), True), (ArithmeticError("ours"), False)],
)
def test_a_run_that_fails_says_how_to_continue(opened, said, tmp_path, error, ends):
    def fail(resumed=None, save=False):
        with pytest.raises(type(error)) as failed, opened(resumed) as session:
            if save:
                session.save({}, {})
            raise error
        return str(failed.value) if ends else said.getvalue()

    first = fail()
    assert "It has no checkpoint yet: start a new run." in first.splitlines()[-1]
    resumed = {"session": {"env_steps": 30}}
    assert fail(resumed, save=True).splitlines()[-1].endswith(f"Go on: --resume {tmp_path}/run")
