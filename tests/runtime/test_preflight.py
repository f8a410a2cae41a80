"""Tests how the token of Ray and the address of a running cluster are found."""

from __future__ import annotations

import pytest

from dreamfleet.runtime import preflight

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, and an environment without Ray's variables."""
    for name in AUTH:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_a_token_file_there_is_no_token(home):
    assert preflight.token_source() == ""


def test_a_token_file_in_the_home_folder_is_found_unless_it_is_empty(home):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    assert preflight.token_source() == str(home / ".ray" / "auth_token")
    (home / ".ray" / "auth_token").write_text(" ")
    assert preflight.token_source() == ""


def test_environment_variables_take_precedence_over_the_token_file(home, monkeypatch):
    (home / "mine").write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine"))
    assert preflight.token_source() == str(home / "mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert preflight.token_source() == "RAY_AUTH_TOKEN"


def test_auto_is_the_cluster_named_by_ray_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    assert preflight.resolve_address("auto") == "127.0.0.1:6399"
    assert preflight.resolve_address("there:1") == "there:1"
