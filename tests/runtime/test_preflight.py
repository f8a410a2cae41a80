from __future__ import annotations

import pytest

from dreamfleet.runtime import preflight

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home where Ray never ran."""
    for name in AUTH:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_where_ray_never_ran_there_is_no_token(home):
    assert preflight.token_source() == ""


def test_the_token_that_ray_left_at_home_is_found(home):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    assert preflight.token_source() == str(home / ".ray" / "auth_token")
    (home / ".ray" / "auth_token").write_text(" ")
    assert preflight.token_source() == ""


def test_a_token_of_the_environment_comes_first(home, monkeypatch):
    (home / "mine").write_text("secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine"))
    assert preflight.token_source() == str(home / "mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert preflight.token_source() == "RAY_AUTH_TOKEN"


def test_auto_is_the_cluster_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    assert preflight.target_of("auto") == "127.0.0.1:6399"
    assert preflight.target_of("there:1") == "there:1"
