from __future__ import annotations

import pickle

import numpy as np
import pytest

from dreamfleet.replay_server.server import ReplayServer
from dreamfleet.runtime.packed import ALIGNMENT, Packed
from tests.fakes import FakeAgent
from tests.runtime.test_hosts import rows

BATCH = {
    "obs": np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5),
    "action": np.arange(6, dtype=np.int64).reshape(2, 3),
    "turned": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not in one run
    "first": np.array([[True, False, False], [False, True, False]]),
    "version": np.array(7),
    "none": np.zeros((0, 4), np.float32),
}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (column.dtype, column.shape), name
        np.testing.assert_array_equal(ours[name], column)


def test_a_batch_comes_out_as_it_went_in():
    packed = Packed.of(BATCH)
    assert_same(packed.batch(), BATCH)
    assert_same(packed.owned(), BATCH)
    assert_same(Packed.of({}).batch(), {})


def test_it_travels_as_one_buffer():
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(Packed.of(BATCH), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert len(data) < 1000
    assert_same(pickle.loads(data, buffers=buffers).batch(), BATCH)


def test_what_is_owned_shares_nothing_with_what_came():
    packed = Packed.of(BATCH)
    packed.memory.flags.writeable = False
    assert not packed.batch()["obs"].flags.writeable
    owned = packed.owned()
    assert all(column.flags.writeable for column in owned.values())
    assert not any(np.shares_memory(column, packed.memory) for column in owned.values())


def test_what_lies_in_one_piece_already_is_not_copied():
    batch = Packed.of(BATCH).batch()
    again = Packed.of(batch)
    assert_same(again.batch(), BATCH)
    assert all(np.shares_memory(again.memory, batch[name]) for name in ("obs", "action"))


@pytest.mark.parametrize("part", [slice(0, 1), slice(None, None, 2)])
def test_a_part_of_a_large_piece_is_copied_out_of_it(part):
    memory = np.zeros(10_000, np.uint8)
    batch = {"a": memory[:64][part], "b": memory[64:128]}
    packed = Packed.of(batch)
    assert packed.memory.nbytes <= 2 * ALIGNMENT
    assert_same(packed.batch(), batch)


def test_a_sample_travels_in_the_memory_it_was_gathered_into():
    table = FakeAgent().tables["real"]
    server = ReplayServer({"real": table}, 0)
    server.add("real", rows(16), np.array([0]))
    drawn = server.draw("real", "policy")
    batch = server.gather("real", drawn)
    packed = Packed.of(batch)
    assert_same(packed.batch(), batch)
    assert all(np.shares_memory(packed.memory, column) for column in batch.values())
