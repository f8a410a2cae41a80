"""Tests that the inner loops give bit-identical results compiled, interpreted and in numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamfleet.core.types import Array
from dreamfleet.replay_server import loops
from dreamfleet.replay_server.compiled import IN_NUMPY, Loops, fastest
from dreamfleet.replay_server.sum_tree import TOP, level_sizes

ROOT = Path(__file__).parent.parent.parent
INTERPRETED = Loops(*(getattr(loops, name) for name in Loops._fields))
FORMS = {
    "numpy": IN_NUMPY,
    "interpreted": INTERPRETED,
    **({"compiled": fastest()} if find_spec("numba") else {}),
}
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 70) | st.integers(TOP - 9, TOP + 40) | st.just(8 * TOP + 1)


def in_every_form(name: str, *arguments: object) -> list[object]:
    """Calls the inner loop `name` in every form: compiled, interpreted and in numpy.

    Returns for each form the result, and the arguments after the call. Each call gets copies of the
    arguments.
    """
    found = []
    for form in FORMS.values():
        copies = [x.copy() if isinstance(x, np.ndarray) else x for x in arguments]
        found.append((getattr(form, name)(*copies), copies))
    return found


def assert_same(name: str, *arguments: object) -> object:
    """Asserts that the inner loop `name` gives bit-identical results in every form.

    The forms are compiled, interpreted and numpy. Returns the result of the first form.
    """
    first, *others = in_every_form(name, *arguments)
    for other in others:
        np.testing.assert_equal(other, first)
    return first


def random_weights(rng: np.random.Generator, n: int) -> Array:
    """Returns n random weights, some of them 0.

    Their sizes are similar, or sometimes very different.
    """
    weights = 10.0 ** rng.uniform(-30, 30, n) if rng.random() < 0.3 else rng.random(n)
    weights[rng.random(n) < rng.random()] = 0.0
    return weights


@given(SIZES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_all_forms_write_and_draw_the_same_in_a_tree(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = level_sizes(size)
    nodes, begins = np.zeros(sum(sizes)), np.cumsum([0, *sizes])
    for _ in range(4):
        slots = rng.integers(size, size=rng.integers(0, 2 * size))
        if rng.random() < 0.3:  # consecutive, as a chunk writes them
            slots = np.arange(size)[slots.min(initial=0) :]
        total, (nodes, *_) = assert_same(
            "write", nodes, begins, slots, random_weights(rng, slots.size)
        )
        if total > 0:
            random = rng.random((2, int(rng.integers(0, 40))))
            random[0, rng.random(random.shape[1]) < 0.1] = np.nextafter(1, 0)
            drawn, _ = assert_same("draw", nodes, begins, random)
            assert (nodes[begins[-2] :][drawn] > 0).all()


def test_drawing_from_an_empty_tree_raises() -> None:
    for form in FORMS.values():
        with pytest.raises(ValueError, match="nothing to draw"):
            form.draw(np.zeros(8), np.array([0, 8]), np.zeros((2, 1)))


@given(st.integers(1, 30), st.integers(0, 90), SEEDS)
def test_all_forms_find_the_same_keys(capacity: int, inserted: int, seed: int) -> None:
    slots = np.random.default_rng(seed).integers(capacity, size=(9, 2))
    keys, _ = assert_same("keys_at", slots[:, 0], inserted, capacity)
    newest = [max(range(s - capacity, inserted, capacity)) for s in slots[:, 0].tolist()]
    assert keys.tolist() == newest
    strided = [form.keys_at(slots[:, 0], inserted, capacity).tolist() for form in FORMS.values()]
    assert strided == [newest] * len(FORMS)


@given(st.integers(0, 5), st.integers(0, 4), st.integers(1, 4), SEEDS)
def test_all_forms_find_the_same_windows(n: int, context: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    following, starts = rng.integers(20, size=20), rng.integers(20, size=n)
    previous, first = rng.integers(-1, 60, size=20), rng.random(20) < 0.3
    slots, _ = assert_same("windows", starts, context, window, following, previous, first)
    assert slots.shape == (n, context + window)
    np.testing.assert_array_equal(slots[:, context], starts)


@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 90), SEEDS)
def test_all_forms_select_the_same_valid_priorities(
    n: int, capacity: int, inserted: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-2, inserted + 3, size=n)
    priorities = rng.choice([0.0, -0.0, 1.5, -1.0, np.nan, np.inf, -np.inf, 1e300], n)
    oldest = max(inserted - capacity, 0)
    found, _ = assert_same("valid_priorities", keys, priorities, oldest, inserted, capacity)
    slots, kept, stale, invalid = found
    assert slots.size + stale + invalid == n
    assert (kept >= 0).all()
    pairs = zip(keys.tolist(), priorities.tolist(), strict=True)
    valid = [key for key, p in pairs if oldest <= key < inserted and 0 <= p < np.inf]
    assert slots.tolist() == [key % capacity for key in valid]


# ------------------------------------------------------------------ with and without numba

PROGRAM = """
import hashlib, sys
if {blocked}: sys.modules["numba"] = None
import numpy as np
from dreamfleet.core.selectors import Prioritized
from dreamfleet.core.types import Consumer
from tests.replay_server.model import filled, spec
consumers = dict(a=Consumer(5, 3, Prioritized(), context=2), b=Consumer(4, 2, Prioritized(0.6)))
table, _ = filled(spec(1500, 1e9, **consumers), rows=1200)
digest = hashlib.sha256()
for turn in range(30):
    for consumer in "ab":
        sample = table.sample(consumer)
        digest.update(sample.keys.tobytes() + sample.prob.tobytes() + sample.data["obs"].tobytes())
        table.update(sample.keys, {{"priority": sample.prob * turn}})
state = table.snapshot().state()
for consumer in "ab":
    digest.update(state["consumers"][consumer]["selector"]["weights"].tobytes())
print(digest.hexdigest(), bool(sys.modules.get("numba")))
"""


def run_program(blocked: bool) -> list[str]:
    """Runs `PROGRAM` in a new process. blocked: whether numba cannot be imported there.

    Returns the digest of the table, and whether numba was imported.
    """
    words = [sys.executable, "-c", PROGRAM.format(blocked=blocked)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_a_table_is_bit_identical_with_and_without_numba() -> None:
    ours, compiled = run_program(blocked=False)
    theirs, uncompiled = run_program(blocked=True)
    assert (compiled, uncompiled) == ("True", "False")
    assert ours == theirs


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_other_types_than_those_of_the_signatures_are_refused() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        fastest().keys_at(np.zeros(3), 1, 1)


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_loops_are_compiled_where_no_cache_can_be_written() -> None:
    code = (
        "import numpy as np\n"
        "from dreamfleet.replay_server.compiled import fastest\n"
        "print(fastest().keys_at(np.array([1]), 5, 2).tolist(), fastest().keys_at.stats.cache_path)"
    )
    # This locator finds no place for a cache, as the package is no zip archive.
    nowhere = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=nowhere, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[3] None\n"), done.stderr
