from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.types import Consumer
from replay_server.limiter import Limiter


@given(
    rate=st.floats(0.01, 8),
    slack=st.floats(1, 20),
    min_steps=st.integers(0, 50),
    chunk=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_ratio_stays_in_its_band_under_any_interleaving(
    rate: float, slack: float, min_steps: int, chunk: int, seed: int
) -> None:
    limiter = Limiter({"a": Consumer(1, 1, samples_per_step=rate, min_steps=min_steps)}, slack)
    rng = np.random.default_rng(seed)
    eager = rng.random()  # how often the consumer gets its turn
    for _ in range(400):
        early, behind = not limiter.may_sample("a"), limiter.behind("a")
        assert not (early and behind)  # somebody may always go on
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


def test_ratio_reaches_its_target() -> None:
    limiter = Limiter({"a": Consumer(1, samples_per_step=0.25, min_steps=100)}, 1.0)
    for _ in range(10_000):
        if limiter.may_sample("a"):
            limiter.samples["a"] += 1
        else:
            limiter.steps += 1
    assert limiter.ratio("a") == pytest.approx(0.25, abs=1e-3)


def test_a_consumer_without_a_rate_samples_as_it_likes_and_holds_nobody() -> None:
    limiter = Limiter({"a": Consumer(1, min_steps=5)}, 1.0)
    assert not limiter.may_sample("a")
    limiter.steps = 5
    limiter.samples["a"] = 10_000
    assert limiter.may_sample("a")
    limiter.steps = 10_000
    assert not limiter.behind("a")
