from __future__ import annotations

import subprocess
import sys

import pytest

from dreamfleet import agents
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EnvSpec, Space

VECTOR = Space((4,), "float32")
IMAGE = Space((64, 64, 3), "uint8")
GRID = Space((8, 8), "float32")
DISCRETE = Space((), "int64", n=2)
CONTINUOUS = Space((1,), "float32")


@pytest.fixture
def entries(monkeypatch):
    monkeypatch.setitem(
        agents.REGISTRY, "pixels", agents.AgentEntry("x:Y", ("discrete",), ("image",))
    )


@pytest.mark.parametrize("action", [DISCRETE, CONTINUOUS])
def test_an_agent_is_accepted_for_spaces_that_it_supports(action):
    agents.check("dreamer-lite", EnvSpec("any", VECTOR, action))


def test_an_unsupported_space_is_refused_with_the_agents_that_support_it(entries):
    with pytest.raises(UserError) as caught:
        agents.check("dreamer-lite", EnvSpec("ALE/Pong-v5", IMAGE, DISCRETE))
    message = str(caught.value)
    assert "ALE/Pong-v5 has discrete actions and image observations of shape (64, 64, 3)" in message
    assert "Agents that support them: gated-rainbow, barlow-dreamer, pixels." in message


def test_the_message_says_if_no_agent_supports_the_space(entries):
    with pytest.raises(UserError, match="Agents that support them: none"):
        agents.check("pixels", EnvSpec("e", GRID, CONTINUOUS))


MIXED = EnvSpec("Car-v0", VECTOR, DISCRETE, {"obs.camera": IMAGE})
FACTORED = EnvSpec("Switches-v0", VECTOR, Space((8,), "int64", choices=(5,) * 8))


@pytest.fixture
def robot(monkeypatch):
    """Registers an agent `robot` for mixed observations and factored actions."""
    entry = agents.AgentEntry("x:Y", ("discrete", "multi-discrete"), ("vector", "mixed"))
    monkeypatch.setitem(agents.REGISTRY, "robot", entry)


@pytest.mark.parametrize("spec", [MIXED, FACTORED])
def test_an_agent_is_accepted_for_the_kinds_that_it_declares(robot, spec):
    agents.check("robot", spec)


@pytest.mark.parametrize("name", ["dreamer-lite", "gated-rainbow"])
def test_a_mixed_observation_is_refused_with_its_parts_and_the_agents_that_support_it(robot, name):
    with pytest.raises(UserError) as caught:
        agents.check(name, MIXED)
    message = str(caught.value)
    parts = "obs float32 (4,), obs.camera uint8 (64, 64, 3)"
    assert f"Car-v0 has discrete actions and mixed observations ({parts})" in message
    assert "Agents that support them: barlow-dreamer, robot." in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["dreamer-lite", "gated-rainbow", "dreamwalker"])
def test_a_factored_action_is_refused_with_its_number_of_combinations(robot, name):
    with pytest.raises(UserError) as caught:
        agents.check(name, FACTORED)
    message = str(caught.value)
    assert "Switches-v0 has multi-discrete actions with 390,625 combinations and" in message
    assert "Agents that support them: barlow-dreamer, robot." in message
    assert "\n" not in message


def test_an_agent_for_mixed_observations_alone_is_refused_for_an_image(monkeypatch):
    entry = agents.AgentEntry("x:Y", ("discrete",), ("mixed",))
    monkeypatch.setitem(agents.REGISTRY, "only-mixed", entry)
    with pytest.raises(UserError, match="only-mixed supports discrete actions and mixed observ"):
        agents.check("only-mixed", EnvSpec("e", IMAGE, DISCRETE))


def test_the_list_of_agents_names_the_kinds_that_each_supports(robot):
    assert agents.known()["robot"] == "discrete, multi-discrete actions, vector, mixed"


def test_an_unknown_name_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown agent 'dreamerlite'. Nearest: dreamer-lite."):
        agents.find("dreamerlite")


def test_find_does_not_import_torch():
    code = (
        "import sys; from dreamfleet import agents; agents.find('dreamer-lite');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
