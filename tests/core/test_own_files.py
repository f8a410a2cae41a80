"""Tests that links and special files are never opened for writing."""

from __future__ import annotations

import os
import socket

import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.core.own_files import check_own_file, check_own_folder, open_own


def link(path, target):
    path.symlink_to(target)


def dangling(path, target):
    path.symlink_to(target.with_name("nothing"))


def hard_link(path, target):
    path.hardlink_to(target)


def fifo(path, target):
    os.mkfifo(path)


def folder(path, target):
    path.mkdir()


def unix_socket(path, target):
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


@pytest.mark.parametrize("make", [link, dangling, hard_link, fifo, folder, unix_socket])
@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_APPEND, os.O_RDWR])
def test_only_plain_files_are_opened(tmp_path, monkeypatch, make, flags):
    monkeypatch.chdir(tmp_path)
    target, path = tmp_path / "precious", tmp_path / "metrics.jsonl"
    target.write_text("mine")
    make(path, target)
    for refuses in (lambda: open_own(path, flags), lambda: check_own_file(path)):
        with pytest.raises(UserError, match=f"{path} is .* left alone"):
            refuses()
    assert target.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_a_new_file_is_made_and_an_own_one_opened(tmp_path):
    path = tmp_path / "file"
    check_own_file(path)
    for content in (b"one", b"two"):
        descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, content)
        os.close(descriptor)
    check_own_file(path)
    assert path.read_text() == "onetwo"


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    check_own_folder(tmp_path / "new")
    check_own_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(UserError, match="left alone"):
            check_own_folder(tmp_path / name)
