from __future__ import annotations

import numpy as np
import torch

from dreamfleet.core.weights import from_bfloat16, to_bfloat16


def test_bfloat16_is_rounded_as_pytorch_rounds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    bits[:4] = 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF800000  # ties, the largest number, -inf
    array = bits.view(np.float32)
    expected = torch.from_numpy(array).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(array)), expected)


def test_an_array_of_any_shape_keeps_its_shape():
    for shape in ((), (0, 2), (3, 4)):
        array = np.ones(shape, np.float32)
        assert to_bfloat16(array).shape == shape
        np.testing.assert_array_equal(from_bfloat16(to_bfloat16(array)), array)
