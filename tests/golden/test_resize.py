"""Are batches resized as clean-fid resizes one image after the other?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics.resize import bicubic_matrix, resize_clean, resize_legacy_pytorch

cleanfid = pytest.importorskip("cleanfid.resize")
SIDES = st.integers(1, 80)


def images(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@given(seed=st.integers(0, 2**32), height=SIDES, width=SIDES, size=SIDES)
def test_clean_is_pillows_filter_bit_for_bit_but_for_the_last(seed, height, width, size):
    stored = images(seed, height, width)
    resizer = cleanfid.make_resizer("PIL", False, "bicubic", (size, size))
    ours = resize_clean(torch.from_numpy(stored).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).numpy()
    # Both sum in float64, in another order: what differs is how a sum next to a tie is rounded to float32.
    assert ours == pytest.approx(np.stack([resizer(image) for image in stored]), abs=2**-15)


@given(seed=st.integers(0, 2**32), height=SIDES, width=SIDES, size=SIDES)
def test_legacy_pytorch_is_the_same_of_a_batch(seed, height, width, size):
    stored = images(seed, height, width)
    resizer = cleanfid.make_resizer("PyTorch", False, "bilinear", (size, size))
    ours = resize_legacy_pytorch(torch.from_numpy(stored).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).numpy()
    assert ours == pytest.approx(np.stack([resizer(image) for image in stored]), abs=1e-4)


@given(length=SIDES, size=SIDES)
def test_a_flat_image_stays_flat(length, size):
    assert bicubic_matrix(length, size).sum(dim=1).numpy() == pytest.approx(1, abs=1e-12)
