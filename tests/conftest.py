from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in our own runs
# A shell's background job ignores Ctrl-C, and so would every run that a test starts from there.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Puts the tests that start Ray first, and assigns them all to one worker of pytest-xdist.

    Two Rays on two cores would disturb each other. These tests take longest, so they start first.
    Tests marked `cuda` are skipped if there is no GPU.
    """
    if any(item.get_closest_marker("cuda") for item in items):
        skip_without_gpu(items)
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    yield


def skip_without_gpu(items: list[pytest.Item]) -> None:
    """Skips the tests marked `cuda`, unless there is a GPU."""
    from dreamfleet.agents.blocks.device import available_devices  # imports torch

    if "cuda" not in available_devices():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def ray_here():
    """Starts one Ray that all tests share. `runtime.cluster` joins this Ray without stopping it."""
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
