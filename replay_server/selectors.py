"""Which starts are drawn, and how likely each was.

Every selector is exact: `probability` is what `draw` draws by, over the table's present starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dreamfleet.core.types import (
    Array,
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    ReturnDeviation,
    Selector,
    Uniform,
)
from dreamfleet.replay_server.ring import Starts
from dreamfleet.replay_server.rows import Rows
from dreamfleet.replay_server.sum_tree import SumTree

REJECTION_ROUNDS = 4
PRIORITY_RANGE = (1e-6, 1e12)  # nothing starves, and sums stay finite
REBASE_AFTER = 500  # halvings; f64 holds 1,022 to each side


class StartSelector(Protocol):
    """Draws slots of starts. It is told of every change after the flags of `Starts` show it."""

    def admit(self, slots: Array) -> None:
        """These rows have become starts."""
        ...

    def withdraw(self, slots: Array) -> None:
        """These rows are starts no longer."""
        ...

    def update(self, slots: Array, priorities: Array) -> None:
        """Take new priorities (f64, finite, not negative) of starts."""
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n slots with replacement; there is at least one start. → (n,) i64"""
        ...

    def probability(self, slots: Array) -> Array:
        """How likely the last `draw` was to draw each slot, (n,) → (n,) f64."""
        ...

    def priority_mass(self) -> float:
        """What all starts weigh together, comparable between shards; there is at least one."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; `Starts` is restored already."""
        ...


def build(spec: Selector, starts: Starts, rows: Rows, window: int) -> StartSelector:
    """The selector of `spec` among the starts of windows of so many rows."""
    match spec:
        case Uniform():
            return UniformSelector(starts)
        case EmphasizeRecent():
            return EmphasizeRecentSelector(spec, starts)
        case Prioritized():
            return PrioritizedSelector(spec, starts, rows)
        case Recency():
            return RecencySelector(spec, starts)
        case ReturnDeviation():
            return ReturnDeviationSelector(spec, starts, rows, window)
        case Mixture():
            shares = [share for share, _ in spec.parts]
            parts = [build(part, starts, rows, window) for _, part in spec.parts]
            return MixtureSelector(shares, parts)


# -------------------------------------------------------------------------------- flat over age


