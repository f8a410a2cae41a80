from __future__ import annotations

import pytest

from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build_agent


@pytest.fixture(scope="session")
def trained_agent() -> Dreamwalker:
    """Returns an agent whose world model was trained on random play of the system `Swing`.

    All tests share the agent, so a test may train only a copy of it.
    """
    agent = build_agent(dream_after=0)
    system = Swing()
    for _ in range(250):
        agent.learn_world(system.windows(60, HORIZON + 1))
    agent.normaliser.updates.fill_(1)
    assert agent.world.context == CONTEXT
    return agent
