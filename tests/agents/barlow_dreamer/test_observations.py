from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamfleet.agents.barlow_dreamer.config import Config
from dreamfleet.agents.barlow_dreamer.observations import Decoder, Encoder
from dreamfleet.core.errors import UserError
from dreamfleet.core.types import Space
from tests.agents.barlow_dreamer.system import IMAGES, VECTOR

EPS = 1e-4


def frames(*lead: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (*lead, *IMAGES.obs.shape), generator=rng, dtype=torch.uint8)


def build_encoder(spec=IMAGES, **options) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(Config(**options), spec)
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


def normed(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, step: int) -> np.ndarray:
    """Returns the convolution of one image (H, W, C), window by window, with a border of 0."""
    height, width, _ = x.shape
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)))
    rows = [
        [
            np.einsum("hwc,ochw->o", padded[i : i + 5, j : j + 5], weight) + bias
            for j in range(0, width, step)
        ]
        for i in range(0, height, step)
    ]
    return np.array(rows)


@pytest.mark.parametrize("halving", ["max-pool", "stride"])
def test_images_are_encoded_by_four_convolutions_that_halve_them(halving):
    encoder = build_encoder(halving=halving)
    image = frames(1)
    part = encoder.parts["obs"]
    x = image[0].numpy() / 255 - 0.5
    for convolution, norm in zip(part.convolutions, part.norms, strict=True):
        weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
        x = convolved(x, weight, bias, 2 if halving == "stride" else 1)
        if halving == "max-pool":
            height, width, channels = x.shape
            x = x.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3))
        x = silu(normed(x, norm.scale.detach().numpy()))
    found = encoder({"obs": image}).detach().numpy()
    assert found.shape == (1, encoder.size) and encoder.size == 2 * 1 * 4 * 4
    np.testing.assert_allclose(found[0], x.flatten(), rtol=1e-3, atol=1e-4)


def test_vectors_are_encoded_from_their_symlog():
    encoder = build_encoder(VECTOR)
    obs = np.array([[0.5, -3.0, 1e6], [0.0, 1e-3, -1.0]], np.float32)
    x = np.sign(obs) * np.log1p(np.abs(obs))
    for layer in encoder.parts["obs"]:
        weight, bias = layer.linear.weight.detach().numpy(), layer.linear.bias.detach().numpy()
        x = silu(normed(x @ weight + bias, layer.norm.scale.detach().numpy()))
    found = encoder({"obs": torch.from_numpy(obs)}).detach()
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "image"])
def test_rows_are_encoded_one_by_one(spec):
    encoder = build_encoder(spec)
    obs = frames(3, 4) if spec.obs.image else torch.randn(3, 4, 3)
    found = encoder({"obs": obs})
    assert found.shape == (3, 4, encoder.size)
    torch.testing.assert_close(
        found[1, 2], encoder({"obs": obs[1:2, 2:3]})[0, 0], rtol=1e-4, atol=1e-5
    )
    assert encoder.names == ("obs",)


@pytest.mark.parametrize("halving", ["max-pool", "stride"])
def test_gradients_that_are_computed_again_are_the_same(halving):
    found = []
    for checkpoint in (False, True):
        encoder = build_encoder(checkpoint=checkpoint, halving=halving)
        loss = (encoder({"obs": frames(2, 3)}) * torch.arange(encoder.size)).sum()
        found.append(torch.autograd.grad(loss, [*encoder.parameters()]))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)
        assert plain.abs().max() > 0


@pytest.mark.parametrize(
    "space",
    [Space((32, 20, 3), "uint8"), Space((8, 16, 3), "uint8"), Space((32, 32, 3), "float32")],
)
def test_images_that_cannot_be_halved_are_refused_in_one_line(space):
    with pytest.raises(UserError, match=r"multiples of 16; Images-v0 has .*\.$") as error:
        Encoder(Config(), replace(IMAGES, obs=space))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "image"])
def test_a_decoder_learns_observations_in_their_own_units(spec):
    torch.manual_seed(0)
    decoder = Decoder(Config().sizes, spec, 6)
    features = torch.randn(2, 3, 6)
    obs = frames(2, 3) // 4 if spec.obs.image else 10 * torch.randn(2, 3, 3)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = decoder.loss(features, {"obs": obs})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    found = decoder(features)["obs"].detach()
    assert found.shape == obs.shape and found.dtype == torch.float32
    error = (found - obs.float()).abs().mean()
    assert error < (25 if spec.obs.image else 2)
    if spec.obs.image:
        assert found.min() >= 0 and found.max() <= 255
    else:
        assert F.l1_loss(found, obs) < 0.3 * obs.abs().mean()
