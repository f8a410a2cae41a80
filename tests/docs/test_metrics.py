"""Tests that docs/metrics.md is current and describes every metric that a run writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamfleet import agents
from dreamfleet.core.config import TrainConfig
from dreamfleet.core.types import Event
from dreamfleet.runtime import metric_reference
from dreamfleet.runtime.gauges import Gauges
from dreamfleet.runtime.tensorboard import scalars
from dreamfleet.runtime.worker_runner import Report
from tests import runs

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {"batch": 8, "world_batch": 20, "warmup": 30}
TINY = {  # agent → environment and options with which the agent learns and dreams at once
    "dreamer-lite": ("CartPole-v1", SMALL),
    "gated-rainbow": ("NumberGame-v1", {**SMALL, "dream_after": 0}),
    "dreamwalker": ("Pendulum-v1", {**SMALL, "dream_after": 0}),
    "barlow-dreamer": (
        "Pendulum-v1",
        {"batch": 4, "window": 8, "warmup": 30, "dream_starts": 2, "probe": True},
    ),
}


def test_the_page_is_current():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert text == metric_reference.page(), "run python docs/generate.py"


def test_every_metric_has_a_unit_a_meaning_and_healthy_values():
    for metrics in metric_reference.groups().values():
        for metric in metrics:
            assert metric.meaning.endswith("."), metric.name
            assert metric.healthy and metric.unit == metric.unit.strip(), metric.name


def test_an_exact_name_is_found_before_a_pattern():
    assert metric_reference.find("eval/return_mean").name == "eval/return_mean"
    assert metric_reference.find("eval/success_mean").name == "eval/FACT_mean"
    assert metric_reference.find("model/error_12").name == "model/error_N"
    assert metric_reference.find("model/error_x") is None


def described(events: list[Event]) -> set[str]:
    """Returns the names of the metric descriptions that events use.

    Fails if an event contains a metric without a description.
    """
    names = {name for event in events for name in scalars(event)}
    found = {name: metric_reference.find(name) for name in names}
    assert not [name for name, metric in found.items() if metric is None]
    return {metric.name for metric in found.values() if metric is not None}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, list[Event]]:
    """The events that short runs write, one run with each agent."""
    rhythm = TrainConfig(chunk=4, log_every=4, eval_every=60, eval_episodes=2, eval_steps=20)
    events = {}
    for agent, (env, options) in TINY.items():
        path = tmp_path_factory.mktemp("runs") / agent
        settings = {"agent": agent, "train": rhythm}
        events[agent] = runs.train(path, env, 120, options=options, **settings).events
    return events


@pytest.mark.parametrize("agent", agents.REGISTRY)
def test_every_metric_that_an_agent_writes_is_described(written, agent):
    assert described(written[agent])


def test_every_description_has_a_metric(written):
    gauges = Gauges(env_steps=0, updates=0)
    for worker in ("actor-0", "learner", "dreamer-0"):
        waits = {"replay": 1.0, "dreamer": 1.0}
        gauges.take(Report(worker, [], 1.0, waits, 0, 1, {"policy": 1}, 0, None))
    on_ray: Event = {"kind": "run", "env_steps": 0, **gauges.close_period(env_steps=1, updates=1)}
    needed = described([on_ray, *(event for events in written.values() for event in events)])
    known = {metric.name for metrics in metric_reference.groups().values() for metric in metrics}
    assert known - needed == set()
