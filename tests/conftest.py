from __future__ import annotations

import logging
import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
# A shell's background job ignores Ctrl-C, and so would every run that a test starts from there.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_here():
    """One Ray for all tests that can share it; `runtime.cluster` uses it as it is."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
