"""World-model reinforcement learning: actors, dreamers and a learner that share one replay.

    policy = dreamfleet.load("runs/NAME")
    action, state = policy.act(obs, state)  # state: None at first
    run = dreamfleet.train(agent="dreamwalker", env="BipedalWalker-v3", steps=100_000, local=True)

numpy and torch are imported when `load`, `train`, `Run` or `Policy` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamfleet.api import Policy, Run, load, train

__all__ = ["Policy", "Run", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dreamfleet' has no attribute {name!r}")
    from dreamfleet import api

    return getattr(api, name)
