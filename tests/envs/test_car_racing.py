"""Tests that CarRacing, whose observations are images and whose actions are continuous, works."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("Box2D")
pytest.importorskip("pygame")

from dreamfleet.core.types import Space
from dreamfleet.envs import registry
from dreamfleet.envs.vector import GymVector

ENV = "CarRacing-v3"
GAS = np.array([[0.0, 1.0, 0.0]], np.float32)  # steering, gas, brake


def test_observations_are_images_whose_sides_are_multiples_of_16():
    spec = registry.describe(ENV)
    assert spec.obs == Space((96, 96, 3), "uint8") and spec.obs.image
    assert spec.action == Space((3,), "float32")


def test_a_car_with_gas_is_filmed_as_it_leaves_its_place(tmp_path):
    pytest.importorskip("moviepy")
    env = GymVector(ENV, 1, seed=0, video_dir=tmp_path, options={"max_episode_steps": 60})
    rows = [env.reset([3]), *(env.step(GAS) for _ in range(60))]
    assert all(row["obs"].shape == (1, 96, 96, 3) for row in rows)
    assert not np.array_equal(rows[0]["obs"], rows[-1]["obs"])
    assert sum(row["reward"][0] for row in rows) > 0  # new tiles of the track
    assert rows[-1]["last"][0] and not rows[-1]["terminal"][0]
    assert [path.name for path in env.films()] == ["CarRacing-v3_episode-1.mp4"]
    env.close()