class UniformSelector:
    """Every start among the newest `reach` rows alike; here, all that are held."""

    def __init__(self, starts: Starts) -> None:
        self._starts = starts

    def admit(self, slots: Array) -> None:
        pass

    def withdraw(self, slots: Array) -> None:
        pass

    def update(self, slots: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._draw_within(self._starts.ring.held, n, rng)

    def probability(self, slots: Array) -> Array:
        return np.full(slots.shape, 1 / self._starts.count)

    def priority_mass(self) -> float:
        return self._starts.count

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _draw_within(self, reach: int, n: int, rng: np.random.Generator) -> Array:
        """Throw at all rows and keep what hits a start; where starts are few, list them."""
        ring, flags = self._starts.ring, self._starts.flags
        slots = np.empty(n, np.int64)
        missing = np.arange(n)
        for _ in range(REJECTION_ROUNDS):
            thrown = ring.slots(ring.inserted - 1 - rng.integers(reach, size=missing.size))
            hit = flags[thrown]
            slots[missing[hit]] = thrown[hit]
            missing = missing[~hit]
            if not missing.size:
                return slots
        listed = self._starts.within(ring.inserted - reach, ring.inserted)
        slots[missing] = rng.choice(listed, missing.size)
        return slots


class EmphasizeRecentSelector(UniformSelector):
    """Uniform over a reach that shrinks within each cycle (Wang & Ross 2019, section 4).

    When no start lies within reach, all are.
    """

    def __init__(self, spec: EmphasizeRecent, starts: Starts) -> None:
        super().__init__(starts)
        self._spec = spec
        self._draws = 0
        self._reach = 0
        self._within = 0  # starts among the newest `_reach` rows

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        spec, held, inserted = self._spec, self._starts.ring.held, self._starts.ring.inserted
        eta = spec.eta + (1 - spec.eta) * min(self._draws / spec.anneal, 1.0)
        k = self._draws % spec.cycle + 1
        reach = max(held * eta ** (1000 * k / spec.cycle), spec.floor)
        self._reach = min(int(reach), held)
        self._within = self._starts.count_within(inserted - self._reach, inserted)
        if not self._within:
            self._reach, self._within = held, self._starts.count
        self._draws += 1
        return self._draw_within(self._reach, n, rng)

    def probability(self, slots: Array) -> Array:
        ring = self._starts.ring
        return (ring.keys_at(slots) >= ring.inserted - self._reach) / self._within

    def priority_mass(self) -> float:
        return self._within or self._starts.count  # as the last draw had it

    def state(self) -> dict[str, Any]:
        return {"draws": self._draws}

    def restore(self, state: dict[str, Any]) -> None:
        self._draws = int(state["draws"])


# ---------------------------------------------------------------------------------- by mass


class MassSelector:
    """Draws in proportion to a mass per start, held in a sum tree; other rows have mass 0."""

    def __init__(self, starts: Starts) -> None:
        self._starts = starts
        self._ring = starts.ring
        self._tree = SumTree(starts.ring.capacity)

    def withdraw(self, slots: Array) -> None:
        self._tree.write(slots, 0.0)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._tree.sample(n, rng)

    def probability(self, slots: Array) -> Array:
        return self._tree.masses.take(slots) / self._tree.total

    def priority_mass(self) -> float:
        return self._tree.total

    def state(self) -> dict[str, Any]:
        return {"mass": self._ring.ordered(self._tree.masses)}

    def restore(self, state: dict[str, Any]) -> None:
        held = np.arange(self._ring.oldest, self._ring.inserted)
        self._tree.replace(self._ring.slots(held), state["mass"])


class PrioritizedSelector(MassSelector):
    """Mass is priority^exponent (Schaul et al. 2016). Starts enter at the largest so far, or at
    what their column of initial priorities says.
    """

    def __init__(self, spec: Prioritized, starts: Starts, rows: Rows) -> None:
        super().__init__(starts)
        self._exponent = spec.exponent
        self._largest = 1.0
        self._initial = rows.columns[spec.initial] if spec.initial else None

    def admit(self, slots: Array) -> None:
        if self._initial is None:
            self._tree.write(slots, self._largest**self._exponent)
        else:
            initial = self._initial[slots].astype(np.float64).clip(*PRIORITY_RANGE)
            self._tree.write(slots, initial**self._exponent)

    def update(self, slots: Array, priorities: Array) -> None:
        if not slots.size:
            return
        least, most = PRIORITY_RANGE
        # What clip() and max() would do, in half the time for a few hundred.
        priorities = np.minimum(np.maximum(priorities, least), most)
        self._largest = max(self._largest, float(priorities[priorities.argmax()]))
        self._tree.write(slots, priorities**self._exponent)

    def state(self) -> dict[str, Any]:
        return super().state() | {"largest": self._largest}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._largest = float(state["largest"])


class RecencySelector(MassSelector):
    """Mass is 2^((key - base) / half_life): ageing scales all alike, so masses need no touching."""

    def __init__(self, spec: Recency, starts: Starts) -> None:
        super().__init__(starts)
        self._half_life = spec.half_life
        self._base = 0

    def admit(self, slots: Array) -> None:
        keys = self._ring.keys_at(slots)
        if keys.size and (keys.max() - self._base) / self._half_life > REBASE_AFTER:
            self._rebase()
        else:
            self._tree.write(slots, self._mass(keys))

    def update(self, slots: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        if not self._tree.total:  # the newest were withdrawn, and the rest had decayed to nothing
            self._rebase()
        return super().draw(n, rng)

    def priority_mass(self) -> float:
        """As if the newest row weighed 1, whatever the base is."""
        newest = (self._ring.inserted - 1 - self._base) / self._half_life
        return float(self._tree.total * np.exp2(-newest))

    def state(self) -> dict[str, Any]:
        return super().state() | {"base": self._base}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._base = int(state["base"])

    def _mass(self, keys: Array) -> Array:
        return np.exp2((keys - self._base) / self._half_life)

    def _rebase(self) -> None:
        """Give the newest start mass 1, and all others theirs, before the numbers overflow."""
        slots = np.flatnonzero(self._starts.flags)
        keys = self._ring.keys_at(slots)
        self._base = int(keys.max())
        self._tree.replace(slots, self._mass(keys))


class ReturnDeviationSelector(MassSelector):
    """Mass is how far a window's sum of rewards lies from the mean, in standard deviations."""

    def __init__(self, spec: ReturnDeviation, starts: Starts, rows: Rows, window: int) -> None:
        super().__init__(starts)
        self._half_life = spec.half_life
        self._rows, self._window = rows, window
        self._mean = self._variance = self._weight = 0.0  # weight 0: nothing seen, 1: for long

    def admit(self, slots: Array) -> None:
        if not slots.size:
            return
        windows = self._rows.windows(slots, 0, self._window)
        sums = self._rows.columns["reward"][windows].sum(axis=1, dtype=np.float64)
        self._follow(sums)
        deviation = np.abs(sums - self._mean) / np.sqrt(self._variance or 1.0)
        self._tree.write(slots, deviation.clip(*PRIORITY_RANGE))

    def update(self, slots: Array, priorities: Array) -> None:
        pass

    def state(self) -> dict[str, Any]:
        moments = {"mean": self._mean, "variance": self._variance, "weight": self._weight}
        return super().state() | moments

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._mean, self._variance = float(state["mean"]), float(state["variance"])
        self._weight = float(state["weight"])

    def _follow(self, sums: Array) -> None:
        """Mix these sums into the mean and variance, alike among themselves."""
        kept = self._weight * 2 ** (-sums.size / self._half_life)
        self._weight = kept + 1 - 2 ** (-sums.size / self._half_life)
        share = 1 - kept / self._weight
        ahead = float(sums.mean()) - self._mean
        self._mean += share * ahead
        between = share * (1 - share) * ahead**2
        self._variance = (1 - share) * self._variance + share * float(sums.var()) + between


# ----------------------------------------------------------------------------------- mixture


class MixtureSelector:
    """Each draw comes from one part, picked with its share."""

    def __init__(self, shares: Sequence[float], parts: Sequence[StartSelector]) -> None:
        self._shares = np.array(shares) / sum(shares)
        self._parts = parts

    def admit(self, slots: Array) -> None:
        for part in self._parts:
            part.admit(slots)

    def withdraw(self, slots: Array) -> None:
        for part in self._parts:
            part.withdraw(slots)

    def update(self, slots: Array, priorities: Array) -> None:
        for part in self._parts:
            part.update(slots, priorities)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        counts = rng.multinomial(n, self._shares)
        slots = [part.draw(int(m), rng) for part, m in zip(self._parts, counts, strict=True)]
        return rng.permutation(np.concatenate(slots))

    def probability(self, slots: Array) -> Array:
        by_part = np.stack([part.probability(slots) for part in self._parts])  # (parts, n)
        mixed: Array = self._shares @ by_part
        return mixed

    def priority_mass(self) -> float:
        """That of the largest part: the parts' units differ, and one number must do."""
        return self._parts[int(np.argmax(self._shares))].priority_mass()

    def state(self) -> dict[str, Any]:
        return {str(i): part.state() for i, part in enumerate(self._parts)}

    def restore(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self._parts):
            part.restore(state[str(i)])
