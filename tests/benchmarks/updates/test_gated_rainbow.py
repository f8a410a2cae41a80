"""Tests that Gated Rainbow and Rainbow in eager PyTorch have equal networks and equal rows."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.tables import tables
from benchmarks.updates.comparison import Comparison
from benchmarks.updates.eager_rainbow import (
    OurReplay,
    SegmentTree,
    Transition,
    TreeReplay,
    n_step_transitions,
)
from benchmarks.updates.gated_rainbow import EQUAL, OURS, RandomPlay, comparison, eager_learner
from benchmarks.updates.speed import conditions, measure, table, without
from dreamfleet.agents.blocks.value_heads import project
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow

SMALL = replace(EQUAL, capacity=2048, batch=32)


@pytest.fixture(scope="module")
def played():
    return RandomPlay(SMALL.capacity, SMALL.gamma)


EAGER = pytest.mark.parametrize(
    ("replay", "vectorised"),
    [(TreeReplay, False), (OurReplay, True)],
    ids=["as CleanRL", "vectorised"],
)


def test_every_learner_is_measured_in_every_round_and_shown_in_the_results(tmp_path):
    compared = without(comparison(SMALL), OURS[1:])  # compiling takes a minute
    found = json.loads(json.dumps(measure(compared, rounds=2, seconds=0.01)))
    assert list(found["rates"]) == list(compared.learners)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found["rates"].values())
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(compared.learners)
    assert ["×" in line for line in lines[2:]] == [False, False, True, True]
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates" / "some-agent.json").write_text(json.dumps(found))
    shown = tables(tmp_path)
    command = "`python benchmarks/updates/speed.py --agent some-agent`"
    assert table(found) in shown
    assert f"{command}: {conditions(found)}." in shown.replace("\n", " ")


def test_a_learner_that_is_not_installed_is_named_and_left_out():
    def updates(n):
        sum(range(1000 * n))

    def missing():
        raise AssertionError("it cannot be built")

    learners = {"ours": lambda: updates, "theirs": missing}
    needs = {"theirs": "no-such-distribution"}
    compared = Comparison(256, 1000, ("ours",), (), learners, needs)
    found = measure(compared, rounds=2, seconds=0.001)
    assert list(found["rates"]) == ["ours"]
    assert found["skipped"] == {"theirs": "no-such-distribution"} and found["peers"] == {}


def test_ratios_are_taken_round_by_round():
    rates = {OURS[0]: [10.0, 40.0, 30.0], OURS[1]: [30.0] * 3, "another": [10.0, 20.0, 10.0]}
    lines = table({"batch": 256, "ours": OURS, "others": (), "rates": rates}).splitlines()
    assert lines[2:] == [
        f"| {OURS[0]} | 30 |  |  |",
        f"| {OURS[1]} | 30 |  |  |",
        "| another | 10 | 2.00× (1.00×) | 3.00× (1.50×) |",
    ]


@EAGER
def test_the_networks_are_equal(played, replay, vectorised):
    ours = GatedRainbow(SMALL, played.spec, 0, "cpu").online
    theirs = eager_learner(SMALL, played, replay, vectorised).online
    assert numbers(ours) == numbers(theirs)


def numbers(net):
    return sum(parameter.numel() for parameter in net.parameters())


@EAGER
def test_an_eager_learner_learns_the_next_reward(played, replay, vectorised):
    torch.manual_seed(0)
    learner = eager_learner(replace(SMALL, gamma=0.0, lr_critic=3e-3), played, replay, vectorised)
    data = learner.replay.sample()

    @torch.no_grad()
    def error():
        learner.online.draw_noise()
        values = (learner.online(data.obs) * learner.online.support).sum(-1)
        return float(
            (values[torch.arange(len(data.action)), data.action] - data.reward).abs().mean()
        )

    before = error()
    for _ in range(200):
        learner()
    assert error() < 0.5 * before


@EAGER
def test_targets_are_projected_as_in_the_paper(played, replay, vectorised):
    torch.manual_seed(0)
    learner = eager_learner(SMALL, played, replay, vectorised)
    learner.online.draw_noise()
    learner.target.draw_noise()
    data = learner.replay.sample()
    support = learner.online.support
    best = (learner.online(data.next_obs) * support).sum(-1).argmax(-1)
    following = learner.target(data.next_obs)[torch.arange(len(best)), best]
    discount = SMALL.gamma**SMALL.n_step * (1 - data.done.float())
    expected = project(following, data.reward, discount, support)
    with torch.no_grad():
        found = learner.targets(data)
    # Rounding of float32 moves a return among 51 atoms by 1.1e-5 to 1.9e-5 in 16 batches.
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


def test_a_segment_tree_has_sums_or_minimums():
    rng = np.random.default_rng(0)
    values = rng.random(13).astype(np.float32)
    total, minimum = SegmentTree(13, minimum=False), SegmentTree(13, minimum=True)
    for i, value in enumerate(values):
        total.set(i, 9.0)
        total.set(i, value)
        minimum.set(i, value)
    assert total.node[1] == pytest.approx(values.sum()) and minimum.node[1] == values.min()
    edges = np.cumsum(values)
    for point in rng.uniform(0, edges[-1], 100):
        assert total.find(point) == np.searchsorted(edges, point)


def test_n_step_transitions_stay_within_an_episode():
    def step(t, done=False):
        return Transition(np.array([t]), t, float(t), np.array([t + 1]), done)

    steps = [step(0), step(1), step(2), step(3, done=True), step(4), step(5), step(6)]
    found = [
        (new.action, new.reward, int(new.next_obs[0]), new.done)
        for new in n_step_transitions(steps, 3, 0.5)
    ]
    assert found == [
        (0, 0 + 0.5 + 0.5, 3, False),
        (1, 1 + 1 + 0.75, 4, True),
        (4, 4 + 2.5 + 1.5, 7, False),
    ]


def test_played_rows_have_complete_histories(played):
    rows = played.rows
    for i, t in itertools.product(range(3), range(4, 30)):
        begin = max(s for s in range(t + 1) if rows["first"][i, s])
        expected = [rows["obs"][i, max(begin, s)] for s in range(t - 3, t + 1)]
        np.testing.assert_array_equal(rows["history"][i, t], expected)
    steps = next(played.transitions(unit=2.0))
    assert len(steps) == (~rows["last"][0, :-1]).sum()
