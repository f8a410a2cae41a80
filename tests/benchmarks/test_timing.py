"""Timing in turns."""

import itertools

from benchmarks.timing import Side, each, interleaved


class Steady(Side):
    """Repetitions that take 1 ms each by a clock of their own."""

    def time(self, n):
        self.work(n)
        return n * 0.001


def test_sides_take_turns_after_a_warm_up_and_rates_count_items():
    log = []
    a, b = (Steady(name, each(lambda name=name: log.append(name)), items=5) for name in "ab")
    rounds = list(interleaved([a, b], 4, 0.02))
    turns = [(name, len(list(group))) for name, group in itertools.groupby(log)]
    warm = 1 + 2 + 4 + 8 + 16
    # a and b warm up; then a b, b a, a b, b a with 20 repetitions each, where equals meet
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


def test_a_real_clock_runs():
    assert Side("a", each(lambda: None), 1).rate(10) > 0


def test_another_clock_may_count():
    ticks = itertools.count(step=0.25)
    side = Side("a", each(lambda: None), 3, clock=lambda: next(ticks))
    assert side.rate(10) == 10 * 3 / 0.25
