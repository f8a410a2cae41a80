"""Which starts are drawn, and how likely each was.

Every selector is exact: `probability` is what `draw` draws by, over the table's present starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from core.types import (
    Array,
    EmphasizeRecent,
    Mixture,
    Prioritized,
    Recency,
    Selector,
    Uniform,
)
from replay_server.ring import Starts
from replay_server.sum_tree import SumTree

REJECTION_ROUNDS = 4
PRIORITY_RANGE = (1e-6, 1e12)  # nothing starves, and sums stay finite
REBASE_AFTER = 500  # halvings; f64 holds 1,022 to each side


class StartSelector(Protocol):
    """Draws keys of starts. It is told of every change after the flags of `Starts` show it."""

    nbytes: int

    def admit(self, keys: Array) -> None:
        """These rows have become starts."""
        ...

    def withdraw(self, keys: Array) -> None:
        """These rows are starts no longer."""
        ...

    def update(self, keys: Array, priorities: Array) -> None:
        """Take new priorities (f64, finite, not negative) of starts."""
        ...

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n keys with replacement; there is at least one start. → (n,) i64"""
        ...

    def probability(self, keys: Array) -> Array:
        """How likely the last `draw` was to draw each key, (n,) → (n,) f64."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; `Starts` is restored already."""
        ...


def build(spec: Selector, starts: Starts) -> StartSelector:
    match spec:
        case Uniform():
            return UniformSelector(starts)
        case EmphasizeRecent():
            return EmphasizeRecentSelector(spec, starts)
        case Prioritized():
            return PrioritizedSelector(spec, starts)
        case Recency():
            return RecencySelector(spec, starts)
        case Mixture():
            shares = [share for share, _ in spec.parts]
            return MixtureSelector(shares, [build(part, starts) for _, part in spec.parts])


# -------------------------------------------------------------------------------- flat over age


class UniformSelector:
    """Every start among the newest `reach` rows alike; here, all that are held."""

    nbytes = 0

    def __init__(self, starts: Starts) -> None:
        self._starts = starts

    def admit(self, keys: Array) -> None:
        pass

    def withdraw(self, keys: Array) -> None:
        pass

    def update(self, keys: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._draw_within(self._starts.ring.held, n, rng)

    def probability(self, keys: Array) -> Array:
        return np.full(keys.shape, 1 / self._starts.count)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def _draw_within(self, reach: int, n: int, rng: np.random.Generator) -> Array:
        """Throw at all rows and keep what hits a start; where starts are few, list them."""
        ring, flags = self._starts.ring, self._starts.flags
        keys = np.empty(n, np.int64)
        missing = np.arange(n)
        for _ in range(REJECTION_ROUNDS):
            thrown = ring.inserted - 1 - rng.integers(reach, size=missing.size)
            hit = flags[ring.slots(thrown)]
            keys[missing[hit]] = thrown[hit]
            missing = missing[~hit]
            if not missing.size:
                return keys
        listed = ring.inserted - reach + np.flatnonzero(self._starts.recent(reach))
        keys[missing] = rng.choice(listed, missing.size)
        return keys


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
        spec, held = self._spec, self._starts.ring.held
        eta = spec.eta + (1 - spec.eta) * min(self._draws / spec.anneal, 1.0)
        k = self._draws % spec.cycle + 1
        reach = max(held * eta ** (1000 * k / spec.cycle), spec.floor)
        self._reach = min(int(reach), held)
        self._within = int(np.count_nonzero(self._starts.recent(self._reach)))
        if not self._within:
            self._reach, self._within = held, self._starts.count
        self._draws += 1
        return self._draw_within(self._reach, n, rng)

    def probability(self, keys: Array) -> Array:
        return (keys >= self._starts.ring.inserted - self._reach) / self._within

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
        self.nbytes = self._tree.nbytes

    def withdraw(self, keys: Array) -> None:
        self._tree.write(self._ring.slots(keys), 0.0)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._ring.keys_at(self._tree.sample(n, rng))

    def probability(self, keys: Array) -> Array:
        return self._tree.mass(self._ring.slots(keys)) / self._tree.total

    def state(self) -> dict[str, Any]:
        return {"mass": self._tree.mass(self._ring.slots(self._ring.keys))}

    def restore(self, state: dict[str, Any]) -> None:
        self._tree.replace(self._ring.slots(self._ring.keys), state["mass"])


class PrioritizedSelector(MassSelector):
    """Mass is priority^exponent; starts enter at the largest so far (Schaul et al. 2016)."""

    def __init__(self, spec: Prioritized, starts: Starts) -> None:
        super().__init__(starts)
        self._exponent = spec.exponent
        self._largest = 1.0

    def admit(self, keys: Array) -> None:
        self._tree.write(self._ring.slots(keys), self._largest**self._exponent)

    def update(self, keys: Array, priorities: Array) -> None:
        if not keys.size:
            return
        priorities = priorities.clip(*PRIORITY_RANGE)
        self._largest = max(self._largest, float(priorities.max()))
        self._tree.write(self._ring.slots(keys), priorities**self._exponent)

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

    def admit(self, keys: Array) -> None:
        if keys.size and (keys.max() - self._base) / self._half_life > REBASE_AFTER:
            self._rebase()
        else:
            self._tree.write(self._ring.slots(keys), self._mass(keys))

    def update(self, keys: Array, priorities: Array) -> None:
        pass

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        if not self._tree.total:  # the newest were withdrawn, and the rest had decayed to nothing
            self._rebase()
        return super().draw(n, rng)

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


# ----------------------------------------------------------------------------------- mixture


class MixtureSelector:
    """Each draw comes from one part, picked with its share."""

    def __init__(self, shares: Sequence[float], parts: Sequence[StartSelector]) -> None:
        self._shares = np.array(shares) / sum(shares)
        self._parts = parts
        self.nbytes = sum(part.nbytes for part in parts)

    def admit(self, keys: Array) -> None:
        for part in self._parts:
            part.admit(keys)

    def withdraw(self, keys: Array) -> None:
        for part in self._parts:
            part.withdraw(keys)

    def update(self, keys: Array, priorities: Array) -> None:
        for part in self._parts:
            part.update(keys, priorities)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        counts = rng.multinomial(n, self._shares)
        keys = [part.draw(int(m), rng) for part, m in zip(self._parts, counts, strict=True)]
        return rng.permutation(np.concatenate(keys))

    def probability(self, keys: Array) -> Array:
        by_part = np.stack([part.probability(keys) for part in self._parts])  # (parts, n)
        mixed: Array = self._shares @ by_part
        return mixed

    def state(self) -> dict[str, Any]:
        return {str(i): part.state() for i, part in enumerate(self._parts)}

    def restore(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self._parts):
            part.restore(state[str(i)])
