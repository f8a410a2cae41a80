from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.objectives import OBJECTIVES, Widths, barlow_loss
from dreamfleet.agents.barlow_dreamer.observations import Decoder
from dreamfleet.core.types import Batch
from tests.agents.barlow_dreamer.system import IMAGES, VECTOR

B, T, FEATURES, ACTION, EMBED = 4, 6, 10, 3, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(x: Tensor, y: Tensor, redundancy_weight: float) -> float:
    """Returns the Barlow Twins loss from numpy's correlation coefficients."""
    size = x.shape[1]
    found = np.corrcoef(x.double().numpy(), y.double().numpy(), rowvar=False)[:size, size:]
    loss = 0.0
    for i in range(size):
        for j in range(size):
            loss += (found[i, i] - 1) ** 2 if i == j else redundancy_weight * found[i, j] ** 2
    return loss


def windows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Batch]:
    last = draw(B, T, seed=seed + 3) > 0.7
    rows = {"last": last, "obs": 4 * draw(B, T, 3, seed=seed + 4)}
    return (
        draw(B, T, FEATURES, seed=seed),
        draw(B, T, ACTION, seed=seed + 1),
        draw(B, T, EMBED, seed=seed + 2),
        rows,
    )


def build(name: str, spec=VECTOR, features: int = FEATURES, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return OBJECTIVES[name](Config(**options), spec, Widths(features, ACTION, EMBED))


# ---------------------------------------------------------------------------- the loss itself


@pytest.mark.parametrize("rows", [3, 50, 1000])
def test_equal_views_give_zero_on_the_diagonal(rows):
    x = 3 * draw(rows, 7) + 5
    assert barlow_loss(x, x, torch.ones(rows), 0.0).item() < 1e-11
    assert barlow_loss(x, -2 * x + 1, torch.ones(rows), 0.0).item() == pytest.approx(7 * 4)


@pytest.mark.parametrize("redundancy_weight", [0.0, 5e-4, 1.0])
def test_the_loss_is_that_of_the_correlation_coefficients(redundancy_weight):
    x, y = 3 * draw(40, 7) + 2, draw(40, 7, seed=1) - 1
    y[:, 2] += x[:, 2]
    y[:, 3] += x[:, 1]
    found = barlow_loss(x, y, torch.full((40,), 2.5), redundancy_weight).item()
    assert found == pytest.approx(brute_force(x, y, redundancy_weight), rel=1e-5)


def test_rows_of_weight_zero_have_no_influence():
    x, y, weight = draw(40, 7), draw(40, 7, seed=1), (draw(40, seed=2) > 0).float()
    found = barlow_loss(x, y, weight, 0.1)
    assert found.item() == pytest.approx(brute_force(x[weight > 0], y[weight > 0], 0.1), rel=1e-5)
    x[weight == 0], y[weight == 0] = 1e6, -17.0
    assert torch.equal(barlow_loss(x, y, weight, 0.1), found)


def test_a_weight_of_two_counts_a_row_twice():
    x, y = draw(12, 4), draw(12, 4, seed=1)
    weight = torch.ones(12)
    weight[3] = 2
    twice = torch.cat([x, x[3:4]]), torch.cat([y, y[3:4]])
    expected = brute_force(*twice, 0.1)
    assert barlow_loss(x, y, weight, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_a_number_that_never_changes_is_uncorrelated_and_has_a_finite_gradient():
    x, y = draw(20, 4), draw(20, 4, seed=1)
    x[:, 1] = 0
    x.requires_grad_()
    loss = barlow_loss(x, y, torch.ones(20), 0.1)
    others = [0, 2, 3]
    rest = brute_force(x.detach()[:, others], y[:, others], 0.0)
    assert barlow_loss(x, y, torch.ones(20), 0.0).item() == pytest.approx(rest + 1, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()


# ------------------------------------------------------------------------------- the objectives


def test_barlow_compares_a_projection_of_each_row_with_its_embedding():
    objective = build("barlow", redundancy_weight=0.1)
    features, action, embed, rows = windows()
    found = objective(features, action, embed, rows)
    projected = (features.reshape(-1, FEATURES) @ objective.projection).detach()
    assert found.item() == pytest.approx(
        brute_force(projected, embed.reshape(-1, EMBED), 0.1), 1e-4
    )


@pytest.mark.parametrize("name", ["barlow", "barlow-next"])
def test_no_gradient_reaches_the_embeddings(name):
    features, action, embed, rows = windows()
    features.requires_grad_()
    embed.requires_grad_()
    loss = build(name)(features, action, embed, rows)
    gradients = torch.autograd.grad(loss, [features, embed], allow_unused=True)
    assert gradients[0].abs().max() > 0
    assert gradients[1] is None


def test_barlow_next_predicts_the_next_embedding_within_an_episode():
    objective = build("barlow-next", redundancy_weight=0.1)
    features, action, embed, rows = windows()
    predicted, targets = [], []
    for b in range(B):
        for t in range(T - 1):
            if not rows["last"][b, t]:
                x = torch.cat([features[b, t], action[b, t]])
                predicted.append(objective.predictor(x).detach())
                targets.append(embed[b, t + 1])
    assert 0 < len(predicted) < B * (T - 1)
    expected = brute_force(torch.stack(predicted), torch.stack(targets), 0.1)
    assert objective(features, action, embed, rows).item() == pytest.approx(expected, rel=1e-4)


def test_barlow_next_ignores_what_follows_the_end_of_an_episode():
    objective = build("barlow-next")
    features, action, embed, rows = windows()
    found = objective(features, action, embed, rows)
    ends = rows["last"]
    features[ends], action[ends] = -2.0, 3.0
    after = torch.nn.functional.pad(ends[:, :-1], (1, 0))
    embed[after] = 9.0
    changed = objective(features, action, embed, rows)
    assert changed.item() == pytest.approx(found.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["barlow", "barlow-next"])
def test_features_of_16_bits_are_standardised_in_float32(name):
    torch.manual_seed(0)
    features, action, embed, rows = windows()
    features, action, embed = (x.bfloat16() for x in (features, action, embed))
    low = build(name).to(torch.bfloat16)
    precise = build(name)
    precise.load_state_dict(low.state_dict())
    found = low(features, action, embed + 3, rows)
    expected = precise(features.float(), action.float(), (embed + 3).float(), rows)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=2e-3)


def test_constant_weights_of_16_bit_views_are_exact():
    """1/48 has no exact sum in bfloat16, which would shift the means."""
    objective = build("barlow", redundancy_weight=1.0).to(torch.bfloat16)
    features, action = draw(6, 8, FEATURES).bfloat16(), draw(6, 8, ACTION).bfloat16()
    embed = (draw(6, 8, EMBED, seed=1) + 50).bfloat16()
    projected = (features.reshape(-1, FEATURES) @ objective.projection).detach().float()
    expected = brute_force(projected, embed.reshape(-1, EMBED).float(), 1.0)
    assert objective(features, action, embed, {}).item() == pytest.approx(expected, rel=1e-4)


def test_reconstruction_is_the_squared_error_of_the_decoded_observation():
    objective = build("reconstruction")
    features, action, embed, rows = windows()
    decoded = objective.decoder(features)["obs"].detach()
    log = lambda x: torch.sign(x) * torch.log(1 + x.abs())  # noqa: E731
    expected = (log(decoded) - log(rows["obs"])).square().sum(-1).mean()
    torch.testing.assert_close(objective(features, action, embed, rows).detach(), expected)


def test_reconstruction_of_images_sums_over_pixels_between_0_and_1():
    objective = build("reconstruction", IMAGES)
    assert isinstance(objective.decoder, Decoder)
    features, action, embed, _ = windows()
    obs = torch.randint(256, (B, T, *IMAGES.obs.shape), dtype=torch.uint8)
    decoded = objective.decoder(features)["obs"].detach()
    assert decoded.shape == obs.shape
    expected = ((decoded - obs.float()) / 255).square().sum((-1, -2, -3)).mean()
    found = objective(features, action, embed, {"obs": obs}).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_ablation_has_no_loss_and_no_parameters():
    objective = build("none")
    assert objective(*windows()).item() == 0
    assert not list(objective.parameters())
