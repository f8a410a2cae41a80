from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.types import Consumer
from dreamfleet.replay_server.limiter import Limiter


@given(
    rate=st.floats(0.01, 8),
    slack=st.floats(1, 20),
    min_steps=st.integers(0, 50),
    chunk=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_credit_stays_between_0_and_the_slack_for_any_order_of_calls(
    rate: float, slack: float, min_steps: int, chunk: int, seed: int
) -> None:
    limiter = Limiter({"a": Consumer(1, 1, samples_per_step=rate, min_steps=min_steps)}, slack)
    rng = np.random.default_rng(seed)
    eager = rng.random()  # how often the consumer may sample
    for _ in range(400):
        early, behind = not limiter.may_sample("a"), limiter.behind("a")
        assert not (early and behind)  # one of the two may always go on
        if rng.random() < eager:
            if not early:
                limiter.samples["a"] += 1
        elif not behind:
            limiter.steps += chunk
        if limiter.steps < min_steps:
            assert limiter.samples["a"] == 0
        else:
            owed = (limiter.steps - min_steps) * rate - limiter.samples["a"]
            assert 0 <= owed <= slack + chunk * rate + 1e-9


@given(
    rate=st.floats(0.05, 4),
    slack=st.floats(1, 6),
    lost=st.integers(0, 8),
    chunk=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_a_run_continues_after_a_restore_that_lost_queued_dreams(
    rate: float, slack: float, lost: int, chunk: int, seed: int
) -> None:
    """A sample of consumer `start` makes a dream, and a sample of `policy` uses one dream.

    Dreams that are not used yet are lost in the restore.
    """
    consumers = dict.fromkeys(("start", "policy"), Consumer(1, samples_per_step=rate, min_steps=3))
    rng, limiter, dreams = np.random.default_rng(seed), Limiter(consumers, slack), 0

    def turn() -> bool:
        nonlocal dreams
        if not any(limiter.behind(name) for name in consumers):
            limiter.steps += chunk
            return True
        if dreams <= lost and limiter.may_sample("start"):
            limiter.samples["start"] += 1
            dreams += 1
            return True
        if dreams and limiter.may_sample("policy"):
            limiter.samples["policy"] += 1
            dreams -= 1
            return True
        return False

    for _ in range(int(rng.integers(1, 60))):
        assert turn()
    before, dreams = limiter.state(), 0
    limiter.restore(before)
    assert 0 <= before["samples"]["start"] - limiter.samples["start"] <= lost + 1
    assert limiter.samples["policy"] == before["samples"]["policy"]
    for _ in range(60):
        assert turn()


def test_ratio_reaches_its_target() -> None:
    limiter = Limiter({"a": Consumer(1, samples_per_step=0.25, min_steps=100)}, 1.0)
    for _ in range(10_000):
        if limiter.may_sample("a"):
            limiter.samples["a"] += 1
        else:
            limiter.steps += 1
    assert limiter.ratio("a") == pytest.approx(0.25, abs=1e-3)


def test_a_consumer_without_a_rate_is_never_limited_and_never_behind() -> None:
    limiter = Limiter({"a": Consumer(1, min_steps=5)}, 1.0)
    assert not limiter.may_sample("a")
    limiter.steps = 5
    limiter.samples["a"] = 10_000
    assert limiter.may_sample("a")
    limiter.steps = 10_000
    assert not limiter.behind("a")


@given(
    rate=st.floats(0.01, 8),
    slack=st.floats(1, 20),
    min_steps=st.integers(0, 50),
    samples=st.integers(0, 200),
)
@settings(max_examples=100, deadline=None)
def test_room_is_the_number_of_steps_until_the_consumer_is_behind(
    rate: float, slack: float, min_steps: int, samples: int
) -> None:
    limiter = Limiter({"a": Consumer(1, 1, samples_per_step=rate, min_steps=min_steps)}, slack)
    limiter.samples["a"] = samples
    room, steps = limiter.room("a"), 0
    while steps < 2000 and not limiter.behind("a"):
        assert limiter.room("a") >= 0
        limiter.steps += 1
        steps += 1
    if steps < 2000:
        assert limiter.room("a") < 0
        assert steps - 1 <= room + 1e-6 <= steps + 1e-6
    else:
        assert room > 1990


@given(
    shared_rate=st.floats(0.1, 2),
    rate=st.floats(0.1, 4),
    chunk=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_samples_of_a_consumer_count_for_the_consumer_that_shares_them(
    shared_rate: float, rate: float, chunk: int, seed: int
) -> None:
    consumers = {
        "world": Consumer(1, samples_per_step=shared_rate),
        "start": Consumer(1, samples_per_step=rate, shares="world"),
    }
    limiter, rng = Limiter(consumers, 2.0), np.random.default_rng(seed)
    eager = rng.random()  # how often dreamers that do not train may sample `start`
    for _ in range(400):
        while limiter.may_sample("world"):
            limiter.samples["world"] += 1
            if rng.random() < eager and limiter.may_sample("start"):
                limiter.samples["start"] += 1
        assert not limiter.behind("start") and limiter.room("start") == np.inf
        assert not limiter.behind("world")
        limiter.steps += chunk
    budget = (limiter.steps - 1) * max(rate, shared_rate)
    assert sum(limiter.samples.values()) <= budget + 1
    taken = limiter.samples["world"] + limiter.samples["start"]
    assert limiter.ratio("start") == taken / (limiter.steps - 1)
    assert limiter.ratio("world") == limiter.samples["world"] / (limiter.steps - 1)
    before = limiter.samples.copy()
    limiter.restore(limiter.state())
    assert limiter.samples == before  # `start` was not sampled as often as its rate allows


def test_room_is_infinite_for_a_consumer_without_a_rate() -> None:
    assert Limiter({"a": Consumer(1, min_steps=5)}, 1.0).room("a") == np.inf
