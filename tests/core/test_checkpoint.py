from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamfleet.core import checkpoint
from dreamfleet.core.errors import UserError

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64", "uint32", "uint64")
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
def test_a_state_is_loaded_bit_for_bit(tmp_path, state):
    assert same(state, checkpoint.load(save(tmp_path, 7, {"s": state}))["s"])


def test_the_state_of_a_random_generator_can_be_saved(tmp_path):
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
def test_a_state_with_other_types_is_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(TypeError, match="a checkpoint holds no"):
        save(tmp_path, 1, {"deep": bad})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_two_are_kept(tmp_path):
    paths = [save(tmp_path, steps) for steps in (100, 200, 1000)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    assert checkpoint.newest(tmp_path) == paths[2]
    assert checkpoint.manifest(paths[2])["env_steps"] == 1000


def test_the_two_kept_checkpoints_are_of_different_steps(tmp_path):
    """A second save after the same number of steps replaces the first one.

    The checkpoint of an earlier step stays.
    """
    older, _, last = save(tmp_path, 100), save(tmp_path, 200), save(tmp_path, 200, {"n": 7})
    assert sorted(tmp_path.iterdir()) == [older, last]
    assert checkpoint.load(last) == {"n": 7}


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    whole, damaged = save(tmp_path, 100), save(tmp_path, 200)
    (damaged / "manifest.json").write_text("{")
    last = save(tmp_path, 300)
    assert sorted(tmp_path.iterdir()) == [whole, last]


def test_files_and_folders_of_others_are_not_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere, 5)
    folder = tmp_path / "checkpoints"
    noted = save(folder, 100)
    (noted / "notes.txt").write_text("mine")
    (folder / "ckpt-000000000050.000").symlink_to(elsewhere)
    (folder / "ckpt-000000000100.000-backup").mkdir()
    (folder / ".staging-mine").mkdir()
    (folder / ".staging-1").symlink_to(elsewhere)
    paths = [save(folder, steps) for steps in (200, 300, 400)]
    kept = {noted, *paths[1:], *(folder / name for name in ("ckpt-000000000050.000",))}
    kept |= {folder / name for name in ("ckpt-000000000100.000-backup", ".staging-mine")}
    assert set(folder.iterdir()) == kept | {folder / ".staging-1"}
    assert (noted / "notes.txt").read_text() == "mine"
    assert checkpoint.newest(elsewhere) is not None


@pytest.mark.parametrize("part", checkpoint.LEARNED)
@pytest.mark.parametrize(
    "bad",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([1.0, np.inf]),
        np.array([np.inf, -np.inf]),
        np.array(np.nan),
        np.full(3, np.nan),
        float("nan"),
        np.float32("nan"),
    ],
)
def test_learned_parts_with_nan_are_not_saved(tmp_path, part, bad):
    good = save(tmp_path, 1)
    with pytest.raises(checkpoint.NotFinite, match=rf"{part}\.policy\.w"):
        save(tmp_path, 2, {part: {"policy": {"w": bad}}})
    assert list(tmp_path.iterdir()) == [good]


def test_arrays_of_one_infinity_and_infinities_in_the_replay_are_saved(tmp_path):
    low, high = np.full((2, 2), np.inf, np.float32), np.array(-np.inf)
    state = {
        "agent": {"world": {"low": low, "high": high, "best": float("-inf")}},
        "replay": {"priority": np.array([np.inf, np.nan])},
    }
    assert same(state, checkpoint.load(save(tmp_path, 1, state)))


def test_only_the_parts_asked_for_are_read(tmp_path):
    path = save(tmp_path, 1, {"agent": {"w": np.arange(3.0)}, "replay": {"rows": np.arange(9)}})
    content = (path / "arrays.npz").read_bytes()
    rows = content.index(np.arange(9).tobytes())
    (path / "arrays.npz").write_bytes(content[:rows] + b"x" + content[rows + 1 :])
    (got,) = checkpoint.load(path, parts=("agent",)).values()
    assert got["w"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, parts=("replay",))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)


def test_a_newer_checkpoint_is_read_when_the_listed_ones_have_been_removed(tmp_path, monkeypatch):
    """A run saves two checkpoints, and removes the old one, after a reader has listed it."""
    save(tmp_path, 1)
    read, saved = checkpoint.read, []

    def prune_first(path, **about):
        if not saved:
            saved.extend([save(tmp_path, 2), save(tmp_path, 3)])
        return read(path, **about)

    monkeypatch.setattr(checkpoint, "read", prune_first)
    assert checkpoint.newest(tmp_path) == saved[-1]


def test_a_checkpoint_that_the_caller_cannot_use_is_skipped(tmp_path):
    def check(state):
        if "policy" not in state:
            raise UserError("it lacks the policy")

    good = save(tmp_path, 1, {"policy": 1})
    bad = save(tmp_path, 2, {"world": 1})
    found = checkpoint.read_newest(tmp_path, check=check)
    assert found == checkpoint.Saved(good, 1, {"policy": 1})
    with pytest.raises(UserError, match=f"{bad} cannot be used: it lacks the policy"):
        checkpoint.load(bad, check=check)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file_is_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "arrays.npz").chmod(0)
    with pytest.raises(UserError, match=r"arrays\.npz: .*Permission denied"):
        checkpoint.load(path)
    tmp_path.chmod(0)
    with pytest.raises(UserError, match="cannot read the checkpoints"):
        checkpoint.newest(tmp_path)
    tmp_path.chmod(0o700)


def test_checkpoints_of_later_steps_are_removed(tmp_path):
    save(tmp_path, 100), save(tmp_path, 300)
    path = save(tmp_path, 200)
    assert checkpoint.newest(tmp_path) == path


def test_an_incomplete_checkpoint_is_removed_and_never_loaded(tmp_path):
    leftover = tmp_path / ".staging-1"
    leftover.mkdir(parents=True)
    (leftover / "manifest.json").write_text("{}")
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 1)
    assert not leftover.exists()


@pytest.mark.parametrize("point", ["_digest", "_flush", "_flush_folder", "_free_name"])
def test_a_failure_while_saving_keeps_the_newest_checkpoint(tmp_path, monkeypatch, point):
    good = save(tmp_path, 1)

    def fail(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, point, fail)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == good
    assert list(tmp_path.iterdir()) == [good]


def test_errors_for_foreign_or_missing_checkpoints_say_what_was_found(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(UserError, match="is of agent 'ours', expected 'theirs'"):
        checkpoint.load(path, agent="theirs")
    with pytest.raises(UserError, match="is of env 'CartPole-v1', expected 'Pendulum-v1'"):
        checkpoint.load(path, env="Pendulum-v1")
    with pytest.raises(UserError, match=r"found nothing, expected manifest\.json"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(UserError, match="found no manifest"):
        checkpoint.load(tmp_path)


def reseal(path: Path, **fields) -> None:
    """Changes fields of a checkpoint's manifest, and recomputes its digests to match."""
    file = path / "manifest.json"
    about = {**json.loads(file.read_text()), **fields}
    if (path / "arrays.npz").is_file():
        about["sha256"] = fields.get("sha256", checkpoint._digest(path / "arrays.npz"))
    del about["manifest_sha256"]
    file.write_text(json.dumps(about | {"manifest_sha256": checkpoint._manifest_digest(about)}))


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
    reseal(path)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)
    (path / "arrays.npz").write_bytes(pickle.dumps(Bomb(str(canary))))
    reseal(path)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)
    assert not canary.exists()
