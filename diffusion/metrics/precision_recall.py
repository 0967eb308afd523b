"""Are the samples among the images, and the images among the samples? Improved precision and recall.

Kynkaanniemi et al. 2019: the manifold of a set is made of a ball around each of its points, which reaches to the k-th
nearest other one. Precision is the share of samples in the reference's manifold, recall that of the reference in the
samples'. ADM takes k = 3, Improved DDPM k = 5: their numbers do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.metrics.intervals import Estimate, dealt, jackknife, of_share, of_standard_error

Distances = Literal["exact", "published"]
"""exact: in float64. published: as ADM's evaluator has them, in float16 wherever a block of 10,000 by 10,000 stays
finite, else in float32; on features of 64 dimensions that moves precision by some 0.005."""
GROUPS = 20
EXACT_BLOCK, PUBLISHED_BLOCK = (1024, 8192), (10_000, 10_000)


class PrecisionRecall(NamedTuple):
    """Each with the interval that there are only so many samples leaves; the reference is taken as it is."""

    precision: Estimate
    recall: Estimate


def precision_recall(
    samples: NDArray[np.floating], reference: NDArray[np.floating], *, k: int = 3, distances: Distances = "exact"
) -> PrecisionRecall:
    """Of features (n, d) and (m, d), as numbers in 0..1. Raises ValueError for sets of at most k points.

    The interval of recall is a jackknife's, over groups of samples: a bootstrap draws points twice, whose nearest
    neighbours are then themselves. No matrix of all distances is held: memory does not grow with n times m.
    """
    _check(samples, reference, k)
    way = _exact(reference) if distances == "exact" else _Way(_squared_in_16_bits, PUBLISHED_BLOCK)
    ours, theirs = torch.from_numpy(samples), torch.from_numpy(reference)
    groups = min(GROUPS, len(ours) // (k + 1))
    radii = _radii_without(ours, k, torch.from_numpy(dealt(len(ours), groups)), way)
    within, covered = _inside(theirs, ours, _radii(theirs, k, way), radii, way)
    recalls = covered.double().mean(dim=1).numpy()
    recall = of_standard_error(float(recalls[0]), jackknife(recalls[1:]), degrees_of_freedom=groups - 1)
    return PrecisionRecall(
        of_share(int(within.sum()), len(ours)), recall._replace(low=max(0.0, recall.low), high=min(1.0, recall.high))
    )


class _Way(NamedTuple):
    """How distances are computed, and of how many points at once."""

    squared: Callable[[Tensor, Tensor], Tensor]
    """(n, d), (m, d) -> squared distances (n, m)."""
    block: tuple[int, int]


def _exact(reference: NDArray[np.floating]) -> _Way:
    """In float64, of points from which the reference's mean is taken away: what they share would cost digits."""
    shift = torch.from_numpy(reference.mean(axis=0, dtype=np.float64))
    return _Way(lambda u, v: _squared(u.double() - shift, v.double() - shift), EXACT_BLOCK)


def _squared(u: Tensor, v: Tensor) -> Tensor:
    norms = u.square().sum(dim=1)[:, None] + v.square().sum(dim=1)
    return torch.addmm(norms, u, v.T, alpha=-2).clamp_min_(0)


def _squared_in_16_bits(u: Tensor, v: Tensor) -> Tensor:
    """Every result rounded to float16, unless one of them is infinite; sums within a product are kept in float32."""
    a, b = u.half().float(), v.half().float()
    norm_a, norm_b = (rows.square().half().float().sum(dim=1).half() for rows in (a, b))
    found = ((norm_a[:, None] - (2 * (a @ b.T).half())) + norm_b).clamp_min_(0)
    return found.float() if found.isfinite().all() else _squared(u.float(), v.float())


def _radii(points: Tensor, k: int, way: _Way) -> Tensor:
    """(n,): the squared distance of each point to its k-th nearest other one."""
    return _nearest(points, k + 1, way)[0][:, k]  # the nearest is the point itself


def _nearest(points: Tensor, count: int, way: _Way) -> tuple[Tensor, Tensor]:
    """Squared distances (n, count) to the nearest points, itself among them, in order; and which they are."""
    found = []
    for rows in _blocks(len(points), way.block[0]):
        parts = []
        for columns in _blocks(len(points), way.block[1]):
            block = way.squared(points[rows], points[columns])
            near = block.topk(min(count, block.shape[1]), largest=False)
            parts.append((near.values, near.indices + columns.start))
        values, order = torch.cat([values for values, _ in parts], dim=1).sort(dim=1)
        which = torch.cat([indices for _, indices in parts], dim=1).gather(1, order)
        found.append((values[:, :count], which[:, :count]))
    return torch.cat([values for values, _ in found]), torch.cat([which for _, which in found])


def _radii_without(points: Tensor, k: int, own: Tensor, way: _Way) -> Tensor:
    """(n, 1 + groups): radii of all points, then without those of each group, whose own radii are -1.

    own: the group of each point (n,).
    """
    values, which = _nearest(points, min(len(points), 4 * (k + 1) + 8), way)
    columns = [values[:, k]]
    for group in range(int(own.max()) + 1):
        others = (own[which] != group).cumsum(dim=1)
        place = (others <= k).sum(dim=1, keepdim=True)  # of the first that is k-th when the group is passed over
        radius = values.gather(1, place.clamp_max(values.shape[1] - 1))[:, 0]
        crowded = ((place[:, 0] == values.shape[1]) & (own != group)).nonzero()[:, 0]
        if len(crowded):  # nearly all of its neighbours are of the group
            kept = (own != group).nonzero()[:, 0]
            for i in crowded:
                radius[i] = way.squared(points[i : i + 1], points[kept])[0].sort().values[k]
        columns.append(torch.where(own == group, torch.full_like(radius, -1), radius))
    return torch.stack(columns, dim=1)


def _inside(
    theirs: Tensor, ours: Tensor, radii_of_theirs: Tensor, radii_of_ours: Tensor, way: _Way
) -> tuple[Tensor, Tensor]:
    """(n,): which of ours are within a ball of theirs. (v, m): which of theirs within one of ours, by each column.

    radii_of_theirs (m,), radii_of_ours (n, v), squared. As published, both are read from one block of distances,
    theirs by ours: in float16 a sum hangs on its order.
    """
    within = torch.zeros(len(ours), dtype=torch.bool)
    covered = torch.zeros(radii_of_ours.shape[1], len(theirs), dtype=torch.bool)
    for rows in _blocks(len(theirs), way.block[0]):
        for columns in _blocks(len(ours), way.block[1]):
            block = way.squared(theirs[rows], ours[columns])
            within[columns] |= (block <= radii_of_theirs[rows, None]).any(dim=0)
            for number, radii in enumerate(radii_of_ours[columns].T.contiguous()):
                covered[number, rows] |= (block <= radii).any(dim=1)
    return within, covered


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _check(samples: NDArray[np.floating], reference: NDArray[np.floating], k: int) -> None:
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features of shapes {samples.shape} and {reference.shape}: needs (n, d) and (m, d)")
    if k < 1 or len(samples) < 2 * (k + 1) or len(reference) <= k:
        raise ValueError(
            f"k={k} with {len(samples)} samples and {len(reference)} of the reference: needs k >= 1, at least "
            f"{2 * (k + 1)} samples and {k + 1} of the reference"
        )
