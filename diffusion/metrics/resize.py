"""How is an image brought to the size a network sees? In each of clean-fid's modes, for whole batches at once.

Resizing is linear: a product with one matrix for the columns and one for the rows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_clean(images: Tensor, size: int) -> Tensor:
    """As Pillow's bicubic filter in float, antialiased, clipped to 0..255: (n, c, h, w) -> float32 (n, c, size, size).

    Sums are float64's and either pass is rounded to float32, as Pillow has it.
    """
    rows, columns = (bicubic_matrix(length, size).to(images.device) for length in images.shape[2:])
    wide = (images.contiguous().double() @ columns.T).float()
    resized = wide.new_empty(*images.shape[:2], size, size)
    for image, into in zip(wide, resized, strict=True):  # all at once, the sums in float64 would not stay in a cache
        into.copy_(rows @ image.double())
    return resized.clamp_(0, 255)


def resize_legacy_pytorch(images: Tensor, size: int) -> Tensor:
    """As pytorch-fid has it: bilinear without antialiasing, pixels' centres aligned."""
    return F.interpolate(images.float(), size=(size, size), mode="bilinear", align_corners=False).clamp_(0, 255)


def resize_legacy_tensorflow(images: Tensor, size: int) -> Tensor:
    """As TensorFlow 1 has it, by which the papers' FIDs were measured: bilinear, pixels' corners aligned."""
    height, width = images.shape[2:]
    grid = torch.eye(2, 3, device=images.device)
    grid[0, 2] += grid[0, 0] / width - grid[0, 0] / size
    grid[1, 2] += grid[1, 1] / height - grid[1, 1] / size
    places = F.affine_grid(
        grid.expand(len(images), 2, 3), [len(images), images.shape[1], size, size], align_corners=False
    )
    return F.grid_sample(images.float(), places, mode="bilinear", padding_mode="border", align_corners=False)


@lru_cache(maxsize=8)
def bicubic_matrix(length: int, size: int) -> Tensor:
    """(size, length) in float64: what each of so many pixels takes of those there are (Keys 1981, a = -1/2).

    When there will be fewer, the filter is stretched, so that every pixel has its share.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    first, last = (np.floor(np.maximum(centre + sign * 2 * stretch + 0.5, 0)) for sign in (-1, 1))
    pixels = np.arange(length)
    x = np.abs(pixels + 0.5 - centre) / stretch
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * ((pixels >= first) & (pixels < last))
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))
