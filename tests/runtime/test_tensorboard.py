from __future__ import annotations

import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from dreamfleet.runtime.tensorboard import TensorBoard, scalars


def test_numbers_become_scalars_by_group_and_other_keys_are_left_out():
    event = {
        "kind": "episode",
        "env_steps": 7,
        "wall_s": 1.5,
        "actor": 2,
        "return": 3,
        "loss/critic": 0.5,
        "note": "x",
        "gone": None,
    }
    assert scalars(event) == {"episode/return": 3.0, "loss/critic": 0.5}


def test_events_reach_a_file_that_tensorboard_reads(tmp_path):
    board = TensorBoard(tmp_path / "tensorboard")
    for step in (7, 8):
        board.write({"kind": "episode", "env_steps": step, "return": 3.0, "loss/critic": 0.5})
    board.close()
    (file,) = tmp_path.glob("tensorboard/events.out.tfevents.*")
    first, *records = read(file.read_bytes())
    assert first.file_version == "brain.Event:2"
    assert [record.step for record in records] == [7, 8]
    for record in records:
        found = {value.tag: value.simple_value for value in record.summary.value}
        assert found == {"episode/return": 3.0, "loss/critic": 0.5}


def read(content: bytes) -> list:
    """Parses the content of a TensorBoard file into records. Verifies all checksums."""
    records = []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        assert check == masked_crc32c(content[:8])
        records.append(Event.FromString(content[12 : 12 + length]))
        (check,) = struct.unpack("<I", content[12 + length : 16 + length])
        assert check == masked_crc32c(content[12 : 12 + length])
        content = content[16 + length :]
    return records


def written(folder) -> list[dict[str, float]]:
    (file,) = folder.iterdir()
    _, *records = read(file.read_bytes())
    return [{value.tag: value.simple_value for value in it.summary.value} for it in records]


def test_a_counter_is_written_when_it_changes_and_a_gauge_every_time(tmp_path):
    board = TensorBoard(tmp_path)
    for held, evicted in ((5, 0), (6, 0), (6, 1)):
        counters = {"replay/real/stored": held, "replay/real/evicted": evicted, "fault/restarts": 0}
        gauges = {"speed/env_steps_per_s": 3.0}
        board.write({"kind": "run", "env_steps": 1, **counters, **gauges})
    board.close()
    assert written(tmp_path) == [
        {"speed/env_steps_per_s": 3.0},
        {"speed/env_steps_per_s": 3.0, "replay/real/stored": 6.0},
        {"speed/env_steps_per_s": 3.0, "replay/real/evicted": 1.0},
    ]


def test_a_full_disk_raises_and_leaves_no_partial_record(tmp_path, monkeypatch):
    board, write = TensorBoard(tmp_path), os.write
    event = {"kind": "episode", "env_steps": 7, "return": 3.0}
    board.write(event)

    def short(file, content):
        if len(content) > 4:
            return write(file, content[:4])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        for _ in range(30):
            with pytest.raises(OSError, match="No space"):
                board.write(event)
    board.write(event)
    board.close()
    (file,) = tmp_path.iterdir()
    assert len(read(file.read_bytes())) == 3
