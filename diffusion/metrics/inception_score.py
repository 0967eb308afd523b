"""How sure is a classifier of each image, and how different are the images? The Inception Score (Salimans et al. 2016).

exp of the mean KL(p(y|x) || p(y)), within splits: as in the published evaluator splits of 5,000 in the order of the
images, whose scores are averaged. Where the last split is shorter, it counts as much as the others, as published.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from diffusion.metrics.intervals import Estimate, of_replicates

SPLIT_SIZE = 5000
SUMS_TO = 1e-3
"""How far float32 may be off when the probabilities of an image are added."""


def inception_score(probabilities: NDArray[np.floating], *, split_size: int = SPLIT_SIZE) -> float:
    """The score of images by their class probabilities (n, k), rows that sum to 1. Raises ValueError for others."""
    parts = _splits(probabilities, split_size)
    return float(np.mean([_scores(part, np.full((1, len(part)), 1 / len(part))) for part in parts]))


def inception_score_interval(
    probabilities: NDArray[np.floating], *, replicates: int, seed: int, split_size: int = SPLIT_SIZE
) -> Estimate:
    """The score and its interval, from so many bootstrap replicates: images drawn anew within each split."""
    rng = np.random.default_rng(seed)
    parts = _splits(probabilities, split_size)
    found = np.zeros(replicates)
    for part in parts:
        n = len(part)
        found += _scores(part, rng.multinomial(n, np.full(n, 1 / n), size=replicates) / n)
    return of_replicates(inception_score(probabilities, split_size=split_size), found / len(parts))


def _scores(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of one split, whose image i has the weight weights[:, i] (rows sum to 1): mean KL is H(mean) - mean H."""
    marginals = weights @ rows
    return np.exp(weights @ xlogy(rows, rows).sum(axis=1) - xlogy(marginals, marginals).sum(axis=1))


def _splits(probabilities: NDArray[np.floating], split_size: int) -> list[NDArray[np.float64]]:
    if split_size < 1:
        raise ValueError(f"split_size={split_size}: at least 1 image a split")
    if probabilities.ndim != 2 or len(probabilities) == 0:
        raise ValueError(f"probabilities of shape {probabilities.shape}: needs at least one row of an (n, k) array")
    rows = probabilities.astype(np.float64)
    if not ((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, rtol=0, atol=SUMS_TO)):
        raise ValueError("probabilities that are negative, not finite, or do not sum to 1 are none: softmax of logits?")
    return [rows[first : first + split_size] for first in range(0, len(rows), split_size)]
