from __future__ import annotations

import logging

import pytest


@pytest.fixture(scope="session")
def ray_here():
    """One Ray for all tests that can share it; `runtime.cluster` uses it as it is."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
