"""How far may a Frechet distance be off, and what would it be of infinitely many samples?

The samples are dealt into groups, each of which is left out in turn: Quenouille's jackknife. A bootstrap's replicates
hold fewer different images, which lies in the distance as if there were fewer: it spreads too widely (docs/adr/0008).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.frechet import Gaussian, distance
from diffusion.metrics.intervals import Estimate, dealt, jackknife, of_standard_error
from diffusion.metrics.stats import GaussianStats

GROUPS = 20
FEWEST, ENOUGH = 2, 10
"""Samples for each dimension: below the first no line leads to 1 / n = 0, and below the second it may miss."""


class FrechetEstimates(NamedTuple):
    """Of one set of samples, against a reference that is taken as it is."""

    distance: Estimate
    """Of as many samples: what papers report, which is larger the fewer there are."""
    infinity: Estimate | None
    """Of infinitely many (Chong and Forsyth 2020: FID-infinity). None for fewer than FEWEST samples a dimension."""


def frechet_estimates(samples: NDArray[np.floating], reference: Gaussian, *, groups: int = GROUPS) -> FrechetEstimates:
    """The distance of samples' features (n, d), and of infinitely many, each with its interval.

    The distance of n samples is larger by about a / n. Leaving each group out in turn shows a, and with it the line
    through the distances of fewer and of all samples at 1 / n = 0. Raises ValueError for fewer than twice as many
    samples as groups.
    """
    if groups < 2 or len(samples) < 2 * groups:
        raise ValueError(f"groups={groups}: at least 2, and at most half the {len(samples)} images")
    whole, fewer = _with_each_left_out(samples, groups)
    value = distance(whole, reference)
    left = np.array([distance(one, reference) for one in fewer])
    error = jackknife(left)
    found = of_standard_error(value, error, degrees_of_freedom=groups - 1)
    if len(samples) < FEWEST * samples.shape[1]:
        return FrechetEstimates(found, None)
    infinity = groups * value - (groups - 1) * float(left.mean())
    return FrechetEstimates(found, of_standard_error(infinity, error, degrees_of_freedom=groups - 1))


def _with_each_left_out(samples: NDArray[np.floating], groups: int) -> tuple[Gaussian, Iterator[Gaussian]]:
    """All samples, and all but each group of them: by differences of moments, where these say all there is to know."""
    group_of = dealt(len(samples), groups)
    if len(samples) <= 2 * samples.shape[1]:
        rests = (samples[group_of != group] for group in range(groups))
        return Gaussian.of_features(samples), map(Gaussian.of_features, rests)
    parts = [GaussianStats.of(samples[group_of == group]) for group in range(groups)]
    whole = reduce(GaussianStats.merge, parts)
    return Gaussian.of_stats(whole), (Gaussian.of_stats(whole.without(part)) for part in parts)
