from __future__ import annotations

import json

import numpy as np

from dreamfleet.core.metrics import MetricsWriter


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_readable_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"kind": "episode", "env_steps": 3, "return": np.float32(0.5)})
        assert lines(path) == [{"kind": "episode", "env_steps": 3, "return": 0.5}]


def test_what_json_lacks_becomes_null_or_plain(tmp_path):
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


def test_resuming_appends_and_drops_only_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "a", "env_steps": 1}\n{"kind": "b", "env_')
    with MetricsWriter(path) as writer:
        writer.write({"kind": "c", "env_steps": 2})
    assert [line["kind"] for line in lines(path)] == ["a", "c"]
    with MetricsWriter(path) as writer:
        writer.write({"kind": "d", "env_steps": 3})
    assert [line["kind"] for line in lines(path)] == ["a", "c", "d"]
