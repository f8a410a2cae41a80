"""Tests that a damaged checkpoint causes a warning, and that the newest undamaged one is read."""

from __future__ import annotations

import io
import json
import logging
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamfleet.core import checkpoint
from dreamfleet.core.errors import UserError
from tests.core.test_checkpoint import reseal, same

STATE = {
    "agent": {"policy": {"w": np.arange(6.0).reshape(2, 3), "steps": 3}},
    "replay": {"rows": np.arange(100), "last": np.zeros(4, bool)},
    "session": {"env_steps": 7, "share": 0.25, "envs": ["a", None, True]},
}


def save(folder: Path, env_steps: int, state: Any = STATE) -> Path:
    return checkpoint.save(folder, env_steps, state, agent="ours", env="CartPole-v1")


def needs(state: dict[str, Any]) -> None:
    """Raises UserError for a checkpoint's state without the parts that a resumed run needs."""
    for path in (("agent", "policy"), ("replay", "rows"), ("session", "env_steps")):
        node: Any = state
        for key in path:
            if not isinstance(node, dict) or key not in node:
                raise UserError(f"{'.'.join(path)} is missing")
            node = node[key]
    if state["agent"]["policy"]["w"].shape != (2, 3):
        raise UserError("agent.policy.w has another shape")


def set_field(**fields: Any) -> Callable[[Path], None]:
    """Returns a function that changes fields of a manifest, and its digests to match."""
    return lambda path: reseal(path, **fields)


def edit_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tree = json.loads((path / "manifest.json").read_text())["state"]
        change(tree)
        reseal(path, state=tree)

    return damage


def edit_text(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path / file).write_bytes(change((path / file).read_bytes())) and None


