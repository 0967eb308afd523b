"""How far may a number be off because there are only so many samples? An interval beside each.

An interval answers one question: what would as many other samples of the same model give, against the same reference?
Neither another reference nor a second training of the model is in it; KID's alone covers the reference, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A number, its standard error, and between which two it lies with a confidence of 95 %."""

    value: float
    standard_error: float
    low: float
    high: float


def of_replicates(value: float, replicates: NDArray[np.float64]) -> Estimate:
    """An interval from what resampled sets gave: as wide as they spread, around the number itself.

    Around the number, for a resampled set holds fewer different images, and where that shifts a metric (a Frechet
    distance, upwards) the replicates lie beside it.
    """
    low, high = np.quantile(replicates - replicates.mean(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(replicates.std(ddof=1)), value + float(low), value + float(high))


def of_standard_error(value: float, standard_error: float, *, degrees_of_freedom: float = math.inf) -> Estimate:
    """An interval from a standard error, which was itself estimated where its degrees of freedom are few (Student)."""
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom)) * standard_error
    return Estimate(value, standard_error, value - reach, value + reach)


def dealt(count: int, groups: int) -> NDArray[np.int64]:
    """Into which of so many even groups each sample is dealt: by an order of chance, always the same.

    Samples may stand in an order of their own, of classes one after the other, say.
    """
    found = np.empty(count, dtype=np.int64)
    found[np.random.default_rng(0).permutation(count)] = np.arange(count) % groups
    return found


def jackknife(values: NDArray[np.float64]) -> float:
    """The standard error of a statistic, from its values with each of the groups left out in turn."""
    groups = len(values)
    return float(np.sqrt((groups - 1) / groups * np.square(values - values.mean()).sum()))


def of_share(count: int, total: int) -> Estimate:
    """A share of samples that have something, and Wilson's interval: neither empty nor outside 0..1 at its ends."""
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share, weight = count / total, 1 / (1 + z * z / total)
    variance = share * (1 - share) / total
    centre = weight * (share + z * z / (2 * total))
    reach = weight * z * float(np.sqrt(variance + (z / (2 * total)) ** 2))
    return Estimate(share, float(np.sqrt(variance)), max(0.0, centre - reach), min(1.0, centre + reach))
