from __future__ import annotations

import pytest

from dreamfleet import agents
from dreamfleet.core.config import RunConfig, apply, configure
from dreamfleet.core.errors import UserError
from dreamfleet.runtime import presets

EVERY = [(agent, env) for agent, by_env in presets.every().items() for env in by_env]


@pytest.mark.parametrize(("agent", "env"), EVERY)
def test_every_preset_fits_and_holds_only_what_differs(agent, env):
    values = presets.find(agent, env)
    configure(RunConfig(agent=agent, env=env), values)
    options = {key[6:]: value for key, value in values.items() if key.startswith("agent.")}
    if options:
        apply(agents.load(agent).Config(), options, "agent.")
    for key, value in values.items():
        if not key.startswith("agent."):
            assert configure(RunConfig(), {key: value}) != RunConfig(), f"{key} is the default"


def test_an_env_without_a_preset_has_no_settings():
    assert presets.find("dreamer-lite", "Nowhere-v0") == {}


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="Nearest: CartPole-v1"):
        presets.find("dreamer-lite", "Acrobot-v1", "CartPole")
