"""Runs `launch.py` with the fake agent in the registry: `python -m tests.runtime.starter ARGS`."""

from __future__ import annotations

import sys

from dreamfleet import agents, cli
from tests.runtime.runs import FAKE

if __name__ == "__main__":
    agents.REGISTRY["fake"] = FAKE
    sys.exit(cli.main())
