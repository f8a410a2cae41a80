"""Tests the timing of workloads that take turns."""

import itertools

from benchmarks.timing import Workload, interleaved, repeated


class SteadyWorkload(Workload):
    """A workload whose repetitions appear to take exactly 1 ms each."""

    def time(self, n):
        self.run(n)
        return n * 0.001


def test_workloads_alternate_after_a_warm_up_and_rates_count_items():
    log = []
    a, b = (
        SteadyWorkload(name, repeated(lambda name=name: log.append(name)), items=5) for name in "ab"
    )
    rounds = list(interleaved([a, b], 4, 0.02))
    turns = [(name, len(list(group))) for name, group in itertools.groupby(log)]
    warm = 1 + 2 + 4 + 8 + 16
    # Warm-up of a and b, then rounds of 20 repetitions: a b, b a, a b, b a. Repetitions of the
    # same workload at the border of two rounds are one group.
    assert turns == [
        ("a", warm),
        ("b", warm),
        ("a", 20),
        ("b", 40),
        ("a", 40),
        ("b", 40),
        ("a", 20),
    ]
    assert rounds == [[5000.0, 5000.0]] * 4


def test_the_default_clock_measures_a_rate():
    assert Workload("a", repeated(lambda: None), 1).rate(10) > 0


def test_the_clock_can_be_replaced():
    ticks = itertools.count(step=0.25)
    workload = Workload("a", repeated(lambda: None), 3, clock=lambda: next(ticks))
    assert workload.rate(10) == 10 * 3 / 0.25
