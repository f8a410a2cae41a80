from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.arrays import copy_blocks, to_tensors
from dreamfleet.core.types import Consumer, Space, TableSpec
from dreamfleet.replay_server.server import ReplayServer

COLUMNS = {
    "obs": Space((3,), "float32"),
    "pixels": Space((2, 2, 1), "uint8"),
    "action": Space((), "int64", n=4),
    "reward": Space((), "float32"),
    "first": Space((), "bool"),
    "last": Space((), "bool"),
    "terminal": Space((), "bool"),
}


def replay_sample() -> dict[str, np.ndarray]:
    """Returns the columns of a sample of a replay with random rows."""
    table = TableSpec(64, COLUMNS, {"policy": Consumer(5, 3)})
    replay, rng = ReplayServer({"real": table}, 0), np.random.default_rng(0)
    rows = {
        name: (rng.random((2, 20, *space.shape)) * 3).astype(space.dtype)
        for name, space in COLUMNS.items()
    }
    for name in ("first", "last", "terminal"):
        rows[name][:] = False
    rows["first"][:, 0] = True
    assert replay.add("real", rows, np.arange(2))
    return replay.sample("real", "policy").data


def test_a_sample_of_the_replay_is_copied_as_a_whole():
    sample, copies = replay_sample(), []

    def copy(block: torch.Tensor) -> torch.Tensor:
        copies.append(block)
        return block.clone()

    tensors = copy_blocks(sample, copy)
    assert len(copies) == 1
    for name, array in sample.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        assert tensors[name].numpy().dtype == array.dtype
        array[...] = 1
    assert not all(bool((tensor == 1).all()) for tensor in tensors.values())


def test_arrays_of_other_origin_are_copied_one_by_one():
    further = {
        "weight": np.arange(4, dtype=np.float16),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.int64),
    }
    copies = []

    def copy(block: torch.Tensor) -> torch.Tensor:
        copies.append(block)
        return block.clone()

    tensors = copy_blocks({**replay_sample(), **further}, copy)
    assert len(copies) == 1 + len(further)
    for name, array in further.items():
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        assert tensors[name].shape == array.shape


def test_on_a_cpu_tensors_share_the_memory_of_arrays():
    sample = replay_sample()
    tensors = to_tensors(sample, "cpu")
    sample["reward"][...] = 7
    assert (tensors["reward"] == 7).all()


@pytest.mark.cuda
def test_a_gpu_receives_the_same_numbers():
    sample = replay_sample() | {"weight": np.arange(4.0), "there": torch.ones(2, device="cuda")}
    tensors = to_tensors(sample, "cuda")
    assert tensors.keys() == sample.keys()
    for name, array in sample.items():
        assert tensors[name].is_cuda
        np.testing.assert_array_equal(tensors[name].cpu().numpy(), torch.as_tensor(array).cpu())
