"""How far apart are two sets of images, without assuming Gaussians? KID, unbiased at any number of images.

The kernel distance of Binkowski et al. 2018: squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, averaged
over random subsets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 1024  # of a kernel matrix: bounds memory, not the result


class KernelDistance(NamedTuple):
    """An estimate of KID, and how far it may be off."""

    value: float
    standard_error: float
    """Covers the draw of the images on both sides and of the subsets; not a second training of the model."""


def kid(
    first: NDArray[np.floating], second: NDArray[np.floating], *, subsets: int, subset_size: int, seed: int
) -> KernelDistance:
    """KID between features (n, d) and (m, d): the mean of the unbiased estimate over random subsets of both.

    Subsets share images, so their spread says nothing of the error from having few images. That error is taken from
    the jackknife (leave one image out, on either side) of the estimate over all images, to which the mean over ever
    more subsets tends. The variance of stopping at `subsets` of them is added. The jackknife errs upwards:
    by sqrt(2) where both sets come from one distribution, little where they clearly do not.
    """
    _check(first, second, subsets, subset_size)
    x, y = first.astype(np.float64), second.astype(np.float64)
    rng = np.random.default_rng(seed)
    values = np.array([squared_mmd(_draw(rng, x, subset_size), _draw(rng, y, subset_size)) for _ in range(subsets)])
    variance = _jackknife_variance(x, y) + values.var(ddof=1) / subsets
    return KernelDistance(float(values.mean()), float(np.sqrt(variance)))


def squared_mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The unbiased estimate over all pairs of two different images; negative values are part of being unbiased."""
    within = _row_sums(x, x).sum() - _diagonal(x).sum(), _row_sums(y, y).sum() - _diagonal(y).sum()
    across = _row_sums(x, y).mean() / len(y)
    return float(within[0] / _pairs(len(x)) + within[1] / _pairs(len(y)) - 2 * across)


def _jackknife_variance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of squared_mmd over the draw of both sets, which are independent: the two sets' variances add (Arvesen 1969)."""
    within_x, within_y = _row_sums(x, x) - _diagonal(x), _row_sums(y, y) - _diagonal(y)
    across_x, across_y = _row_sums(x, y), _row_sums(y, x)
    return _leave_one_out_variance(within_x, across_x / len(y)) + _leave_one_out_variance(within_y, across_y / len(x))


def _leave_one_out_variance(within: NDArray[np.float64], across: NDArray[np.float64]) -> float:
    """Jackknife variance over one set, from each image's kernel sums with its own set and means with the other."""
    n = len(within)
    left = (within.sum() - 2 * within) / _pairs(n - 1) - 2 * (across.sum() - across) / (n - 1)
    return float((n - 1) / n * np.square(left - left.mean()).sum())


def _row_sums(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_j k(x_i, y_j) for every i."""
    blocks = (x[row : row + ROWS_AT_ONCE] for row in range(0, len(x), ROWS_AT_ONCE))
    return np.concatenate([_kernel(block @ y.T, x.shape[1]).sum(axis=1) for block in blocks])


def _diagonal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """k(x_i, x_i) for every i."""
    return _kernel(np.square(x).sum(axis=1), x.shape[1])


def _kernel(products: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    return (products / dimension + 1) ** 3


def _pairs(n: int) -> int:
    """Ordered pairs of two different ones among n."""
    return n * (n - 1)


def _draw(rng: np.random.Generator, x: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return x[rng.choice(len(x), size, replace=False)]


def _check(first: NDArray[np.floating], second: NDArray[np.floating], subsets: int, subset_size: int) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features of shapes {first.shape} and {second.shape}: needs (n, d) and (m, d)")
    if min(len(first), len(second)) < 3:
        raise ValueError(f"{len(first)} and {len(second)} images: the error of KID needs at least 3 on either side")
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise ValueError(
            f"subset_size={subset_size}: must be at least 2 and at most {min(len(first), len(second))}, "
            f"the number of images in the smaller set"
        )
    if subsets < 2:
        raise ValueError(f"subsets={subsets}: at least 2, or their spread is unknown")
