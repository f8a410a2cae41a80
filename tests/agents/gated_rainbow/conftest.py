from __future__ import annotations

import pytest

from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from tests.agents.gated_rainbow.system import Swing, build_agent


@pytest.fixture(scope="module")
def trained_agent() -> GatedRainbow:
    """Returns an agent whose world model was trained on random play of the system `Swing`.

    All tests share the agent, so a test may train only a copy of it.
    """
    agent = build_agent(dream_after=0, dream_horizon=6, world_window=5)
    system = Swing()
    for _ in range(300):
        agent.learn_world(system.windows(60, 5))
    return agent
