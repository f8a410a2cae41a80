"""Tests that Dreamer-Lite learns CartPole, and that equal seeds give equal metrics."""

from __future__ import annotations

import pytest

from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Event
from dreamfleet.runtime.evaluate import evaluate
from tests.runs import Run, train

SMALL = {"hidden": 64, "latent": 16, "dream_horizon": 8, "warmup": 100}


@pytest.mark.slow
def test_cartpole_is_learned_from_eight_hundred_steps(tmp_path):
    """The mean returns with seeds 0 to 4 are 149, 270, 189, 473 and 131. Random play reaches 22."""
    run = train(tmp_path / "run", "CartPole-v1", 800, options=SMALL)
    found = evaluate(run.path, episodes=20, seed=0, device="cpu")
    assert found["return_mean"] >= 60


def lines(run: Run) -> list[Event]:
    """Returns the lines of metrics of a run, without times and without the lines of kind "run"."""
    return [
        {name: value for name, value in event.items() if not name.endswith("_s")}
        for event in run.events
        if event["kind"] != "run"
    ]


@pytest.mark.slow
def test_runs_with_the_same_seed_write_the_same_metrics(tmp_path):
    often = TrainConfig(chunk=4, log_every=20, eval_every=100, eval_episodes=2)

    def played(name: str, seed: int) -> list[Event]:
        settings = {"seed": seed, "num_actors": 2, "train": often}
        return lines(train(tmp_path / name, "CartPole-v1", 200, options=SMALL, **settings))

    one, same, other = played("one", 3), played("same", 3), played("other", 4)
    assert {event["kind"] for event in one} >= {"episode", "world", "learn", "eval"}
    assert one == same
    assert one != other
