from __future__ import annotations

import json
import os

import numpy as np
import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.core.metrics import MetricsWriter


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_readable_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"kind": "episode", "env_steps": 3, "return": np.float32(0.5)})
        assert lines(path) == [{"kind": "episode", "env_steps": 3, "return": 0.5}]


def test_values_that_json_lacks_become_null_or_plain_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {
        "loss": float("nan"),
        "max": np.float64("inf"),
        "n": np.int64(2**40),
        "ok": np.bool_(True),
        "zero": np.array(1.0),
        "many": np.array([1.0, np.nan]),
        "deep": {"x": np.float32("nan")},
    }
    with MetricsWriter(path) as writer:
        writer.write({"kind": "train", "env_steps": np.int64(1), **values})
    (found,) = lines(path)
    assert found == {
        "kind": "train",
        "env_steps": 1,
        "loss": None,
        "max": None,
        "n": 2**40,
        "ok": True,
        "zero": 1.0,
        "many": [1.0, None],
        "deep": {"x": None},
    }


def test_opening_an_existing_file_removes_only_an_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "a", "env_steps": 1}\n{"kind": "b", "env_')
    with MetricsWriter(path) as writer:
        writer.write({"kind": "c", "env_steps": 2})
    assert [line["kind"] for line in lines(path)] == ["a", "c"]
    with MetricsWriter(path) as writer:
        writer.write({"kind": "d", "env_steps": 3})
    assert [line["kind"] for line in lines(path)] == ["a", "c", "d"]


def test_an_incomplete_line_in_the_middle_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    before = b'{"kind": "a"}\n{"kind": "b", "en\n{"kind": "c"}\n'
    path.write_bytes(before + b"x" * 200_000)
    with MetricsWriter(path) as writer:
        writer.write({"kind": "d", "env_steps": 2})
    assert path.read_bytes() == before + b'{"kind": "d", "env_steps": 2}\n'


def test_a_full_disk_leaves_no_incomplete_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write, full = os.write, []

    def short(file, content):
        if not full:
            return write(file, content)
        if len(content) > 4:
            return write(file, content[:4])
        raise OSError(28, "No space left on device")

    with MetricsWriter(path) as writer:
        monkeypatch.setattr(os, "write", short)
        writer.write({"kind": "a", "env_steps": 1})
        full.append(True)
        with pytest.raises(OSError, match="No space"):
            writer.write({"kind": "b", "env_steps": 2, "more": "x" * 9})
        full.clear()
        writer.write({"kind": "c", "env_steps": 3})
    assert [line["kind"] for line in lines(path)] == ["a", "c"]


def test_a_file_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link to"):
        MetricsWriter(tmp_path / "metrics.jsonl")
    assert (tmp_path / "precious").read_text() == "mine"
