"""Tests the command `dream`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from dreamfleet import agents, cli
from dreamfleet.core import checkpoint
from dreamfleet.core.config import RunConfig
from dreamfleet.runtime.run_folder import RunFolder
from tests.envs import own
from tests.fakes import FakeAgent
from tests.runtime.runs import save_start

PIXELS = gym.spaces.Box(0, 255, (16, 12, 3), np.uint8)


def frame(t: int) -> np.ndarray:
    pixels = np.zeros((16, 12, 3), np.uint8)
    pixels[t] = 200
    return pixels


class Oracle(FakeAgent):
    """An agent that predicts the real rows of a window exactly, because it looks at them."""

    def predict(self, window, context):
        names = ("obs", "reward", "terminal")
        return {name: window[name][:, context:].astype(np.float32) for name in names}


class Late(Oracle):
    """An agent whose predictions come one row too late."""

    def predict(self, window, context):
        return super().predict({key: np.roll(row, 1, 1) for key, row in window.items()}, context)


class Blind(Oracle):
    """An agent that predicts reward and end, but no observations."""

    def predict(self, window, context):
        predicted = super().predict(window, context)
        del predicted["obs"]
        return predicted | {"kl": np.ones_like(predicted["reward"])}


class Diverging(Oracle):
    """An agent that predicts infinite rewards."""

    def predict(self, window, context):
        return super().predict(window, context) | {"reward": np.full((1, 1), np.inf)}


class ModelFree(FakeAgent):
    """An agent without a world model."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        real = self.tables["real"]
        only_policy = {"policy": real.consumers["policy"]}
        self.tables = {"real": replace(real, consumers=only_policy)}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Returns a function that saves a run of one of these agents, and returns the run's folder."""

    def save(agent: type, env: str = "dreamfleet.envs.probe:Count-v0", **options) -> Path:
        entry = agents.AgentEntry(
            f"{agent.__module__}:{agent.__name__}", ("discrete",), ("vector", "image")
        )
        monkeypatch.setitem(agents.REGISTRY, "seer", entry)
        path = tmp_path / "run"
        with RunFolder.create(RunConfig(agent="seer", env=env, run_dir=str(path), **options)):
            state = {"agent": {"policy": {"count": 3}, "world": {"count": 5}}}
            checkpoint.save(path / "checkpoints", 700, state, agent="seer", env=env)
            best = {"score": 1.0, "weights": {"policy": {"count": np.array(4)}}}
            checkpoint.save(path / "best", 600, best, agent="seer", env=env)
        return path

    return save


def run_dream(path: Path, out: Path, *args: str) -> int:
    return cli.main(["dream", str(path), "--out", str(out), *args])


def report_in(out: Path):
    return json.loads((out / "dream.json").read_text())


def test_a_dream_that_is_exact_stays_true_to_the_end(trained, tmp_path, capsys):
    args = ("--episodes=3", "--steps=3", "--context=2")
    assert run_dream(trained(Oracle), tmp_path / "out", *args) == 0
    said = capsys.readouterr().out
    assert "seer on dreamfleet.envs.probe:Count-v0 after 700 steps: 6 dreams" in said
    assert "Dreams stay true for 3 of 3 steps" in said
    found = report_in(tmp_path / "out")
    # An episode has 6 rows: the first window predicts rows 2 to 4, the second one row 5.
    assert found["windows_per_step"] == [6, 3, 3]
    assert [each["step"] for each in found["each"]] == [2, 5] * 3
    assert found["ends"] == {"real": 3, "right": 3, "wrong": 0}
    assert found["reward_error"] == [0, 0, 0]
    for file in found["files"]:
        with Image.open(file) as picture:
            picture.load()
    assert sorted(Path(file).name for file in found["files"]) == sorted(
        file.name for file in (tmp_path / "out").iterdir() if file.name != "dream.json"
    )


def test_a_dream_that_comes_a_row_late_is_found_out(trained, tmp_path):
    assert run_dream(trained(Late), tmp_path / "out", "--steps=4", "--context=2") == 0
    found = report_in(tmp_path / "out")
    assert found["true_for"] == 0
    assert found["reward_error"] == [1, 1, 1, 1]  # the reward of step t is t
    assert found["ends"] == {"real": 4, "right": 0, "wrong": 0}


