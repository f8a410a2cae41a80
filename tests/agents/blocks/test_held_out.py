from __future__ import annotations

import numpy as np
import torch

from dreamfleet.agents.blocks.held_out import MEMORY, expected_error, update_averages


def test_the_error_is_the_mean_over_all_counted_windows():
    rng = np.random.default_rng(0)
    error, seen = torch.ones(3), torch.zeros(3)
    kept: list[list[float]] = [[], [], []]
    for _ in range(5):
        errors, mask = rng.random((4, 3)).astype(np.float32), rng.random((4, 3)) < 0.5
        update_averages(seen, torch.tensor(mask), (error, torch.tensor(errors)))
        for step in range(3):
            kept[step] += errors[mask[:, step], step].tolist()
    assert seen.tolist() == [len(step) for step in kept]
    np.testing.assert_allclose(error, [np.mean(step) for step in kept], rtol=1e-5)


def test_old_windows_are_forgotten():
    error, seen = torch.full((1,), 9.0), torch.full((1,), MEMORY)
    for _ in range(100):
        update_averages(seen, torch.ones(60, 1), (error, torch.ones(60, 1)))
    assert float(error) < 1.01


def test_beyond_the_measured_steps_the_error_grows_in_proportion():
    error, seen = torch.tensor([0.1, 0.2, 0.3]) ** 2, torch.zeros(3)
    assert expected_error(error, seen, 2).isinf().all()
    found = expected_error(error, seen + 1, 6)
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rtol=1e-5)
