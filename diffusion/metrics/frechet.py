"""How far apart are two sets of images, seen as Gaussians of features? The Frechet distance (Heusel et al. 2017).

|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)). The last trace is the sum of the singular values of A B^T for any
A^T A = S1 and B^T B = S2: no square root of a non-symmetric matrix, so singular covariances are no special case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.stats import GaussianStats

OVERLAP_RTOL = 1e-9
"""The error of the faster way that is put up with, relative to the sum: the distance is a small difference of sums."""


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian of features, by a root of its covariance."""

    mean: NDArray[np.float64]
    root: NDArray[np.float64]
    """(r, d): rows with root^T root = covariance, as few as its rank allows or is known."""
    trace: float
    """Of the covariance."""

    @staticmethod
    def of_moments(mean: NDArray[np.float64], cov: NDArray[np.float64]) -> Gaussian:
        """From mean (d,) and covariance (d, d): by the Cholesky factor, or eigenvectors where it is singular."""
        return Gaussian(mean, _root(cov), float(np.trace(cov)))

    @staticmethod
    def of_stats(stats: GaussianStats) -> Gaussian:
        """From moments, likewise."""
        return Gaussian.of_moments(stats.mean, stats.cov)

    @staticmethod
    def of_features(features: NDArray[np.floating]) -> Gaussian:
        """From features (n, d): faster and more exact where n < d makes the covariance singular."""
        if len(features) < 2:
            raise ValueError(f"{len(features)} feature vector has no covariance: at least 2 are needed")
        rows = features.astype(np.float64)
        mean = rows.mean(axis=0)
        root = (rows - mean) / np.sqrt(len(rows) - 1)
        trace = float(np.square(root).sum())
        return Gaussian(mean, root if len(root) <= root.shape[1] else np.linalg.qr(root).R, trace)


def distance(first: Gaussian, second: Gaussian) -> float:
    """The distance between two Gaussians. Raises ValueError when they are of different networks' features."""
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"features of {len(first.mean)} and {len(second.mean)} dimensions come from different networks: no distance"
        )
    shift = first.mean - second.mean
    return float(shift @ shift + first.trace + second.trace - 2 * _overlap(first.root @ second.root.T))


def frechet_distance(first: GaussianStats, second: GaussianStats) -> float:
    """The distance by moments."""
    return distance(Gaussian.of_stats(first), Gaussian.of_stats(second))


def frechet_distance_of_features(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The distance straight from features (n, d)."""
    return distance(Gaussian.of_features(first), Gaussian.of_features(second))


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        root = np.asarray(np.linalg.cholesky(cov).T, dtype=np.float64)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(cov)
        rounding = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(initial=0.0)
        kept = eigenvalues > rounding  # of the others nothing is known, and their square roots would not be small
        root = (vectors[:, kept] * np.sqrt(eigenvalues[kept])).T
    return root


def _overlap(product: NDArray[np.float64]) -> float:
    """The sum of singular values: from the eigenvalues of the square where that is exact enough.

    Those take half the time, but an error of rounding in a small one enters by its square root.
    """
    wide = product if product.shape[0] <= product.shape[1] else product.T
    eigenvalues = np.linalg.eigvalsh(wide @ wide.T)
    rounding = 8 * np.finfo(np.float64).eps * eigenvalues.max(initial=0.0)
    roots = np.sqrt(np.maximum(eigenvalues, 0.0))
    error = np.minimum(np.sqrt(rounding), rounding / (2 * np.maximum(roots, np.finfo(np.float64).tiny))).sum()
    if error <= OVERLAP_RTOL * roots.sum():
        return float(roots.sum())
    return float(np.linalg.svd(product, compute_uv=False).sum())
