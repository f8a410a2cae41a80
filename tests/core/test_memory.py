from __future__ import annotations

import numpy as np

from dreamfleet.core.memory import blocks_of


def test_views_that_fill_an_array_of_bytes_share_a_block():
    memory = np.zeros(192, np.uint8)
    columns = {
        "a": np.ndarray((8,), np.float64, memory, 64),
        "b": np.ndarray((3, 10), np.uint8, memory, 128),
        "c": np.ndarray((16,), np.float32, memory, 0),
    }
    (block,) = blocks_of(columns)
    assert block.memory is memory
    assert block.begins == {"a": 64, "b": 128, "c": 0}


def test_views_of_small_parts_and_other_arrays_are_blocks_of_their_own():
    memory, floats = np.zeros(100_000, np.uint8), np.arange(6.0)
    columns = {
        "part": np.ndarray((8,), np.float64, memory, 64),
        "own": floats,
        "slice": floats[2:4],
        "scalar": np.array(3, np.int64),
    }
    blocks = blocks_of(columns)
    assert sorted(name for block in blocks for name in block.begins) == sorted(columns)
    for block in blocks:
        ((name, begin),) = block.begins.items()
        assert begin == 0
        assert block.memory.tobytes() == columns[name].tobytes()
