"""Tests that the watchdog sees environment calls, and that no call ends during a check."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from dreamfleet.runtime.watchdog import EnvCalls, Watchdog, WatchedEnv
from tests.fakes import FakeEnv


class Slow(FakeEnv):
    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def step(self, action):
        self.go_on.wait(10.0)
        return super().step(action)


def test_the_watchdog_sees_the_worker_and_the_duration_of_a_call():
    calls, slow = EnvCalls(), Slow()
    env, seen = WatchedEnv(slow, "actor-3", calls), []

    def check(call):
        seen.append(call)
        if call and call.seconds > 0.3:
            slow.go_on.set()

    with Watchdog(calls, check):
        env.reset()
        env.step(np.zeros(2, np.int64))
    workers = {call.worker for call in seen if call}
    assert workers == {"actor-3"}
    assert max(call.seconds for call in seen if call) > 0.3
    assert {call.environments for call in seen if call} == {2}
    with calls.current() as call:
        assert call is None


def test_no_call_ends_during_a_check():
    calls, ended = EnvCalls(), threading.Event()
    entered = threading.Event()

    def work() -> None:
        with calls.record("evaluator"):
            entered.set()
        ended.set()

    with calls.current() as call:
        assert call is None
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(5.0)
        time.sleep(0.1)
        assert not ended.is_set()
    assert ended.wait(5.0)
    thread.join()


def test_a_watched_environment_behaves_like_the_environment():
    env = WatchedEnv(FakeEnv((2, 3)), "actor-0", EnvCalls())
    rows = env.reset(seeds=(1, 2))
    assert rows["first"].all()
    assert (env.num_envs, env.spec, env.state()) == (2, env._env.spec, {})
    env._env.info = {"is_success": np.ones(2, bool)}
    env.step(np.zeros(2, np.int64))
    assert env.info["is_success"].all()
    env.close()
    assert env._env.closed


def test_an_exception_of_the_environment_is_raised_and_ends_the_call():
    class Broken(FakeEnv):
        def step(self, action):
            raise OSError("no")

    calls = EnvCalls()
    env = WatchedEnv(Broken(), "actor-0", calls)
    env.reset()
    with pytest.raises(OSError, match="no"):
        env.step(np.zeros(2, np.int64))
    with calls.current() as call:
        assert call is None
