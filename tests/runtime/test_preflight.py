from __future__ import annotations

import os
import socket

import pytest

from dreamfleet.core.errors import UserError
from dreamfleet.runtime import preflight

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home where Ray never ran; what a check sets goes with it."""
    for name in AUTH:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_where_ray_never_ran_no_token_is_shown(home, address):
    preflight.check_address(address)
    assert "RAY_AUTH_MODE" not in os.environ


def test_the_token_that_ray_left_at_home_is_shown(home, address):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    preflight.check_address(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert preflight.token_source() == str(home / ".ray" / "auth_token")


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_of_the_environment_is_shown(home, address, monkeypatch, name):
    (home / "mine").write_text("secret")
    monkeypatch.setenv(name, str(home / "mine"))
    preflight.check_address(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_mode_that_a_person_chose_stays(home, address, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    preflight.check_address(address)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_mode_without_a_token_is_refused(home, address, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match=r"there is no token.*RAY_AUTH_TOKEN here"):
        preflight.check_address(address)
