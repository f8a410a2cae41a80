"""Implements the built-in selectors.

A selector is a rule that draws the rows at which sampled windows begin (starts).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.core.selectors import (
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    ReturnDeviation,
    Selector,
    Uniform,
)
from dreamfleet.core.types import Array
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.start_selector import IMPLEMENTATIONS, StartSelector, implements
from dreamfleet.replay_server.sum_tree import SumTree

REJECTION_ROUNDS = 4
PRIORITY_RANGE = (1e-6, 1e12)  # every start can be drawn, and sums stay finite
REBASE_AFTER = 500  # half-lives; f64 holds 2^-1022 to 2^1023


def build(spec: Selector, starts: Starts, rows: Rows, window: int) -> StartSelector:
    """Returns a new selector, as `spec` specifies, that draws from `starts`.

    starts: the rows at which windows may begin. rows: the stored rows. window: rows per window.
    """
    return IMPLEMENTATIONS[type(spec)](spec, starts, rows, window)


def nbytes(spec: Selector, rows: int) -> int:
    """Returns the memory, in bytes, of a selector for `spec` in a table of `rows` rows.

    A selector is a rule that draws the rows at which sampled windows begin.
    """
    return IMPLEMENTATIONS[type(spec)].nbytes(spec, rows)


# ----------------------------------------------------------------------------- equal weights


@implements(Uniform)
class UniformSelector:
    """Draws all starts (rows at which a window may begin) with equal probability."""

    def __init__(self, spec: Selector, starts: Starts, rows: Rows, window: int) -> None:
        self._starts = starts

    @staticmethod
    def nbytes(spec: Selector, rows: int) -> int:
        return 0

    def add(self, slots: Array) -> None:
        pass

    def remove(self, slots: Array) -> None:
        pass

    def update(self, slots: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._draw_from_newest(self._starts.ring.stored, n, rng)

    def probability(self, slots: Array) -> Array:
        return np.full(slots.shape, 1 / self._starts.count)

    def priority_mass(self) -> float:
        return self._starts.count

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _draw_from_newest(self, rows: int, n: int, rng: np.random.Generator) -> Array:
        """Draws n starts uniformly from the starts among the newest `rows` rows.

        A start is a row at which a window may begin. This is rejection sampling; after
        `REJECTION_ROUNDS` rounds, the missing starts are drawn from a list.
        """
        ring, flags = self._starts.ring, self._starts.flags
        slots = np.empty(n, np.int64)
        missing = np.arange(n)
        for _ in range(REJECTION_ROUNDS):
            candidates = ring.slots(ring.inserted - 1 - rng.integers(rows, size=missing.size))
            accepted = flags[candidates]
            slots[missing[accepted]] = candidates[accepted]
            missing = missing[~accepted]
            if not missing.size:
                return slots
        starts = self._starts.between(ring.inserted - rows, ring.inserted)
        slots[missing] = rng.choice(starts, missing.size)
        return slots


@implements(EmphasizeRecent)
class EmphasizeRecentSelector(UniformSelector):
    """Emphasizing Recent Experience (Wang & Ross 2019): draws uniformly from the newest rows.

    Within a cycle, each draw is limited to fewer of the newest rows than the draw before.
    """

    def __init__(self, spec: EmphasizeRecent, starts: Starts, rows: Rows, window: int) -> None:
        super().__init__(spec, starts, rows, window)
        self._spec = spec
        self._draws = 0
        self._newest_rows = 0  # rows that the last draw was limited to
        self._newest_starts = 0  # starts among these rows

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        spec, stored, inserted = self._spec, self._starts.ring.stored, self._starts.ring.inserted
        eta = spec.eta + (1 - spec.eta) * min(self._draws / spec.anneal, 1.0)
        k = self._draws % spec.cycle + 1
        rows = max(stored * eta ** (1000 * k / spec.cycle), spec.floor)
        self._newest_rows = min(int(rows), stored)
        self._newest_starts = self._starts.count_between(inserted - self._newest_rows, inserted)
        if not self._newest_starts:
            self._newest_rows, self._newest_starts = stored, self._starts.count
        self._draws += 1
        return self._draw_from_newest(self._newest_rows, n, rng)

    def probability(self, slots: Array) -> Array:
        ring = self._starts.ring
        return (ring.keys_at(slots) >= ring.inserted - self._newest_rows) / self._newest_starts

    def priority_mass(self) -> float:
        return self._newest_starts or self._starts.count  # at the last draw

    def state(self) -> dict[str, Any]:
        return {"draws": self._draws}

    def restore(self, state: dict[str, Any]) -> None:
        self._draws = int(state["draws"])


# --------------------------------------------------------------------------- weights in a tree


class WeightedSelector:
    """Base class: draws starts with probability proportional to a weight, from a sum tree.

    A start is a row at which a window may begin. A subclass computes the weights of the starts.
    """

    def __init__(self, spec: Selector, starts: Starts, rows: Rows, window: int) -> None:
        self._starts = starts
        self._ring = starts.ring
        self._tree = SumTree(starts.ring.capacity)

    @staticmethod
    def nbytes(spec: Selector, rows: int) -> int:
        return SumTree.nbytes(rows)

    def remove(self, slots: Array) -> None:
        self._tree.write(slots, 0.0)

    def update(self, slots: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._tree.sample(n, rng)

    def probability(self, slots: Array) -> Array:
        return self._tree.weights.take(slots) / self._tree.total

    def priority_mass(self) -> float:
        return self._tree.total

    def state(self) -> dict[str, Any]:
        return {"weights": self._ring.oldest_first(self._tree.weights)}

    def restore(self, state: dict[str, Any]) -> None:
        stored = np.arange(self._ring.oldest, self._ring.inserted)
        self._tree.replace(self._ring.slots(stored), state["weights"])


@implements(Prioritized)
class PrioritizedSelector(WeightedSelector):
    """Prioritized replay: the weight of a start is priority^exponent (Schaul et al. 2016).

    A start is a row at which a window may begin. Priorities are clipped to `PRIORITY_RANGE`.
    """

    def __init__(self, spec: Prioritized, starts: Starts, rows: Rows, window: int) -> None:
        super().__init__(spec, starts, rows, window)
        self._exponent = spec.exponent
        self._largest = 1.0
        self._initial = rows.columns[spec.initial] if spec.initial else None

    def add(self, slots: Array) -> None:
        if self._initial is None:
            self._tree.write(slots, self._largest**self._exponent)
        else:
            initial = self._initial[slots].astype(np.float64).clip(*PRIORITY_RANGE)
            self._tree.write(slots, initial**self._exponent)

    def update(self, slots: Array, priorities: Array) -> None:
        if not slots.size:
            return
        low, high = PRIORITY_RANGE
        # The same as clip() and max(), in half the time for a few hundred priorities.
        priorities = np.minimum(np.maximum(priorities, low), high)
        self._largest = max(self._largest, float(priorities[priorities.argmax()]))
        self._tree.write(slots, priorities**self._exponent)

    def state(self) -> dict[str, Any]:
        return super().state() | {"largest": self._largest}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._largest = float(state["largest"])


@implements(Recency)
class RecencySelector(WeightedSelector):
    """Prefers recent rows: the weight of a start is 2^(-age / half_life).

    A start is a row at which a window may begin. The age of a row is the number of rows inserted
    after it. The sum tree holds weights that are proportional to these, 2^((key - base) /
    half_life).
    """

    def __init__(self, spec: Recency, starts: Starts, rows: Rows, window: int) -> None:
        super().__init__(spec, starts, rows, window)
        self._half_life = spec.half_life
        self._base = 0

    def add(self, slots: Array) -> None:
        keys = self._ring.keys_at(slots)
        if keys.size and (keys.max() - self._base) / self._half_life > REBASE_AFTER:
            self._rebase()
        else:
            self._tree.write(slots, self._weights(keys))

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        if not self._tree.total:  # only starts are left whose weights have become 0
            self._rebase()
        return super().draw(n, rng)

    def priority_mass(self) -> float:
        """Returns the sum of the weights of all starts, in units of the weight of the newest row.

        A start is a row at which a window may begin.
        """
        newest = (self._ring.inserted - 1 - self._base) / self._half_life
        return float(self._tree.total * np.exp2(-newest))

    def state(self) -> dict[str, Any]:
        return super().state() | {"base": self._base}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._base = int(state["base"])

    def _weights(self, keys: Array) -> Array:
        return np.exp2((keys - self._base) / self._half_life)

    def _rebase(self) -> None:
        """Rescales all weights so that the newest start has weight 1.

        This is done before weights overflow, and when all weights have become 0. A start is a row
        at which a window may begin.
        """
        slots = np.flatnonzero(self._starts.flags)
        keys = self._ring.keys_at(slots)
        self._base = int(keys.max())
        self._tree.replace(slots, self._weights(keys))


@implements(ReturnDeviation)
class ReturnDeviationSelector(WeightedSelector):
    """Prefers unusual sums of rewards: the weight of a start is |sum - mean| / standard deviation.

    The sum is over the rewards of the window that begins at the start. Mean and standard deviation
    are moving averages over the sums of all windows so far.
    """

    def __init__(self, spec: ReturnDeviation, starts: Starts, rows: Rows, window: int) -> None:
        super().__init__(spec, starts, rows, window)
        self._half_life = spec.half_life
        self._rows, self._window = rows, window
        self._mean = self._variance = 0.0
        self._weight = 0.0  # of all sums so far in the moving averages: 0 at first, towards 1

    def add(self, slots: Array) -> None:
        if not slots.size:
            return
        windows = self._rows.windows(slots, 0, self._window)
        sums = self._rows.columns["reward"][windows].sum(axis=1, dtype=np.float64)
        self._update_statistics(sums)
        deviation = np.abs(sums - self._mean) / np.sqrt(self._variance or 1.0)
        self._tree.write(slots, deviation.clip(*PRIORITY_RANGE))

    def state(self) -> dict[str, Any]:
        statistics = {"mean": self._mean, "variance": self._variance, "weight": self._weight}
        return super().state() | statistics

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._mean, self._variance = float(state["mean"]), float(state["variance"])
        self._weight = float(state["weight"])

    def _update_statistics(self, sums: Array) -> None:
        """Updates the moving mean and variance of the windows' sums of rewards by a batch of sums.

        All sums of the batch have the same weight.
        """
        kept = self._weight * 2 ** (-sums.size / self._half_life)
        self._weight = kept + 1 - 2 ** (-sums.size / self._half_life)
        share = 1 - kept / self._weight
        difference = float(sums.mean()) - self._mean
        self._mean += share * difference
        between = share * (1 - share) * difference**2
        self._variance = (1 - share) * self._variance + share * float(sums.var()) + between


# ----------------------------------------------------------------------------------- mixture


@implements(Mixture)
class MixtureSelector:
    """Draws each start by one of several selectors, chosen at random with fixed probabilities.

    A start is a row at which a window begins. A selector is a rule that draws starts.
    """

    def __init__(self, spec: Mixture, starts: Starts, rows: Rows, window: int) -> None:
        probabilities = [probability for probability, _ in spec.parts]
        self._probabilities = np.array(probabilities) / sum(probabilities)
        self._parts = [build(part, starts, rows, window) for _, part in spec.parts]

    @staticmethod
    def nbytes(spec: Mixture, rows: int) -> int:
        return sum(nbytes(part, rows) for _, part in spec.parts)

    def add(self, slots: Array) -> None:
        for part in self._parts:
            part.add(slots)

    def remove(self, slots: Array) -> None:
        for part in self._parts:
            part.remove(slots)

    def update(self, slots: Array, priorities: Array) -> None:
        for part in self._parts:
            part.update(slots, priorities)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        counts = rng.multinomial(n, self._probabilities)
        slots = [part.draw(int(m), rng) for part, m in zip(self._parts, counts, strict=True)]
        return rng.permutation(np.concatenate(slots))

    def probability(self, slots: Array) -> Array:
        by_part = np.stack([part.probability(slots) for part in self._parts])  # (parts, n)
        mixed: Array = self._probabilities @ by_part
        return mixed

    def priority_mass(self) -> float:
        """Returns the priority mass (sum of weights) of the selector with the largest probability.

        A mixture draws by several selectors. Their masses have different units, so they are not
        added.
        """
        return self._parts[int(np.argmax(self._probabilities))].priority_mass()

    def state(self) -> dict[str, Any]:
        return {str(i): part.state() for i, part in enumerate(self._parts)}

    def restore(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self._parts):
            part.restore(state[str(i)])
