"""How far apart are two sets of images, seen as Gaussians of features? The Frechet distance (Heusel et al. 2017).

|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)). The last trace is the sum of the singular values of A^T B for any
A A^T = S1 and B B^T = S2: no square root of a non-symmetric matrix, so singular covariances are no special case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.stats import GaussianStats


def frechet_distance(first: GaussianStats, second: GaussianStats) -> float:
    """The distance between two Gaussians, by symmetric eigenvalues."""
    _check_dimensions(len(first.mean), len(second.mean))
    cov_first, cov_second = first.cov, second.cov
    root = _root(cov_first)
    eigenvalues = np.linalg.eigvalsh(root.T @ cov_second @ root)
    overlap = np.sqrt(_above_rounding(eigenvalues)).sum()
    return _distance(first.mean - second.mean, np.trace(cov_first) + np.trace(cov_second), overlap)


def frechet_distance_of_features(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The same distance straight from features (n, d): faster and more exact where n < d makes covariances singular."""
    _check_dimensions(first.shape[1], second.shape[1])
    mean_first, root_first = _moments(first)
    mean_second, root_second = _moments(second)
    overlap = np.linalg.svd(root_first @ root_second.T, compute_uv=False).sum()
    spread = np.square(root_first).sum() + np.square(root_second).sum()
    return _distance(mean_first - mean_second, spread, overlap)


def _distance(shift: NDArray[np.float64], spread: float, overlap: float) -> float:
    return float(shift @ shift + spread - 2 * overlap)


def _root(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    """A with A A^T = cov, with as many columns as cov has rank."""
    eigenvalues, vectors = np.linalg.eigh(cov)
    kept = _above_rounding(eigenvalues)
    return vectors[:, kept > 0] * np.sqrt(kept[kept > 0])


def _above_rounding(eigenvalues: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvalues that rounding alone could have produced, set to 0: their square roots would not be small."""
    rounding = len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues.max(initial=0.0)
    return np.where(eigenvalues > rounding, eigenvalues, 0.0)


def _moments(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean, and R with R^T R = covariance and min(n, d) rows."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} feature vector has no covariance: at least 2 are needed")
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    root = (rows - mean) / np.sqrt(len(rows) - 1)
    return mean, root if len(root) <= root.shape[1] else np.linalg.qr(root).R


def _check_dimensions(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"features of {first} and {second} dimensions come from different networks: no distance")
