"""The replay's inner loops in numpy, for systems without numba.

Module `loops` has a function of the same name for each function here. That function's docstring
describes the arguments, and its result is bit-identical.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dreamfleet.core.types import Array
from dreamfleet.replay_server.loops import FAN_OUT, SHIFT


def write(nodes: Array, begins: Array, slots: Array, weights: Array) -> float:
    levels = _levels(nodes, begins)
    levels[-1][slots] = weights
    for above, below in zip(levels[-2::-1], levels[:0:-1], strict=True):
        parents = slots >> SHIFT
        differs = np.ones(parents.size, bool)  # from the parent before
        np.not_equal(parents[1:], parents[:-1], out=differs[1:])
        slots = parents[differs]
        above[slots] = np.add.reduce(below.reshape(-1, FAN_OUT).take(slots, axis=0), axis=1)
    return float(np.add.accumulate(levels[0])[-1])


def draw(nodes: Array, begins: Array, random: Array) -> Array:
    n, (top, *levels) = random.shape[1], _levels(nodes, begins)
    before = np.zeros(top.size + 1)  # the total weight to the left of each node
    np.add.accumulate(top, out=before[1:])
    if not before[-1] > 0:
        raise ValueError("there is nothing to draw: all weights are 0")
    target = (np.arange(n) + random[0]) * (before[-1] / max(n, 1))
    np.minimum(target, np.nextafter(before[-1], 0), out=target)
    node = before[1:].searchsorted(target, "right")
    target -= before[node]
    before = np.zeros((n, FAN_OUT + 1))
    edges, draws = before[:, 1:], np.arange(n)
    for level in levels:
        np.add.accumulate(level.reshape(-1, FAN_OUT).take(node, axis=0), axis=1, out=edges)
        np.minimum(target, np.nextafter(edges[:, -1], 0), out=target)
        child = (edges > target[:, None]).argmax(axis=1)
        target -= before[draws, child]
        node = node * FAN_OUT + child
    slots, others = node.tolist(), (random[1] * (np.arange(n) + 1)).astype(np.int64).tolist()
    for i in range(n - 1, 0, -1):
        slots[i], slots[others[i]] = slots[others[i]], slots[i]
    return np.array(slots, np.int64)


def keys_at(slots: Array, inserted: int, capacity: int) -> Array:
    newest = inserted - 1
    return newest - (newest - slots) % capacity


def windows(
    starts: Array, context: int, window: int, following: Array, previous: Array, first: Array
) -> Array:
    slots = np.empty((context + window, starts.size), np.int64)
    slots[context] = starts
    for t in range(context + 1, context + window):
        following.take(slots[t - 1], None, slots[t], "clip")
    for t in range(context - 1, -1, -1):
        after = slots[t + 1]
        slots[t] = np.where(first[after], after, previous[after] % previous.size)
    return np.ascontiguousarray(slots.T)


def valid_priorities(
    keys: Array, priorities: Array, oldest: int, inserted: int, capacity: int
) -> tuple[Array, Array, int, int]:
    stored = (oldest <= keys) & (keys < inserted)
    valid = (priorities >= 0) & (priorities < np.inf)
    kept = stored & valid
    stale, invalid = int(np.count_nonzero(~stored)), int(np.count_nonzero(stored & ~valid))
    return keys[kept] % capacity, priorities[kept], stale, invalid


def _levels(nodes: Array, begins: Array) -> list[Array]:
    return [nodes[begin:end] for begin, end in pairwise(begins.tolist())]
