"""Tests that a batch survives packing, and that a packed batch is one buffer."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dreamfleet.core.weights import FlatWeights
from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.packed import ALIGNMENT, Packed, PackedWeights
from tests.fakes import FakeAgent
from tests.runtime.test_hosts import rows

BATCH = {
    "obs": np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5),
    "action": np.arange(6, dtype=np.int64).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not contiguous
    "first": np.array([[True, False, False], [False, True, False]]),
    "version": np.array(7),
    "latent": np.linspace(0, 1, 6, dtype=np.float16).reshape(2, 3),
    "none": np.zeros((0, 4), np.float32),
}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (column.dtype, column.shape), name
        np.testing.assert_array_equal(ours[name], column)


def test_unpacking_returns_the_batch_that_was_packed():
    packed = Packed.of(BATCH)
    assert_same(packed.views(), BATCH)
    assert_same(packed.unpack(), BATCH)
    assert_same(Packed.of({}).views(), {})


def test_a_packed_batch_is_pickled_as_one_buffer():
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(Packed.of(BATCH), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert len(data) < 1000
    assert_same(pickle.loads(data, buffers=buffers).views(), BATCH)


def test_an_unpacked_batch_shares_no_memory_with_the_packed_one():
    packed = Packed.of(BATCH)
    packed.memory.flags.writeable = False
    assert not packed.views()["obs"].flags.writeable
    unpacked = packed.unpack()
    assert all(column.flags.writeable for column in unpacked.values())
    assert not any(np.shares_memory(column, packed.memory) for column in unpacked.values())


def test_columns_that_fill_one_block_are_not_copied():
    batch = Packed.of(BATCH).views()
    again = Packed.of(batch)
    assert_same(again.views(), BATCH)
    assert all(np.shares_memory(again.memory, batch[name]) for name in ("obs", "action"))


@pytest.mark.parametrize("part", [slice(0, 1), slice(None, None, 2)])
def test_columns_that_use_a_small_part_of_a_block_are_copied(part):
    memory = np.zeros(10_000, np.uint8)
    batch = {"a": memory[:64][part], "b": memory[64:128]}
    packed = Packed.of(batch)
    assert packed.memory.nbytes <= 2 * ALIGNMENT
    assert_same(packed.views(), batch)


def test_a_sample_of_the_replay_is_packed_without_a_copy():
    table = FakeAgent().tables["real"]
    server = ReplayServer({"real": table}, 0)
    server.add("real", rows(16), np.array([0]))
    draw = server.draw("real", "policy")
    batch = server.gather("real", draw)
    packed = Packed.of(batch)
    assert_same(packed.views(), batch)
    assert all(np.shares_memory(packed.memory, column) for column in batch.values())


def test_only_trained_float32_weights_are_shortened_to_bfloat16():
    rng = np.random.default_rng(0)
    weights = {
        "layer": rng.normal(size=(4, 3)).astype(np.float32),
        "double": rng.normal(size=2),
        "mean": rng.normal(size=3).astype(np.float32),
        "steps": np.array(123_456_789),
    }
    flat = FlatWeights(weights, trained=("layer", "double"))
    exact, short = (PackedWeights.of(flat, dtype) for dtype in ("float32", "bfloat16"))
    assert_same(exact.views(), weights)
    found = short.views()
    np.testing.assert_allclose(found["layer"], weights["layer"], rtol=2**-8)
    assert not np.array_equal(found["layer"], weights["layer"])
    assert_same(found | {"layer": weights["layer"]}, weights)
    sizes = [{name: dtype for name, dtype, *_ in each.data.columns} for each in (exact, short)]
    assert sizes[0]["layer"] == "<f4" and sizes[1]["layer"] == "<u2"


def test_weights_of_an_agent_without_flat_weights_are_sent_exactly():
    weights = {"w": np.array([0.1, 0.2], np.float32)}
    assert_same(PackedWeights.of(weights, "bfloat16").views(), weights)
