from __future__ import annotations

import subprocess
import sys

import pytest

from dreamfleet import agents
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import EnvSpec, Space

VECTOR = Space((4,), "float32")
IMAGE = Space((64, 64, 3), "uint8")
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
    assert "Agents that support them: gated-rainbow, pixels." in message


def test_the_message_says_if_no_agent_supports_the_space(entries):
    with pytest.raises(UserError, match="Agents that support them: none"):
        agents.check("pixels", EnvSpec("e", IMAGE, CONTINUOUS))


def test_an_unknown_name_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown agent 'dreamerlite'. Nearest: dreamer-lite."):
        agents.find("dreamerlite")


def test_find_does_not_import_torch():
    code = (
        "import sys; from dreamfleet import agents; agents.find('dreamer-lite');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
