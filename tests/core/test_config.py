from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest
import yaml

from dreamfleet.core.config import Flags, RunConfig, TrainConfig, apply, configure, flatten, within
from dreamfleet.core.errors import UserError


@dataclass(frozen=True)
class Net:
    units: tuple[int, ...] = (64, 64)
    norm: Literal["layer", "none"] = "layer"


@dataclass(frozen=True)
class Options:
    lr: float = 3e-4
    horizon: int = 15
    name: str = "x"
    target: float | None = None
    fast: bool = False
    net: Net = field(default_factory=Net)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lr", 1, 1.0),
        ("lr", "3e-5", 3e-5),
        ("horizon", "3e1", 30),
        ("horizon", 7.0, 7),
        ("target", None, None),
        ("target", 2, 2.0),
        ("fast", True, True),
        ("net.units", [1, 2, 3], (1, 2, 3)),
        ("net.norm", "none", "none"),
    ],
)
def test_value_of_the_right_type_is_taken(key, value, expected):
    found = flatten(asdict(apply(Options(), {key: value})))[key]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "fast"),
        ("lr", True),
        ("lr", float("nan")),
        ("horizon", 1.5),
        ("horizon", None),
        ("name", 3),
        ("fast", 1),
        ("net", 3),
        ("net.units", 3),
        ("net.units", [1, "a"]),
        ("net.norm", "batch"),
    ],
)
def test_value_of_the_wrong_type_is_refused_with_key_and_value(key, value):
    with pytest.raises(UserError) as caught:
        apply(Options(), {key: value}, prefix="agent.")
    assert f"agent.{key} must be" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [("agent.horizn", "agent.horizon"), ("agent.net.unit", "agent.net.units")],
)
def test_unknown_key_names_the_nearest(key, hint):
    with pytest.raises(UserError, match=f"unknown setting {key}. Nearest: {hint}."):
        apply(Options(), {key.removeprefix("agent."): 1}, prefix="agent.")


def test_a_key_below_a_plain_value_is_refused():
    with pytest.raises(UserError, match=r"lr has no parts"):
        apply(Options(), {"lr.x": 1})


def test_the_original_is_left_alone():
    original = Options()
    apply(original, {"net.units": [1]})
    assert original == Options()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_actors": -1}, "--num-actors must be from 1 to 1024; found -1"),
        ({"num_actors": 10_000}, "--num-actors must be from 1 to 1024; found 10000"),
        ({"steps": 0}, "--steps must be at least 1; found 0"),
        ({"device": "tpu"}, "--device must be auto, cpu or cuda; found 'tpu'"),
        ({"local": True, "address": "a:1"}, "--local runs without Ray"),
    ],
)
def test_flags_out_of_range_are_refused(flags, message):
    with pytest.raises(UserError) as caught:
        Flags(**flags)
    assert message in str(caught.value)


def test_settings_out_of_range_are_named_as_people_write_them():
    with pytest.raises(UserError, match=r"^presets: train.chunk must be from 1 to 4096; found 0"):
        configure(RunConfig(), {"train.chunk": 0}, source="presets")


def test_a_dataclass_of_an_agent_may_declare_ranges_too():
    @dataclass(frozen=True)
    class Own:
        share: float = within(0.5, 0.0, 1.0)

    assert Own().share == 0.5


def test_later_values_win_and_agent_options_gather():
    config = configure(RunConfig(), {"steps": 10, "train.chunk": 8, "agent.lr": 1, "agent.b.c": 2})
    config = configure(config, {"train.chunk": 4, "agent.lr": 3})
    assert config.steps == 10
    assert config.train == TrainConfig(chunk=4)
    assert config.agent_options == {"lr": 3, "b.c": 2}


def test_config_survives_flattening():
    config = configure(RunConfig(seed=3), {"agent.net.units": [1, 2], "agent.lr": 0.1})
    assert configure(RunConfig(), flatten(asdict(config))) == config


def test_arguments_of_the_environment_may_have_any_name_and_come_back_from_a_file():
    values = {
        "env.progressive": True,
        "env.sizes": [3, [4]],
        "env.maze.width": 5,
        "env.maze.height": 6,
        "env.empty": {},
        "env.rooms": {1: "a", "b.c": {"d": None}},
        "eval_env.size": 7,
    }
    config = configure(RunConfig(), values)
    assert config.env_options == {
        "progressive": True,
        "sizes": [3, [4]],
        "maze": {"width": 5, "height": 6},
        "empty": {},
        "rooms": {1: "a", "b.c": {"d": None}},
    }
    assert config.eval_env_options == {"size": 7}
    written = yaml.safe_load(yaml.safe_dump(asdict(config)))
    assert configure(RunConfig(), flatten(written)) == config
    assert configure(config, {"env": {"more": 1}}).env_options["sizes"] == [3, [4]]


def test_arguments_of_the_environment_are_no_settings_of_training():
    with pytest.raises(UserError, match=r"unknown setting train\.env"):
        configure(RunConfig(), {"train.env.size": 3})


def test_evaluations_have_the_arguments_of_the_run_where_they_have_none_of_their_own():
    given = {"env.size": 3, "env.wind": 1.0, "eval_env.wind": 0.0, "env.reward_floor": -1}
    assert configure(RunConfig(), given).evaluated_options == {"size": 3, "wind": 0.0}
    with pytest.raises(UserError, match=r"eval_env.reward_floor is not possible"):
        configure(RunConfig(), {"eval_env.reward_floor": -1})


def test_evaluations_play_whole_games_unless_told_otherwise():
    given = {"env.episodic_life": True, "env.size": 64}
    whole = configure(RunConfig(), given).evaluated_options
    assert whole == {"episodic_life": False, "size": 64}
    lives = configure(RunConfig(), {**given, "eval_env.episodic_life": True}).evaluated_options
    assert lives == {"episodic_life": True, "size": 64}
    assert configure(RunConfig(), {"env.size": 64}).evaluated_options == {"size": 64}