def set_arrays(write: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = io.BytesIO()
        write(file)
        (path / "arrays.npz").write_bytes(file.getvalue())
        reseal(path)

    return damage


def zipped(**members: bytes) -> Callable[[Any], None]:
    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    return write


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def flip_middle(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def bomb(file: Any) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"a{i}.npy", header("(1000000,)") + bytes(8_000_000))


def overlapping(file: Any) -> None:
    """Writes a zip file with three names for the same bytes.

    Together they claim more bytes than the file has.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a0.npy", header("(1000,)") + bytes(8000))
        for i in (1, 2):
            info = zipfile.ZipInfo(f"a{i}.npy")
            copy = archive.infolist()[0]
            info.header_offset, info.CRC = copy.header_offset, copy.CRC
            info.compress_size = info.file_size = copy.file_size
            archive.filelist.append(info)
    file.write(content.getvalue())


def nested(path: Path) -> None:
    deep = "[" * 200_000 + "]" * 200_000
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"share": 0.25', f'"share": {deep}'))


def remove(file: str) -> Callable[[Path], None]:
    return lambda path: (path / file).unlink()


def make_folder(file: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        (path / file).unlink()
        (path / file).mkdir()

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    "arrays cut": edit_text("arrays.npz", lambda content: content[:-10]),
    "arrays flipped": edit_text("arrays.npz", flip_middle),
    "arrays empty": edit_text("arrays.npz", lambda content: b""),
    "arrays missing": remove("arrays.npz"),
    "arrays a folder": make_folder("arrays.npz"),
    "arrays a plain npy": set_arrays(lambda file: np.save(file, np.zeros(3))),
    "arrays of another state": set_arrays(lambda file: np.savez(file, other=np.zeros(3))),
    "arrays compressed": set_arrays(
        lambda file: np.savez_compressed(file, **{f"a{i}": np.zeros(3) for i in range(3)})
    ),
    "arrays a bomb": set_arrays(bomb),
    "arrays overlapping": set_arrays(overlapping),
    "header claims a terabyte": set_arrays(
        zipped(a0=header("(137438953472,)") + bytes(80), a1=b"", a2=b"")
    ),
    "header claims a product": set_arrays(
        zipped(a0=header("(4294967296, 4294967296, 2)"), a1=b"", a2=b"")
    ),
    "header negative": set_arrays(zipped(a0=header("(-1, -10)") + bytes(80), a1=b"", a2=b"")),
    "header of objects": set_arrays(zipped(a0=header("(1,)", "|O") + bytes(8), a1=b"", a2=b"")),
    "header of text": set_arrays(zipped(a0=header("(1,)", "<U2") + bytes(8), a1=b"", a2=b"")),
    "header no npy": set_arrays(zipped(a0=b"hello", a1=b"", a2=b"")),
    "manifest missing": remove("manifest.json"),
    "manifest empty": edit_text("manifest.json", lambda content: b""),
    "manifest cut": edit_text("manifest.json", lambda content: content[:-10]),
    "manifest not UTF-8": edit_text("manifest.json", lambda content: b"\xff" + content),
    "manifest a list": edit_text("manifest.json", lambda content: b"[" + content + b"]"),
    "manifest a folder": make_folder("manifest.json"),
    "manifest nested": nested,
    "manifest too long": edit_text("manifest.json", lambda content: content + b" " * (17 << 20)),
    "manifest without digest": edit_text(
        "manifest.json", lambda content: content.replace(b"manifest_sha256", b"manifest_sha255")
    ),
    "format": set_field(format="torch"),
    "version unknown": set_field(version=99),
    "version a list": set_field(version=[1]),
    "sha256 null": set_field(sha256=None),
    "sha256 number": set_field(sha256=3),
    "env_steps text": set_field(env_steps="7"),
    "env_steps NaN": set_field(env_steps=float("nan")),
    "env_steps negative": set_field(env_steps=-1),
    "env_steps true": set_field(env_steps=True),
    "env_steps huge": set_field(env_steps=10**30),
    "agent null": set_field(agent=None),
    "env a number": set_field(env=3),
    "state a list": set_field(state=[]),
    "state empty": set_field(state={}),
    "state an array": set_field(state={"$array": "a0"}),
    "$array a list": edit_state(lambda tree: tree["replay"].update(rows={"$array": ["a1"]})),
    "$array unknown": edit_state(lambda tree: tree["replay"].update(rows={"$array": "a9"})),
    "$array with more": edit_state(lambda tree: tree["replay"]["rows"].update(more=1)),
    "no weight group": edit_state(lambda tree: tree["agent"].pop("policy")),
    "agent a number": edit_state(lambda tree: tree.update(agent=3)),
    "no replay": edit_state(lambda tree: tree.pop("replay")),
    "no session": edit_state(lambda tree: tree.pop("session")),
    "another shape": edit_state(lambda tree: tree["agent"]["policy"].update(w={"$array": "a1"})),
    "NaN in a weight": set_arrays(
        lambda file: np.savez(file, a0=np.full((2, 3), np.nan), a1=np.arange(100), a2=np.zeros(4))
    ),
    "NaN in the manifest": edit_state(
        lambda tree: tree["agent"]["policy"].update(steps=float("nan"))
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_read(tmp_path, caplog, damage):
    whole, damaged = save(tmp_path, 1), save(tmp_path, 2)
    damage(damaged)
    with pytest.raises(UserError, match=damaged.name) as refused:
        checkpoint.load(damaged, agent="ours", env="CartPole-v1", check=needs)
    assert "\n" not in str(refused.value)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.read_newest(tmp_path, agent="ours", env="CartPole-v1", check=needs)
    assert found is not None
    assert found.path == whole
    assert same(found.state, STATE)
    assert damaged.name in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("parts", [("agent", "replay", "session"), None], ids=["parts", "all"])
def test_a_flipped_bit_never_changes_what_is_loaded(tmp_path, parts):
    path = save(tmp_path, 2)
    file, rng = path / "manifest.json", random.Random(0)
    content, refused = file.read_bytes(), 0
    for _ in range(400):
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        try:
            loaded = checkpoint.load(path, parts=parts)
        except UserError as error:
            assert path.name in str(error)
            refused += 1
        else:
            assert same(loaded, STATE)
    assert refused > 350


def test_a_flipped_bit_of_the_arrays_never_changes_parts_that_are_loaded(tmp_path):
    path = save(tmp_path, 2)
    file, rng = path / "arrays.npz", random.Random(1)
    content = file.read_bytes()
    for _ in range(400):
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        with pytest.raises(UserError, match=path.name):
            checkpoint.load(path)
        try:
            loaded = checkpoint.load(path, parts=("agent",))
        except UserError as error:
            assert path.name in str(error)
        else:
            assert same(loaded, {"agent": STATE["agent"]})


def test_a_checkpoint_without_a_digest_of_its_manifest_is_refused(tmp_path):
    path = save(tmp_path, 2)
    file = path / "manifest.json"
    about = json.loads(file.read_text())
    del about["manifest_sha256"]
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"damaged: .*lacks \['manifest_sha256'\]"):
        checkpoint.load(path)
