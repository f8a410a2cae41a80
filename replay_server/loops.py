"""The replay's inner loops, written for compilation by numba.

Without numba, the numpy versions in module `vectorised` are used; their results are bit-identical.
Constants used here must be defined in this file: numba's cache only notices changes of the file
itself.
"""

from __future__ import annotations

import numpy as np

from dreamfleet.core.types import Array

FAN_OUT = 8  # children per node of a sum tree: f64 numbers in a cache line
SHIFT = FAN_OUT.bit_length() - 1


def write(nodes: Array, begins: Array, slots: Array, weights: Array) -> float:
    """Sets weights of slots in a sum tree, and recomputes the sums above. Returns the total weight.

    nodes: f64, the levels of the tree one after another, from the top level to the leaves. begins:
    the index in `nodes` where each level begins, then the index where the last level ends. slots,
    weights: (n,).
    """
    changed, count, total = slots.copy(), slots.size, 0.0
    for i in range(count):
        nodes[begins[-2] + slots[i]] = weights[i]
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
    """Draws n slots of a sum tree with probability proportional to their weights. Returns (n,) i64.

    One slot is drawn from each of n equal strata of the total weight. nodes: f64, the levels of the
    tree one after another, from the top level to the weights. begins: the index in `nodes` where
    each level begins, then the index where the last level ends. random: (2, n), uniform in [0, 1).
    Raises ValueError if all weights are 0.
    """
    n, total = random.shape[1], 0.0
    for top in range(begins[1]):
        total += nodes[top]
    if not total > 0:
        raise ValueError("there is nothing to draw: all weights are 0")
    # Rounding can put a target past the last weight. Each target is therefore clipped below the
    # sum it is searched in, so the first node whose right edge is beyond it has a positive weight.
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
        for i in range(n):  # in a loop of its own, so that the memory accesses overlap
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
                    left = right if passed else left  # without a branch: it could not be predicted
                if child == FAN_OUT:
                    target[i] = np.nextafter(right, 0.0)
            node[i] = node[i] * FAN_OUT + child
            target[i] -= left
    for i in range(n - 1, 0, -1):  # Fisher-Yates shuffle
        other = int(random[1, i] * (i + 1))
        node[i], node[other] = node[other], node[i]
    return node


def keys_at(slots: Array, inserted: int, capacity: int) -> Array:
    """Returns the keys (n,) of the rows that are now in `slots` (n,) of a ring buffer.

    A row's key is the number of rows that were inserted before it. inserted: the number of rows
    ever inserted. capacity: the number of slots.
    """
    keys = np.empty(slots.size, np.int64)
    lap = inserted - inserted % capacity  # key for slot 0 in the present lap
    for i in range(slots.size):
        keys[i] = slots[i] + (lap if lap + slots[i] < inserted else lap - capacity)
    return keys


def windows(
    starts: Array, context: int, window: int, following: Array, previous: Array, first: Array
) -> Array:
    """Returns the slots (positions in a ring buffer) of all rows of B windows, (B, context + T).

    If an episode has fewer than `context` earlier rows, its first row is repeated. starts: (B,),
    the slot of the first of the T = `window` rows of each window. The other arrays have one entry
    per slot. following: the slot of the environment's next row. previous: the number of rows that
    were inserted before the environment's previous row. first: whether an episode begins with the
    row.
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


def valid_priorities(
    keys: Array, priorities: Array, oldest: int, inserted: int, capacity: int
) -> tuple[Array, Array, int, int]:
    """Selects the valid ones of n new priorities. Returns slots, priorities, and two counts.

    A new priority is valid if its row is stored and the priority is finite and not negative. The
    counts are the number of keys that are not stored, and the number of invalid priorities of
    stored rows. keys, priorities: (n,). oldest: key of the oldest stored row. inserted: number of
    rows ever inserted. capacity: number of slots in the ring buffer.
    """
    slots, kept = np.empty(keys.size, np.int64), np.empty(keys.size)
    count = stale = invalid = 0
    lap = inserted - inserted % capacity  # key for slot 0 in the present lap
    for i in range(keys.size):
        if not oldest <= keys[i] < inserted:
            stale += 1
        elif not 0 <= priorities[i] < np.inf:
            invalid += 1
        else:
            slots[count] = keys[i] - (lap if lap <= keys[i] else lap - capacity)
            kept[count] = priorities[i]
            count += 1
    return slots[:count], kept[:count], stale, invalid
