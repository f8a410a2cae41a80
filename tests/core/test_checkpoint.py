from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamfleet.core import checkpoint
from dreamfleet.core.errors import UserError

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64", "uint32", "uint64")
arrays = st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | arrays
)
keys = st.text(st.characters(codec="utf-8"), max_size=5).filter(lambda k: k != "$array")
states = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def save(folder: Path, steps: int, state=None) -> Path:
    return checkpoint.save(folder, steps, state or {"n": steps}, agent="ours", env="CartPole-v1")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(states)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, state):
    assert same(state, checkpoint.load(save(tmp_path, 7, {"s": state}))["s"])


def test_generator_state_survives(tmp_path):
    rng = np.random.default_rng(3)
    rng.random(5)
    path = save(tmp_path, 1, {"rng": rng.bit_generator.state})
    expected = rng.random(4)
    again = np.random.default_rng()
    again.bit_generator.state = checkpoint.load(path)["rng"]
    np.testing.assert_array_equal(again.random(4), expected)


def test_numpy_scalars_and_tuples_become_plain(tmp_path):
    path = save(tmp_path, 1, {"a": np.float32(0.1), "b": (np.int64(3), True)})
    assert checkpoint.load(path) == {"a": float(np.float32(0.1)), "b": [3, True]}


@pytest.mark.parametrize(
    "bad", [{"x": object()}, {"x": np.array([None])}, {3: 1}, {"$array": 1}, {"x": b"bytes"}]
)
def test_what_would_need_a_pickle_is_refused_and_leaves_nothing(tmp_path, bad):
    with pytest.raises(TypeError, match="a checkpoint holds no"):
        save(tmp_path, 1, {"deep": bad})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_two_are_kept_and_same_step_does_not_collide(tmp_path):
    paths = [save(tmp_path, steps) for steps in (100, 200, 200, 1000)]
    assert sorted(tmp_path.iterdir()) == paths[2:]
    assert checkpoint.newest(tmp_path) == paths[3]
    assert checkpoint.manifest(paths[3])["env_steps"] == 1000


def test_a_future_that_was_given_up_is_removed(tmp_path):
    save(tmp_path, 100), save(tmp_path, 300)
    path = save(tmp_path, 200)
    assert checkpoint.newest(tmp_path) == path


def test_leftovers_of_a_crash_while_saving_are_swept_and_never_loaded(tmp_path):
    leftover = tmp_path / ".staging-1"
    leftover.mkdir(parents=True)
    (leftover / "manifest.json").write_text("{}")
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 1)
    assert not leftover.exists()


@pytest.mark.parametrize("point", ["_digest", "_flush", "_flush_folder", "_free_name"])
def test_a_failure_anywhere_while_saving_keeps_the_last_one(tmp_path, monkeypatch, point):
    good = save(tmp_path, 1)

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, point, fail)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == good
    assert list(tmp_path.iterdir()) == [good]


def damage_truncate(path: Path) -> None:
    file = path / "arrays.npz"
    file.write_bytes(file.read_bytes()[:-10])


def damage_flip(path: Path) -> None:
    file = path / "arrays.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_no_arrays(path: Path) -> None:
    (path / "arrays.npz").unlink()


def damage_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:-10])


def damage_version(path: Path) -> None:
    edit(path, version=99)


def damage_format(path: Path) -> None:
    edit(path, format="torch")


def edit(path: Path, **fields) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "sha256"),
        (damage_flip, "sha256"),
        (damage_no_arrays, "no such file"),
        (damage_manifest, "damaged: manifest.json"),
        (damage_version, "has version 99; this program reads 1"),
        (damage_format, "found format 'torch', expected 'dreamfleet-checkpoint'"),
    ],
)
def test_a_damaged_one_is_refused_by_name_and_passed_over_by_newest(
    tmp_path, caplog, damage, message
):
    state = {"w": np.arange(100.0)}
    good, bad = save(tmp_path, 1, state), save(tmp_path, 2, state)
    damage(bad)
    with pytest.raises(UserError, match=message):
        checkpoint.load(bad)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(tmp_path) == good
    assert bad.name in caplog.text
    damage(good)
    with pytest.raises(UserError, match=bad.name):
        checkpoint.newest(tmp_path)


def test_foreign_or_missing_checkpoints_say_what_was_found(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(UserError, match="is of agent 'ours', expected 'theirs'"):
        checkpoint.load(path, agent="theirs")
    with pytest.raises(UserError, match="is of env 'CartPole-v1', expected 'Pendulum-v1'"):
        checkpoint.load(path, env="Pendulum-v1")
    with pytest.raises(UserError, match=r"found nothing, expected manifest\.json"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(UserError, match="found no manifest"):
        checkpoint.load(tmp_path)


class Bomb:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


def test_a_pickle_inside_is_never_run(tmp_path):
    canary = tmp_path / "canary"
    path = save(tmp_path / "c", 1, {"w": np.zeros(3)})
    with open(path / "arrays.npz", "wb") as file:
        np.savez(file, a0=np.array([Bomb(str(canary))], dtype=object))
    edit(path, sha256=checkpoint._digest(path / "arrays.npz"))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)
    (path / "arrays.npz").write_bytes(pickle.dumps(Bomb(str(canary))))
    edit(path, sha256=checkpoint._digest(path / "arrays.npz"))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)
    assert not canary.exists()
