"""The replay's inner loops, as loops: for a compiler (see `compiled`), not for the interpreter.

They take sums in the order in which numpy does, so that no bit differs from `vectorised`. What they
name besides numpy must stand in this file: numba keeps what it compiled until the file changes.
"""

from __future__ import annotations

import numpy as np

from dreamfleet.core.types import Array

FAN_OUT = 8  # children a node of a sum tree: a cache line of them
SHIFT = FAN_OUT.bit_length() - 1


def write(nodes: Array, begins: Array, slots: Array, mass: Array) -> float:
    """Set the masses (n,) of these slots (n,), and recompute all sums above them. → the total

    nodes: f64, a sum tree's levels one after another, the top first and the masses last. begins:
    where each level begins, and where the last one ends. Neighbours that stand together are
    carried up as one.
    """
    changed, count, total = slots.copy(), slots.size, 0.0
    for i in range(count):
        nodes[begins[-2] + slots[i]] = mass[i]
    for level in range(begins.size - 3, -1, -1):
        parents, last = 0, -1
        for i in range(count):
            parent = changed[i] >> SHIFT
            if parent != last:
                at = begins[level + 1] + parent * FAN_OUT
                nodes[begins[level] + parent] = (
                    (nodes[at] + nodes[at + 1]) + (nodes[at + 2] + nodes[at + 3])
                ) + ((nodes[at + 4] + nodes[at + 5]) + (nodes[at + 6] + nodes[at + 7]))
                changed[parents] = last = parent
                parents += 1
        count = parents
    for top in range(begins[1]):
        total += nodes[top]
    return total


def draw(nodes: Array, begins: Array, random: Array) -> Array:
    """Draw n slots in proportion to their mass, one from each n-th of the total. → (n,) i64

    random: (2, n) in [0, 1), where in its n-th each draw lies, and what shuffles them.
    """
    n, total = random.shape[1], 0.0
    for top in range(begins[1]):
        total += nodes[top]
    if not total > 0:
        raise ValueError("there is nothing to draw: all masses are 0")
    # Rounding can leave a target past the last mass: each is held below the sum it looks in.
    # The first node whose right edge lies beyond it then has a mass.
    width, highest = total / max(n, 1), np.nextafter(total, 0.0)
    node, target, first = np.empty(n, np.int64), np.empty(n), np.empty(n)
    top, left, right = 0, 0.0, nodes[0]
    for i in range(n):  # targets and edges both rise
        target[i] = min((i + random[0, i]) * width, highest)
        while right <= target[i]:
            top += 1
            left, right = right, right + nodes[top]
        node[i] = top
        target[i] -= left
    for level in range(1, begins.size - 1):
        for i in range(n):  # apart, so that all these waits for memory are one
            first[i] = nodes[begins[level] + node[i] * FAN_OUT]
        for i in range(n):
            at, child = begins[level] + node[i] * FAN_OUT, FAN_OUT
            while child == FAN_OUT:
                right = first[i]
                child, left = (1, right) if right <= target[i] else (0, 0.0)
                for sibling in range(1, FAN_OUT):
                    right += nodes[at + sibling]
                    passed = right <= target[i]
                    child += passed
                    left = right if passed else left  # no branch: none could be foreseen
                if child == FAN_OUT:
                    target[i] = np.nextafter(right, 0.0)
            node[i] = node[i] * FAN_OUT + child
            target[i] -= left
    for i in range(n - 1, 0, -1):  # Fisher and Yates
        other = int(random[1, i] * (i + 1))
        node[i], node[other] = node[other], node[i]
    return node


def keys_at(slots: Array, inserted: int, capacity: int) -> Array:
    """The keys (n,) of the newest rows written to these slots (n,) of a ring."""
    keys = np.empty(slots.size, np.int64)
    begun = inserted - inserted % capacity  # the key that is due in slot 0
    for i in range(slots.size):
        keys[i] = slots[i] + (begun if begun + slots[i] < inserted else begun - capacity)
    return keys


def windows(
    starts: Array, context: int, window: int, following: Array, previous: Array, first: Array
) -> Array:
    """Of each start (B,) the slots of its rows, those of its context first. → (B, context + T)

    following, previous, first: as `Rows` has them, a place per slot. Where the episode began
    later than that, its first row stands in for what was before.
    """
    slots = np.empty((starts.size, context + window), np.int64)
    for i in range(starts.size):
        slot = slots[i, context] = starts[i]
        for t in range(context + 1, context + window):
            slot = slots[i, t] = following[slot]
        slot = starts[i]
        for t in range(context - 1, -1, -1):
            if not first[slot]:
                slot = previous[slot] % previous.size
            slots[i, t] = slot
    return slots


def sift(
    keys: Array, priorities: Array, oldest: int, inserted: int, capacity: int
) -> tuple[Array, Array, int, int]:
    """Keep the priorities (n,) of rows that are held, if finite and not negative.

    → their slots, themselves, how many were of rows no longer held, and how many others were bad
    """
    slots, kept = np.empty(keys.size, np.int64), np.empty(keys.size)
    count = stale = refused = 0
    begun = inserted - inserted % capacity  # the key that is due in slot 0
    for i in range(keys.size):
        if not oldest <= keys[i] < inserted:
            stale += 1
        elif not 0 <= priorities[i] < np.inf:
            refused += 1
        else:
            slots[count] = keys[i] - (begun if begun <= keys[i] else begun - capacity)
            kept[count] = priorities[i]
            count += 1
    return slots[:count], kept[:count], stale, refused
