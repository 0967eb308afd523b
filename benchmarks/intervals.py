"""How often do the intervals hold what they should? Of sets drawn anew from one known model, for each metric.

An interval should hold the mean over all sets of that size: 95 % of them. That of the distance of infinitely many
samples should hold the distance of the model itself.

    PYTHONPATH=. python benchmarks/intervals.py > docs/results/intervals.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.frechet import Gaussian, distance
from diffusion.metrics.frechet_uncertainty import frechet_estimates
from diffusion.metrics.inception_score import inception_score_interval
from diffusion.metrics.intervals import Estimate, of_replicates, of_standard_error
from diffusion.metrics.kid import kid
from diffusion.metrics.precision_recall import precision_recall
from diffusion.metrics.stats import GaussianStats

SETS, REPLICATES, GROUPS = 200, 50, 20


@dataclass(frozen=True)
class Model:
    """A Gaussian of d dimensions, some way from a reference of 5,000 points of another."""

    d: int
    away: float

    def root(self) -> NDArray[np.float64]:
        rng = np.random.default_rng(self.d)
        return np.linalg.qr(rng.standard_normal((self.d, self.d)))[0] * np.exp(-np.arange(self.d) * 4 / self.d)

    def moved(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rng, root = np.random.default_rng(self.d + 1), self.root()
        shift = self.away * rng.standard_normal(self.d) / np.sqrt(self.d)
        return shift, root + self.away * rng.standard_normal((self.d, self.d)) / self.d

    def samples(self, seed: int, count: int) -> NDArray[np.float64]:
        shift, root = self.moved()
        return np.random.default_rng(seed).standard_normal((count, self.d)) @ root.T + shift

    def reference(self) -> NDArray[np.float64]:
        return np.random.default_rng(7).standard_normal((5000, self.d)) @ self.root().T

    def true_distance(self, reference: Gaussian) -> float:
        shift, root = self.moved()
        return distance(Gaussian.of_moments(shift, root @ root.T), reference)


def bootstrap(samples: NDArray[np.float64], reference: Gaussian, seed: int) -> Estimate:
    """What is not used: the distances of groups of samples drawn with replacement, around the distance of all."""
    parts = [GaussianStats.of(samples[group::GROUPS]) for group in range(GROUPS)]
    drawn = np.random.default_rng(seed).integers(0, GROUPS, (REPLICATES, GROUPS))
    sets = (reduce(GaussianStats.merge, [parts[group] for group in row]) for row in drawn)
    found = np.array([distance(Gaussian.of_stats(stats), reference) for stats in sets])
    return of_replicates(distance(Gaussian.of_features(samples), reference), found)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def share_held(estimates: list[Estimate], true: float | None = None) -> str:
    """How many hold the true value, or, where there is none, the mean of all."""
    aim = float(np.mean([estimate.value for estimate in estimates])) if true is None else true
    held = sum(estimate.low <= aim <= estimate.high for estimate in estimates)
    return f"{held} of {len(estimates)}"


def rows(model: Model, count: int, sets: int) -> list[tuple[str, str]]:
    """(metric, how often its interval held)."""
    points = model.reference()
    reference = Gaussian.of_features(points)
    drawn = [model.samples(100 + seed, count) for seed in range(sets)]
    frechet = [frechet_estimates(x, reference) for x in drawn]
    kids = [of_standard_error(*kid(x, points[:count], seed=0, subsets=20, subset_size=count // 2)) for x in drawn[:50]]
    shares = [precision_recall(x, points[:2000]) for x in drawn]
    calls: dict[str, Callable[[], str]] = {
        "Frechet distance, jackknife": lambda: share_held([one.distance for one in frechet]),
        "Frechet distance, bootstrap (not used)": lambda: share_held(
            [bootstrap(x, reference, seed) for seed, x in enumerate(drawn)]
        ),
        "of infinitely many, jackknife": lambda: share_held(
            [one.infinity for one in frechet if one.infinity is not None], model.true_distance(reference)
        ),
        "Inception Score, bootstrap": lambda: share_held(
            [inception_score_interval(softmax(3 * x[:, :10]), replicates=REPLICATES, seed=0) for x in drawn]
        ),
        "KID, jackknife (of both sets)": lambda: share_held(kids),
        "precision, Wilson": lambda: share_held([one.precision for one in shares]),
        "recall, jackknife": lambda: share_held([one.recall for one in shares]),
    }
    return [(name, call()) for name, call in calls.items()]


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=SETS)
    options = parser.parse_args()
    print("# How often the intervals hold\n\nOf intervals that should hold in 95 %, of sets drawn anew.\n")
    print("`PYTHONPATH=. python benchmarks/intervals.py`\n\n| model | samples | metric | held |\n|---|---:|---|---:|")
    for model, count in ((Model(16, 0.3), 500), (Model(64, 0.1), 1000), (Model(64, 0.1), 5000), (Model(200, 0.1), 600)):
        print(f"{model}, {count}", file=sys.stderr)
        for name, held in rows(model, count, options.sets):
            print(f"| {model.d} dimensions, {model.away} away | {count} | {name} | {held} |", flush=True)


if __name__ == "__main__":
    main()
