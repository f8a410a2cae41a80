from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamfleet.agents.blocks.dreams import (
    add_dreamed_windows,
    end_dreams,
    sample_windows,
    stack_steps,
    steps_to_dream,
    trusted_steps,
)


def dreams(context: int) -> dict[str, torch.Tensor]:
    """Returns two dreams of 4 steps; the second dream is trusted for one step only.

    Each observation is the number of its row.
    """
    rows = context + 5
    weight = torch.zeros(2, rows)
    weight[0, context : context + 4] = 1
    weight[1, context] = 1
    return {"obs": torch.arange(2 * rows).view(2, rows), "weight": weight}


@pytest.mark.parametrize("context", [0, 3])
def test_windows_lie_around_trusted_rows_sampled_uniformly(context):
    rng, size = torch.Generator().manual_seed(0), 2000
    windows, weight = sample_windows(dreams(context), ("obs",), size, context, 1, rng)
    assert windows.keys() == {"obs"}
    assert windows["obs"].shape == (size, context + 2)
    assert (windows["obs"].diff(dim=1) == 1).all()
    rows, counts = np.unique(windows["obs"][:, context].numpy(), return_counts=True)
    trusted = [context + h for h in range(4)] + [context + 5 + context]
    assert rows.tolist() == trusted
    assert np.abs(counts / size - 0.2).max() < 0.05
    assert float(weight.sum()) == pytest.approx(5)  # the number of trusted rows


def test_windows_weigh_nothing_if_no_row_is_trusted():
    untrusted = dreams(0)
    untrusted["weight"] = torch.zeros_like(untrusted["weight"])
    _, weight = sample_windows(untrusted, ("obs",), 6, 0, 1, torch.Generator())
    assert weight.tolist() == [0.0] * 6


def test_steps_are_trusted_up_to_the_first_that_is_too_inaccurate():
    error = torch.tensor([0.1, 0.3, 0.5, 0.2])
    assert trusted_steps(error, 0.3).tolist() == [1, 1, 0, 0]
    assert trusted_steps(torch.full((2,), torch.inf), 0.3).tolist() == [0, 0]


@pytest.mark.parametrize("context", [0, 2])
def test_dreams_end_at_the_first_step_that_is_not_trusted(context):
    """Compares the columns with a loop over random dreams."""
    rng = np.random.default_rng(0)
    terminal, disagreement = rng.random((50, 6)) < 0.1, rng.random((50, 6))
    allowed = np.array([1, 1, 1, 1, 0, 0])
    found = end_dreams(
        torch.tensor(terminal),
        torch.tensor(disagreement),
        torch.tensor(0.9),
        torch.tensor(allowed),
        context,
    )
    for b in range(50):
        last, end, weight = [False] * context, [False] * (context + 1), [0] * context
        trusted = True
        for h in range(6):
            trusted &= allowed[h] == 1 and disagreement[b, h] <= 0.9
            weight.append(int(trusted))
            last.append(not trusted)
            end.append(bool(trusted and terminal[b, h]))
            trusted &= not terminal[b, h]
        assert found["weight"][b].tolist() == [*weight, 0]
        assert found["last"][b].tolist() == [*last, True]
        assert found["terminal"][b].tolist() == end


def test_dreamed_windows_are_appended_with_the_mean_weight_of_real_windows():
    rows, weight, counts = {"obs": torch.arange(3.0)}, torch.tensor([1.0, 0.5, 0.0]), torch.ones(3)
    dreamed = {"obs": torch.tensor([7.0, 8.0])}, torch.tensor([1.0, 0.5])
    rows, weight, counts = add_dreamed_windows(rows, weight, counts, dreamed)
    assert rows["obs"].tolist() == [0, 1, 2, 7, 8]
    assert weight.tolist() == [1, 0.5, 0, 0.5, 0.25]
    assert counts.tolist() == [1, 1, 1, 1, 0.5]


def test_a_cpu_computes_the_steps_that_may_be_trusted_and_another_device_all():
    allowed = torch.tensor([1, 1, 0, 0])
    assert steps_to_dream(allowed) == 2
    assert steps_to_dream(torch.zeros(4)) == 1
    assert steps_to_dream(allowed.to("meta")) == 4


def test_stacked_steps_have_a_fixed_length():
    steps = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    assert stack_steps(steps, 2).tolist() == [[1, 3], [2, 4]]
    assert stack_steps(steps, 4).tolist() == [[1, 3, 3, 3], [2, 4, 4, 4]]