def test_json_is_the_report_and_nothing_else(trained, tmp_path, capsys):
    assert run_dream(trained(Oracle), tmp_path / "out", "--steps=3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == report_in(tmp_path / "out")
    assert (found["agent"], found["env_steps"], found["context"]) == ("seer", 700, 5)


def test_an_agent_that_predicts_no_observations_is_compared_by_reward_end_and_kl(
    trained, tmp_path, capsys
):
    assert run_dream(trained(Blind), tmp_path / "out", "--steps=3", "--context=2") == 0
    said = capsys.readouterr().out
    assert "predicts no observations: reward, end and KL alone are compared." in said
    found = report_in(tmp_path / "out")
    assert found["true_for"] is None
    assert found["kl"] == [1, 1, 1]
    assert all("curves" in file for file in found["files"])


def test_images_become_films_and_strips_of_the_real_episode(trained, tmp_path):
    env = own.register("Frames-v0", obs=lambda env, t: frame(t), observes=PIXELS)
    assert run_dream(trained(Oracle, env), tmp_path / "out", "--context=2", "--episodes=1") == 0
    (gif,) = (tmp_path / "out").glob("*.gif")
    (strip,) = (tmp_path / "out").glob("obs_*.png")
    assert gif.name == "obs_episode-1_step-2.gif"
    with Image.open(gif) as film:
        assert film.n_frames == 6
        for t in range(6):
            film.seek(t)
            side = np.array(film.convert("RGB"))[: 16 * 15]
            expected = frame(t).repeat(15, 0).repeat(15, 1)
            np.testing.assert_array_equal(side[:, : 12 * 15], expected)  # real
            np.testing.assert_array_equal(side[:, 12 * 15 :], expected)  # dreamed
    with Image.open(strip) as picture:
        assert picture.size == (5 * 12 * 6, 14 + 2 * 16 * 6)


def test_arguments_of_the_environment_can_change(trained, tmp_path, capsys):
    path = trained(Oracle, env_options={"length": 5})
    assert run_dream(path, tmp_path / "out", "--set", "env.length=9", "--steps=20") == 0
    found = report_in(tmp_path / "out")
    assert found["env_options"] == {"length": 9}
    assert found["each"][0]["steps"] == 10 - 5
    assert "Count-v0 (length=9) after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("agent", "args", "said"),
    [
        (FakeAgent, (), "this agent has no method `predict`, so its dreams cannot be shown"),
        (ModelFree, (), "this run has no world model, so there are no dreams to show"),
        (Oracle, ("--checkpoint=best",), "holds only what acting needs, which is not the world"),
        (
            Oracle,
            ("--context=6",),
            "needs 7 observations, but the longest episode has 6",
        ),
        (Oracle, ("--steps=0",), "--steps must be from 1 to 1000; found 0"),
        (Oracle, ("--episodes=101",), "--episodes must be from 1 to 100; found 101"),
        (Diverging, ("--context=2",), "the world model predicts reward that is not finite"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(trained, tmp_path, capsys, agent, args, said):
    assert run_dream(trained(agent), tmp_path / "out", *args) == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert all(each.endswith(" …") for each in progress)
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_no_folder_cannot_hold_pictures(trained, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert run_dream(trained(Oracle), tmp_path / "out", "--context=2") == 2
    assert "cannot write into" in capsys.readouterr().err


def test_an_agent_that_ships_with_dreamfleet_dreams_of_vectors(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "run"
    with RunFolder.create(RunConfig(run_dir=str(path))):
        save_start(path, 5)
    args = ("--episodes=1", "--steps=4", "--context=2")
    assert run_dream(path, tmp_path / "out", *args) == 0
    found = report_in(tmp_path / "out")
    assert (found["agent"], found["env"]) == ("dreamer-lite", "CartPole-v1")
    assert len(found["obs_error"]["obs"]) == 4
    assert 1 <= len(found["files"]) <= 4
