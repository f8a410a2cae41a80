from __future__ import annotations

import ctypes
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from dreamfleet import agents, cli
from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.core.errors import UserError
from dreamfleet.runtime.evaluate import evaluate
from dreamfleet.runtime.run_folder import RunFolder, read_config
from tests.envs import own
from tests.fakes import FakeAgent


class Pusher(FakeAgent):
    """Pushes left and right in turn with odd weights, always right with even ones."""

    def act(self, rows, state, explore):
        action, state, extras = super().act(rows, state, explore)
        return action | (self.count["policy"] % 2 == 0), state, extras


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of CartPole with one checkpoint, of odd weights."""
    entry = agents.AgentEntry(f"{Pusher.__module__}:Pusher", ("discrete",), ("vector",))
    monkeypatch.setitem(agents.REGISTRY, "pusher", entry)
    config = RunConfig(agent="pusher", run_dir=str(tmp_path / "run"))
    with RunFolder.create(config) as folder:
        save(folder, 700, policy=41)
    return folder


def save(folder: RunFolder, env_steps: int, policy: int) -> None:
    agent = FakeAgent()
    agent.count["policy"] = policy
    state = {"agent": {group: agent.state(group) for group in ("policy", "world")}}
    env = read_config(folder.path).env
    checkpoint.save(folder.checkpoints, env_steps, state, agent="pusher", env=env)


def test_the_newest_checkpoint_is_played(run):
    found = evaluate(run.path, episodes=12, seed=3, device="cpu")
    assert found["episodes"] == 12
    assert found["env_steps"] == 700
    assert (found["agent"], found["env"], found["seed"]) == ("pusher", "CartPole-v1", 3)
    assert found["return_mean"] == found["length_mean"] > 15  # CartPole pays 1 a step
    assert found["return_min"] <= found["return_mean"]
    save(run, 900, policy=42)
    found = evaluate(run.path, episodes=12, seed=3, device="cpu")
    assert found["env_steps"] == 900
    assert 8 <= found["return_min"] <= found["return_mean"] < 11  # the pole falls at once


def test_a_seed_names_the_episodes(run):
    one, same, other = (evaluate(run.path, 12, seed, "cpu") for seed in (3, 3, 4))
    assert one == same
    assert one["return_mean"] != other["return_mean"]


def test_json_is_one_object_and_nothing_else(run, capsys):
    assert cli.main(["eval", str(run.path), "--episodes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = {"return_mean", "return_std", "return_min", "episodes", "length_mean"}
    assert figures <= found.keys()
    assert np.isfinite([found[name] for name in figures]).all()


@pytest.fixture
def game(tmp_path, monkeypatch):
    """A run of NumberGame that never draws."""
    entry = agents.AgentEntry(f"{Pusher.__module__}:Pusher", ("discrete",), ("vector",))
    monkeypatch.setitem(agents.REGISTRY, "pusher", entry)
    config = RunConfig(agent="pusher", env="NumberGame-v1", run_dir=str(tmp_path / "game"))
    with RunFolder.create(config) as folder:
        save(folder, 700, policy=42)
    return folder.path


def test_what_an_environment_tells_of_its_episodes_is_told_by_kind(game, capsys):
    assert cli.main(["eval", str(game), "--episodes", "1200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = [f"tier_{kind}" for kind in range(4)]
    episodes = [found[f"{kind}/episodes"] for kind in kinds]
    assert sum(episodes) == 1200 and min(episodes) > 200  # a quarter each
    for name in ("return_mean", "won_mean", "length_mean"):
        by_kind = [found[f"{kind}/{name}"] for kind in kinds]
        assert np.average(by_kind, weights=episodes) == pytest.approx(found[name])


def test_people_see_kinds_of_episodes_apart(game, capsys):
    assert cli.main(["eval", str(game), "--episodes", "40"]) == 0
    first, *kinds = capsys.readouterr().out.splitlines()
    assert ", won 0" in first
    assert [line.split(":")[0] for line in kinds] == [f"  tier_{kind}" for kind in range(4)]


def test_people_get_a_sentence(run, capsys):
    assert cli.main(["eval", str(run.path), "--episodes", "2"]) == 0
    assert "pusher on CartPole-v1 after 700 steps: return" in capsys.readouterr().out


def test_a_video_changes_nothing_but_the_folder(run, tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    plain = evaluate(run.path, 2, 3, "cpu")
    assert evaluate(run.path, 2, 3, "cpu", video=tmp_path / "films") == plain
    assert list((tmp_path / "films").glob("*.mp4"))


def test_a_run_without_a_checkpoint_says_so(run):
    for path in run.checkpoints.iterdir():
        path.rename(run.path / path.name)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        evaluate(run.path, 1, 0, "cpu")


def test_what_an_environment_prints_stays_out_of_the_object(run, monkeypatch, capfd):
    def obs(env, t):
        print("talks", flush=True)  # noqa: T201
        os.system("echo shouts")
        ctypes.CDLL(None).puts(b"mutters")  # stays in the buffer of C for a while
        return np.zeros(2)

    config = replace(read_config(run.path), env=own.register("Talks-v0", obs=obs))
    monkeypatch.setattr("dreamfleet.runtime.evaluate.read_config", lambda path: config)
    monkeypatch.setattr(checkpoint, "newest", lambda *_, **__: next(run.checkpoints.iterdir()))
    assert cli.main(["eval", str(run.path), "--episodes=1", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["return_mean"] == 5.0
    assert all(word in said.err for word in ("talks", "shouts", "mutters"))


def test_a_seed_names_the_episodes_of_an_environment_that_draws_from_everywhere(run, monkeypatch):
    config = replace(read_config(run.path), env=own.drawing("Draws-v0"))
    monkeypatch.setattr("dreamfleet.runtime.evaluate.read_config", lambda path: config)
    monkeypatch.setattr(checkpoint, "newest", lambda *_, **__: next(run.checkpoints.iterdir()))
    assert evaluate(run.path, 3, 5, "cpu") == evaluate(run.path, 3, 5, "cpu")
