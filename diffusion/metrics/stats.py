"""Which Gaussian fits a set of features? Its moments in float64, taken in parts and merged in any order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class GaussianStats:
    """Count, mean and scatter (sum of centred outer products) of feature vectors."""

    count: int
    mean: Float64[np.ndarray, "d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> GaussianStats:
        """The moments of features (n, d)."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features of shape {features.shape}: needs at least one row of an (n, d) array")
        # In blocks: no copy of all features in float64.
        blocks = (features[first : first + ROWS_AT_ONCE] for first in range(0, len(features), ROWS_AT_ONCE))
        return reduce(cls.merge, map(cls._of_block, blocks))

    @classmethod
    def _of_block(cls, features: NDArray[np.floating]) -> GaussianStats:
        rows = features.astype(np.float64)
        mean = rows.mean(axis=0)
        # Centred first: the difference of raw moments would cancel the leading digits of small variances.
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: GaussianStats) -> GaussianStats:
        """The moments of both sets together (Chan, Golub and LeVeque 1979)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"cannot merge moments of {len(self.mean)}-dimensional features with {len(other.mean)}-dimensional ones"
            )
        count = self.count + other.count
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return GaussianStats(count, mean, self.scatter + other.scatter + between)

    def without(self, part: GaussianStats) -> GaussianStats:
        """The moments of what is left of a set when a part of it is taken away: merge() undone."""
        count = self.count - part.count
        if count < 1 or self.mean.shape != part.mean.shape:
            raise ValueError(
                f"{part.count} of {self.count} feature vectors of {len(part.mean)} and {len(self.mean)} dimensions "
                f"cannot be taken away: needs a smaller part of the same set"
            )
        mean = (self.count * self.mean - part.count * part.mean) / count
        shift = part.mean - mean
        between = np.outer(shift, shift) * (count * part.count / self.count)
        return GaussianStats(count, mean, self.scatter - part.scatter - between)

    @property
    def cov(self) -> Float64[np.ndarray, "d d"]:
        """Covariance with n - 1 in the denominator, as numpy.cov and the published evaluator have it."""
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} feature vector does not exist: at least 2 are needed")
        return self.scatter / (self.count - 1)
