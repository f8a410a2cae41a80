"""Tests that every built-in agent learns from finite observations and rewards of any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dreamfleet.contracts import (
    STREAMS,
    Experience,
    Synthetic,
    full_state,
    learn,
    pytest_generate_tests,  # noqa: F401 - gives each test its `case`
    rollout,
)
from dreamfleet.core.types import Batch, EnvSpec


def sentinels(rows: Batch, rng: np.random.Generator) -> None:
    rows["obs"][rng.random(len(rows["obs"])) < 0.2] = 3.4e38


def faulty_rows(rows: Batch, rng: np.random.Generator) -> None:
    faulty = rng.random(len(rows["obs"])) < 0.02
    rows["obs"][faulty] = rng.choice([1e20, -3e38, 1e6], rows["obs"][faulty].shape)
    rows["reward"][faulty] = rng.choice([1e20, -3e38, 1e6], faulty.sum())


def time_stamps(rows: Batch, rng: np.random.Generator) -> None:
    rows["obs"] += np.float32(1.7e9)


def rewards(size: float) -> Callable[[Batch, np.random.Generator], None]:
    def apply(rows: Batch, rng: np.random.Generator) -> None:
        rows["reward"] *= np.float32(size)

    return apply


EXTREMES = {
    "sentinels": sentinels,
    "faulty-rows": faulty_rows,
    "time-stamps": time_stamps,
    "rewards-of-1e6": rewards(1e6),
    "rewards-of-1e10": rewards(1e10),
    "rewards-of-1e15": rewards(1e15),
    "rewards-of-1e-15": rewards(1e-15),
}


class Extreme(Synthetic):
    """A synthetic environment with numbers whose squares or differences float32 cannot hold."""

    def __init__(self, spec: EnvSpec, n: int, kind: str) -> None:
        super().__init__(spec, n)
        self.change = EXTREMES[kind]

    def rows(self) -> Batch:
        rows = super().rows()
        self.change(rows, self.rng)
        return rows


@pytest.mark.parametrize("kind", EXTREMES)
def test_learning_from_finite_numbers_of_any_size_keeps_an_agent_finite(case, kind):
    """No gradient step is skipped, the agent's state has no NaN, and actions are finite."""
    if case.spec.obs.image and not kind.startswith("rewards"):
        pytest.skip("observations are bytes")
    agent = case.build()
    experience = Experience(agent, env=Extreme(case.spec, STREAMS, kind))
    skipped = {}
    for result in learn(agent, experience, steps=2 if case.spec.obs.image else 6):
        for name, value in result.get("metrics", {}).items():
            assert not np.isnan(float(value)), name
            if name.startswith("fault/skipped"):
                skipped[name] = float(value)
    assert skipped and not any(skipped.values())
    for path, value in full_state(agent).items():
        assert not np.any(np.isnan(np.asarray(value, np.float64))), path
    chunk = rollout(agent, Extreme(case.spec, 3, kind), steps=3)
    assert np.isfinite(chunk["action"]).all()
