"""The bench of the learner runs, small, and its peers are what they are said to be."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.tables import details
from benchmarks.updates.comparison import Race
from benchmarks.updates.eager_rainbow import OurReplay, Step, Tree, TreeReplay, of_n_steps
from benchmarks.updates.gated_rainbow import EQUAL, OURS, Games, peer, race
from benchmarks.updates.speed import footing, measure, table, without
from dreamfleet.agents.blocks.value_heads import project
from dreamfleet.agents.gated_rainbow.agent import GatedRainbow

SMALL = replace(EQUAL, capacity=2048, batch=32)


@pytest.fixture(scope="module")
def played():
    return Games(SMALL.capacity, SMALL.gamma)


PEERS = pytest.mark.parametrize(
    ("replay", "tidy"), [(TreeReplay, False), (OurReplay, True)], ids=["as written", "tidy"]
)


def test_every_side_is_measured_in_every_round_and_told_in_the_readme(tmp_path):
    racing = without(race(SMALL), OURS[1:])  # to compile takes a minute
    found = json.loads(json.dumps(measure(racing, rounds=2, seconds=0.01)))
    assert list(found["rates"]) == list(racing.sides)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found["rates"].values())
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(racing.sides)
    assert ["×" in line for line in lines[2:]] == [False, False, True, True]
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates" / "some-agent.json").write_text(json.dumps(found))
    command = "`python benchmarks/updates/speed.py --agent some-agent`"
    assert details(tmp_path).endswith(f"{table(found)}\n\n{command}: {footing(found)}.")


def test_a_peer_that_is_not_installed_is_named_and_left_out():
    def work(updates):
        sum(range(1000 * updates))

    def missing():
        raise AssertionError("it cannot be built")

    sides = {"ours": lambda: work, "theirs": missing}
    racing = Race(256, 1000, ("ours",), (), sides, {"theirs": "no-such-distribution"})
    found = measure(racing, rounds=2, seconds=0.001)
    assert list(found["rates"]) == ["ours"]
    assert found["skipped"] == {"theirs": "no-such-distribution"} and found["peers"] == {}


def test_ratios_are_taken_round_by_round():
    rates = {OURS[0]: [10.0, 40.0, 30.0], OURS[1]: [30.0] * 3, "a peer": [10.0, 20.0, 10.0]}
    lines = table({"batch": 256, "ours": OURS, "others": (), "rates": rates}).splitlines()
    assert lines[2:] == [
        f"| {OURS[0]} | 30 |  |  |",
        f"| {OURS[1]} | 30 |  |  |",
        "| a peer | 10 | 2.00× (1.00×) | 3.00× (1.50×) |",
    ]


@PEERS
def test_the_networks_are_equal(played, replay, tidy):
    ours = GatedRainbow(SMALL, played.spec, 0, "cpu").online
    theirs = peer(SMALL, played, replay, tidy).online
    assert numbers(ours) == numbers(theirs)


def numbers(net):
    return sum(parameter.numel() for parameter in net.parameters())


@PEERS
def test_a_peer_learns_what_is_paid_next(played, replay, tidy):
    torch.manual_seed(0)
    learner = peer(replace(SMALL, gamma=0.0, lr_critic=3e-3), played, replay, tidy)
    data = learner.replay.sample()

    @torch.no_grad()
    def error():
        learner.online.draw()
        values = (learner.online(data.obs) * learner.online.support).sum(-1)
        return float(
            (values[torch.arange(len(data.action)), data.action] - data.reward).abs().mean()
        )

    before = error()
    for _ in range(200):
        learner()
    assert error() < 0.5 * before


@PEERS
def test_targets_are_those_of_the_paper(played, replay, tidy):
    torch.manual_seed(0)
    learner = peer(SMALL, played, replay, tidy)
    learner.online.draw()
    learner.target.draw()
    data = learner.replay.sample()
    support = learner.online.support
    best = (learner.online(data.next_obs) * support).sum(-1).argmax(-1)
    following = learner.target(data.next_obs)[torch.arange(len(best)), best]
    discount = SMALL.gamma**SMALL.n_step * (1 - data.done.float())
    expected = project(following, data.reward, discount, support)
    with torch.no_grad():
        found = learner.targets(data)
    # float32 places a return among 51 atoms to within some 1e-5: 1.1 to 1.9e-5 in 16 batches.
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


def test_a_tree_keeps_sums_and_the_least():
    rng = np.random.default_rng(0)
    masses = rng.random(13).astype(np.float32)
    total, least = Tree(13, least=False), Tree(13, least=True)
    for i, mass in enumerate(masses):
        total.set(i, 9.0)
        total.set(i, mass)
        least.set(i, mass)
    assert total.node[1] == pytest.approx(masses.sum()) and least.node[1] == masses.min()
    edges = np.cumsum(masses)
    for point in rng.uniform(0, edges[-1], 100):
        assert total.find(point) == np.searchsorted(edges, point)


def test_transitions_of_n_steps_end_with_their_episode():
    def step(t, done=False):
        return Step(np.array([t]), t, float(t), np.array([t + 1]), done)

    steps = [step(0), step(1), step(2), step(3, done=True), step(4), step(5), step(6)]
    found = [
        (of.action, of.reward, int(of.next_obs[0]), of.done) for of in of_n_steps(steps, 3, 0.5)
    ]
    assert found == [
        (0, 0 + 0.5 + 0.5, 3, False),
        (1, 1 + 1 + 0.75, 4, True),
        (4, 4 + 2.5 + 1.5, 7, False),
    ]


def test_what_is_played_has_whole_histories(played):
    rows = played.rows
    for i, t in itertools.product(range(3), range(4, 30)):
        begin = max(s for s in range(t + 1) if rows["first"][i, s])
        expected = [rows["obs"][i, max(begin, s)] for s in range(t - 3, t + 1)]
        np.testing.assert_array_equal(rows["history"][i, t], expected)
    steps = next(played.transitions(unit=2.0))
    assert len(steps) == (~rows["last"][0, :-1]).sum()
