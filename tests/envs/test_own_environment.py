"""Tests that the environment and the commands in docs/own-environment.md work as described."""

import json
import re
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import MultiBinary, MultiDiscrete

from dreamfleet import cli
from dreamfleet.core.types import Space
from dreamfleet.envs import spaces
from dreamfleet.envs.first_step import try_first_step
from dreamfleet.envs.vector import GymVector
from tests.envs import own

PAGE = (Path(__file__).parents[2] / "docs" / "own-environment.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Writes `corridor.py` from docs/own-environment.md to a folder, and changes to that folder."""
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "corridor.py").write_text(source.group(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "corridor", raising=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(("name", "paid"), [("Corridor-v0", 1.0), ("PaidCorridor-v0", 0.99)])
def test_the_environment_of_the_page_can_be_played(folder, name, paid):
    spec, warnings = try_first_step(f"corridor:{name}", {"size": 3})
    assert spec.obs == Space((3,), "float32") and warnings == []
    env = GymVector(f"corridor:{name}", 1, seed=0, options={"size": 3})
    rows = [env.reset(), *(env.step(np.ones(1, np.int64)) for _ in range(2))]
    assert [row["obs"][0].argmax() for row in rows] == [0, 1, 2]
    assert rows[-1]["reward"][0] == np.float32(paid) and env.info["success"][0] is True


@pytest.fixture
def wrappers() -> dict:
    """Returns the functions in the code blocks of docs/own-environment.md after the first one."""
    defined = {"gym": gym, "np": np}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1:]:
        exec(block, defined)
    return defined


def test_the_wrappers_of_the_page_leave_a_part_of_a_mixed_observation(wrappers):
    env = gym.make(own.car("Car-v0"), disable_env_checker=True)
    rest, camera = wrappers["without_camera"](env), wrappers["camera_only"](env)
    vector, image = Space((2,), "float32"), Space((64, 64, 3), "uint8")
    assert spaces.observations("Car-v0", rest.observation_space) == {"obs": vector}
    assert spaces.observations("Car-v0", camera.observation_space) == {"obs": image}
    assert rest.observation_space.contains(rest.reset()[0])
    assert camera.observation_space.contains(camera.reset()[0])


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("numbers_for_choices", MultiDiscrete([100, 100])),
        ("numbers_for_choices", MultiDiscrete([[50, 9], [8, 7]], start=[[1, 0], [0, -3]])),
        ("numbers_for_switches", MultiBinary(11)),
        ("numbers_for_switches", MultiBinary((3, 4))),
    ],
)
def test_the_wrappers_of_the_page_turn_many_choices_into_numbers(wrappers, name, space):
    taken = []
    own.register("Many-v0", acts=space, obs=lambda env, t: taken.append(env.action) or [0, 0])
    env = gym.make("Many-v0", disable_env_checker=True)
    wrapped = wrappers[name](env)
    size = int(np.prod(space.shape))
    assert spaces.action("Many-v0", wrapped.action_space) == Space((size,), "float32")
    decode = spaces.decoder(wrapped.action_space)
    wrapped.reset()
    for unit in (-1.0, 0.3, 1.0):
        wrapped.step(decode(np.full((1, size), unit, np.float32))[0])
    assert all(space.contains(action) for action in taken[1:])
    choices = spaces.action("Many-v0", space).choices
    start = np.ravel(getattr(space, "start", 0))
    np.testing.assert_array_equal(taken[1].ravel() - start, 0)
    np.testing.assert_array_equal(taken[3].ravel() - start, np.array(choices) - 1)


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.slow
def test_the_commands_of_the_page_train_and_evaluate(folder, capfd):
    commands = PAGE.replace("\\\n", "").splitlines()
    train, play = (shlex.split(line)[1:] for line in commands if line.startswith("dreamfleet "))
    assert cli.main(train) == 0
    lines = map(json.loads, (folder / "first" / "metrics.jsonl").read_text().splitlines())
    episodes = [line for line in lines if line["kind"] == "episode"]
    assert episodes and all(type(episode["success"]) is bool for episode in episodes)
    capfd.readouterr()
    assert cli.main(play) == 0
    result, films = capfd.readouterr().out.splitlines()
    assert re.search(r"over 20 episodes of \d+ steps, success [\d.]+", result)
    assert films.startswith("2 films in films: corridor-PaidCorridor-v0_episode-1.mp4, ")
    assert sorted(film.name for film in (folder / "films").iterdir()) == [
        "corridor-PaidCorridor-v0_episode-1.mp4",
        "corridor-PaidCorridor-v0_episode-11.mp4",
    ]
    assert cli.main([*play[:4], "--json"]) == 0
    assert 0 <= json.loads(capfd.readouterr().out)["success_mean"] <= 1
