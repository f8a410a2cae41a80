from __future__ import annotations

import pytest

from dreamfleet.agents.dreamwalker.agent import Dreamwalker
from tests.agents.dreamwalker.system import CONTEXT, HORIZON, Swing, build


@pytest.fixture(scope="session")
def swinging() -> Dreamwalker:
    """An agent whose world has seen random play of a system without an end. Not to be trained."""
    agent = build(dream_after=0)
    system = Swing()
    for _ in range(250):
        agent.learn_world(system.windows(60, HORIZON + 1))
    agent.normaliser.updates.fill_(1)
    assert agent.world.context == CONTEXT
    return agent
