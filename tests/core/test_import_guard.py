"""Tests that code in the folder of a run is never imported, by any name or link."""

from __future__ import annotations

import importlib
import py_compile
import sys
import zipfile
from pathlib import Path

import pytest

from dreamfleet.core import import_guard
from dreamfleet.core.import_guard import importable_path, never_import_from

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """Makes a folder of a run inside `runs`, and guards it against imports. Yields its path.

    The parent folder of `runs` is on `sys.path`.
    """
    path = tmp_path / "runs" / "evil"
    path.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(import_guard._guard, "folders", set())
    known = set(sys.modules)
    never_import_from(path)
    yield path
    for name in set(sys.modules) - known:
        del sys.modules[name]
    importlib.invalidate_caches()


def refused(name: str) -> None:
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match="lies in a run's folder"):
        importlib.import_module(name)


def module(run: Path) -> str:
    (run / "payload.py").write_text(CODE)
    return "payload"


def package(run: Path) -> str:
    (run / "payload").mkdir()
    (run / "payload" / "__init__.py").write_text(CODE)
    return "payload"


def namespace(run: Path) -> str:
    (run / "payload").mkdir()
    (run / "payload" / "inner.py").write_text(CODE)
    return "payload.inner"


def compiled(run: Path) -> str:
    source = run / "source.txt"
    source.write_text(CODE)
    py_compile.compile(str(source), cfile=str(run / "payload.pyc"))
    return "payload"


def link_out(run: Path) -> str:
    (run.parent / "elsewhere.txt").write_text(CODE)
    (run / "payload.py").symlink_to(run.parent / "elsewhere.txt")
    return "payload"


@pytest.mark.parametrize("make", [module, package, namespace, compiled, link_out])
def test_code_in_a_run_folder_is_not_imported(run, monkeypatch, make):
    name = make(run)
    refused(f"runs.evil.{name}")
    monkeypatch.syspath_prepend(str(run))
    refused(name)
    assert not list(run.rglob("ran"))


def test_code_is_not_imported_through_links_into_a_run_folder(run, tmp_path, monkeypatch):
    (run / "payload.py").write_text(CODE)
    (run / "inner").mkdir()
    (run / "inner" / "__init__.py").write_text(CODE)
    (tmp_path / "linked.py").symlink_to(run / "payload.py")
    (tmp_path / "linked_package").symlink_to(run / "inner")
    (tmp_path / "other").symlink_to(run)
    refused("linked")
    refused("linked_package")
    refused("other.payload")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    refused("payload")
    assert not list(run.rglob("ran"))


def test_code_in_an_archive_in_a_run_folder_is_not_imported(run, monkeypatch):
    with zipfile.ZipFile(run / "code.zip", "w") as archive:
        archive.writestr("payload.py", CODE)
    monkeypatch.syspath_prepend(str(run / "code.zip"))
    refused("payload")


def test_a_module_of_the_same_name_in_another_folder_is_imported(run, tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("WHOSE = 'mine'")
    (run / "payload.py").write_text(CODE)
    (run / "json.py").write_text(CODE)
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(str(run))
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "json")
    assert importlib.import_module("payload").WHOSE == "mine"
    assert importlib.import_module("json").dumps([1]) == "[1]"
    assert not (run / "ran").exists()
    assert not {"", str(run)} & set(importable_path())
    assert str(tmp_path) in importable_path()


def test_code_in_a_folder_beside_the_run_folder_is_imported(run, tmp_path):
    beside = run.with_name("evil-twin")
    beside.mkdir()
    (beside / "payload.py").write_text("WHOSE = 'mine'")
    sys.path.insert(0, str(beside))
    assert importlib.import_module("payload").WHOSE == "mine"
