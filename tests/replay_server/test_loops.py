"""The inner loops give the same bits compiled, as they stand, and in numpy."""

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
AS_THEY_STAND = Loops(*(getattr(loops, name) for name in Loops._fields))
FORMS = {
    "numpy": IN_NUMPY,
    "interpreted": AS_THEY_STAND,
    **({"compiled": fastest()} if find_spec("numba") else {}),
}
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 70) | st.integers(TOP - 9, TOP + 40) | st.just(8 * TOP + 1)


def in_every_form(name: str, *arguments: object) -> list[object]:
    """What each form gives for copies of the same arguments: its result and the arguments after."""
    found = []
    for form in FORMS.values():
        given = [of.copy() if isinstance(of, np.ndarray) else of for of in arguments]
        found.append((getattr(form, name)(*given), given))
    return found


def agree(name: str, *arguments: object) -> object:
    """Require the same of every form, to the last bit, and return it."""
    first, *others = in_every_form(name, *arguments)
    for other in others:
        np.testing.assert_equal(other, first)
    return first


def masses(rng: np.random.Generator, n: int) -> Array:
    """Some alike, some of very different size, some 0."""
    made = 10.0 ** rng.uniform(-30, 30, n) if rng.random() < 0.3 else rng.random(n)
    made[rng.random(n) < rng.random()] = 0.0
    return made


@given(SIZES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_trees_are_written_and_drawn_from_alike(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = level_sizes(size)
    nodes, begins = np.zeros(sum(sizes)), np.cumsum([0, *sizes])
    for _ in range(4):
        slots = rng.integers(size, size=rng.integers(0, 2 * size))
        if rng.random() < 0.3:  # neighbours, as a chunk writes them
            slots = np.arange(size)[slots.min(initial=0) :]
        total, (nodes, *_) = agree("write", nodes, begins, slots, masses(rng, slots.size))
        if total > 0:
            random = rng.random((2, int(rng.integers(0, 40))))
            random[0, rng.random(random.shape[1]) < 0.1] = np.nextafter(1, 0)
            drawn, _ = agree("draw", nodes, begins, random)
            assert (nodes[begins[-2] :][drawn] > 0).all()


def test_nothing_is_drawn_from_an_empty_tree() -> None:
    for form in FORMS.values():
        with pytest.raises(ValueError, match="nothing to draw"):
            form.draw(np.zeros(8), np.array([0, 8]), np.zeros((2, 1)))


@given(st.integers(1, 30), st.integers(0, 90), SEEDS)
def test_keys_are_found_alike(capacity: int, inserted: int, seed: int) -> None:
    slots = np.random.default_rng(seed).integers(capacity, size=(9, 2))
    keys, _ = agree("keys_at", slots[:, 0], inserted, capacity)
    newest = [max(range(s - capacity, inserted, capacity)) for s in slots[:, 0].tolist()]
    assert keys.tolist() == newest
    strided = [form.keys_at(slots[:, 0], inserted, capacity).tolist() for form in FORMS.values()]
    assert strided == [newest] * len(FORMS)


@given(st.integers(0, 5), st.integers(0, 4), st.integers(1, 4), SEEDS)
def test_windows_are_followed_alike(n: int, context: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    following, starts = rng.integers(20, size=20), rng.integers(20, size=n)
    previous, first = rng.integers(-1, 60, size=20), rng.random(20) < 0.3
    slots, _ = agree("windows", starts, context, window, following, previous, first)
    assert slots.shape == (n, context + window)
    np.testing.assert_array_equal(slots[:, context], starts)


@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 90), SEEDS)
def test_priorities_are_sifted_alike(n: int, capacity: int, inserted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(-2, inserted + 3, size=n)
    priorities = rng.choice([0.0, -0.0, 1.5, -1.0, np.nan, np.inf, -np.inf, 1e300], n)
    oldest = max(inserted - capacity, 0)
    found, _ = agree("sift", keys, priorities, oldest, inserted, capacity)
    slots, kept, stale, refused = found
    assert slots.size + stale + refused == n
    assert (kept >= 0).all()
    pairs = zip(keys.tolist(), priorities.tolist(), strict=True)
    good = [key for key, mass in pairs if oldest <= key < inserted and 0 <= mass < np.inf]
    assert slots.tolist() == [key % capacity for key in good]


# ------------------------------------------------------------------------------- the choice

LIFE = """
import hashlib, sys
if {blocked}: sys.modules["numba"] = None
import numpy as np
from dreamfleet.core.types import Consumer, Prioritized
from tests.replay_server.model import filled, spec
consumers = dict(a=Consumer(5, 3, Prioritized(), context=2), b=Consumer(4, 2, Prioritized(0.6)))
table, _ = filled(spec(1500, 1e9, **consumers), rows=1200)
digest = hashlib.sha256()
for turn in range(30):
    for consumer in "ab":
        sample = table.sample(consumer)
        digest.update(sample.keys.tobytes() + sample.prob.tobytes() + sample.data["obs"].tobytes())
        table.update(sample.keys, sample.prob * turn)
state = table.state()
for consumer in "ab":
    digest.update(state["views"][consumer]["selector"]["mass"].tobytes())
print(digest.hexdigest(), bool(sys.modules.get("numba")))
"""


def life(blocked: bool) -> list[str]:
    """What became of a table in a process of its own, and whether numba was there."""
    words = [sys.executable, "-c", LIFE.format(blocked=blocked)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_a_table_lives_alike_with_numba_and_without() -> None:
    (ours, compiled), (theirs, uncompiled) = life(blocked=False), life(blocked=True)
    assert (compiled, uncompiled) == ("True", "False")
    assert ours == theirs


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_nothing_is_compiled_but_what_the_signatures_name() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        fastest().keys_at(np.zeros(3), 1, 1)


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same() -> None:
    code = (
        "import numpy as np\n"
        "from dreamfleet.replay_server.compiled import fastest\n"
        "print(fastest().keys_at(np.array([1]), 5, 2).tolist(), fastest().keys_at.stats.cache_path)"
    )
    nowhere = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}  # we are no archive
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=nowhere, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[3] None\n"), done.stderr
