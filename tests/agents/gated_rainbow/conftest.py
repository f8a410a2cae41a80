from __future__ import annotations

import pytest

from dreamfleet.agents.gated_rainbow.agent import GatedRainbow
from tests.agents.gated_rainbow.system import Swing, build


@pytest.fixture(scope="module")
def swinging() -> GatedRainbow:
    """An agent whose world has seen random play of a system without an end. Not to be trained."""
    agent = build(dream_after=0, dream_horizon=6, world_window=5)
    system = Swing()
    for _ in range(300):
        agent.learn_world(system.windows(60, 5))
    return agent
