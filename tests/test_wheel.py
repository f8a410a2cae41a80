"""Tests that the wheel built from this checkout works without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The path of a wheel, built from this checkout with the installed build tools."""
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):  # setuptools writes beside them
        if (ROOT / name).exists():
            place = source / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                place.symlink_to((ROOT / name).readlink())
            else:
                place.write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip(["wheel", *options, "--wheel-dir", str(folder), str(source)])
    (built,) = folder.glob("dreamfleet-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder in which the wheel is installed. It contains no file of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pip(["install", "--no-deps", "--no-index", "--quiet", "--target", str(folder), str(wheel)])
    return folder


def pip(args: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", *args], check=True, timeout=100)


def in_empty_folder(installed: Path, folder: Path, *command: str) -> str:
    """Runs a command that can import the installed wheel, but nothing of the checkout.

    folder: an empty working folder. Returns the output. Fails unless the exit code is 0.
    """
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_one_package_and_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dreamfleet"}
    assert "dreamfleet/agents/presets.yaml" in names
    for folder in ("actors", "learner", "replay_server", "dreamer_workers"):
        assert f"dreamfleet/{folder}/__init__.py" in names
    assert not [name for name in names if "test" in name]


def test_only_dreamfleet_is_importable(installed, tmp_path):
    code = (
        "import importlib.util as u, dreamfleet.actors.actor, dreamfleet.replay_server\n"
        "names = 'actors agents core envs learner launch replay_server runtime tests'.split()\n"
        "print([name for name in names if u.find_spec(name)], dreamfleet.__file__)"
    )
    found, _, file = in_empty_folder(installed, tmp_path, sys.executable, "-c", code).partition(" ")
    assert found == "[]"
    assert Path(file.strip()).is_relative_to(installed)


@pytest.mark.costly
def test_the_command_trains_and_evaluates_from_an_empty_folder(installed, tmp_path):
    command = (sys.executable, str(installed / "bin" / "dreamfleet"))
    few = ("--steps", "300", "--num-actors", "1", "--run-dir", "run", "--no-dashboard")
    in_empty_folder(installed, tmp_path, *command, *few, "--set", "train.eval_every=0")  # on Ray
    played = in_empty_folder(
        installed, tmp_path, *command, "eval", "run", "--episodes", "2", "--json"
    )
    assert json.loads(played)["episodes"] == 2
    code = "import dreamfleet; print(dreamfleet.load('run').act([0.0] * 4)[0] in (0, 1))"
    assert in_empty_folder(installed, tmp_path, sys.executable, "-c", code) == "True\n"


def test_benchmarks_need_a_checkout_and_say_so(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "dreamfleet", "bench", "replay"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: bench needs a checkout: the benchmarks are not part of the package.\n"
    )


@pytest.mark.parametrize(
    "name", ["actors", "learner", "replay_server", "dreamer_workers", "core", "envs", "agents"]
)
def test_a_checkout_offers_no_second_name(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True)
    assert b"ImportError" in done.stderr or b"ModuleNotFoundError" in done.stderr
