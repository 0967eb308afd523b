"""How long do the metrics take, beside clean-fid's and torch-fidelity's? Ratios in one run, taking turns.

Features of 2,048 dimensions, as Inception's: positive, correlated, with eigenvalues over six decades. torch-fidelity
comes with the tests' packages.

    PYTHONPATH=. python benchmarks/evaluation.py > docs/results/evaluation.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.metrics.frechet import frechet_distance, frechet_distance_of_features
from diffusion.metrics.inception import IMAGES_AT_ONCE, declare_missing_torchvision_operators
from diffusion.metrics.precision_recall import precision_recall
from diffusion.metrics.resize import resize_clean
from diffusion.metrics.stats import GaussianStats

ROUNDS, DIMENSIONS = 3, 2048
Ways = dict[str, Callable[[], Any]]


def features(seed: int, count: int) -> NDArray[np.float32]:
    """As a network would give them."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(1)
    axes = np.linalg.qr(mixing.standard_normal((DIMENSIONS, DIMENSIONS)))[0] * np.exp(-np.arange(DIMENSIONS) * 0.0035)
    found = np.abs(rng.standard_normal((count, DIMENSIONS)) @ axes + 0.01 * seed)
    return found.astype(np.float32)


def frechet(count: int) -> Ways:
    """The distance from moments that are there."""
    from cleanfid.fid import frechet_distance as clean_fid_frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    first, second = (GaussianStats.of(features(seed, count)) for seed in (0, 2))
    theirs = [{"mu": stats.mean, "sigma": stats.cov} for stats in (first, second)]
    return {
        "ours": lambda: frechet_distance(first, second),
        "clean-fid": lambda: clean_fid_frechet_distance(first.mean, first.cov, second.mean, second.cov),
        "torch-fidelity": lambda: fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"],
    }


def frechet_of_few(count: int) -> Ways:
    """The distance from features that are fewer than their dimensions."""
    from cleanfid.fid import frechet_distance as clean_fid_frechet_distance

    x, y = (features(seed, count) for seed in (0, 2))

    def clean_fid() -> float:
        return clean_fid_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))

    return {"ours": lambda: frechet_distance_of_features(x, y), "clean-fid": clean_fid}


def neighbours(count: int) -> Ways:
    """Precision and recall, k = 3. Ours also has their intervals."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    x, y = (features(seed, count) for seed in (0, 2))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    return {
        "ours": lambda: tuple(estimate.value for estimate in precision_recall(x, y)),
        "torch-fidelity": lambda: calculate_precision_recall_full(*tensors, neighborhood=3),
    }


def moments(count: int) -> Ways:
    """Mean and covariance of features that come in blocks."""
    x = features(0, count)

    def ours() -> float:
        blocks = [GaussianStats.of(x[first : first + 1000]) for first in range(0, count, 1000)]
        whole = blocks[0]
        for block in blocks[1:]:
            whole = whole.merge(block)
        return float(np.trace(whole.cov))

    return {"ours": ours, "numpy.cov": lambda: float(np.trace(np.cov(x, rowvar=False)))}


def resizing(count: int) -> Ways:
    """32x32 images to 299x299, clean."""
    from cleanfid.resize import build_resizer

    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    resizer = build_resizer("clean")
    blocks = torch.from_numpy(images).permute(0, 3, 1, 2).split(IMAGES_AT_ONCE)
    return {
        "ours": lambda: float(np.mean([resize_clean(block, 299).mean().item() for block in blocks])),
        "clean-fid": lambda: float(np.mean([resizer(image).mean() for image in images])),
    }


CASES: dict[str, Callable[[], Ways]] = {
    "Frechet distance from moments": lambda: frechet(5000),
    "Frechet distance of 1,000 features": lambda: frechet_of_few(1000),
    "precision and recall, 10,000 by 10,000": lambda: neighbours(10_000),
    "moments of 10,000 features, in blocks": lambda: moments(10_000),
    "resizing 256 images, 32 to 299": lambda: resizing(256),
}


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    declare_missing_torchvision_operators()
    print("# What the metrics take\n\n1 thread, numpy", np.__version__, "torch", torch.__version__)
    print(f"{DIMENSIONS} dimensions. Medians of {options.rounds} rounds, taking turns.\n")
    print("`OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONPATH=. python benchmarks/evaluation.py`\n")
    print("| | by | seconds | as many times as long as ours | value |")
    print("|---|---|---:|---:|---|")
    for name, prepare in CASES.items():
        ways = prepare()
        taken: dict[str, list[float]] = {way: [] for way in ways}
        values: dict[str, Any] = {}
        for turn in range(options.rounds):
            for way, call in ways.items():
                began = time.perf_counter()
                values[way] = call()
                taken[way].append(time.perf_counter() - began)
            print(f"{name}: round {turn}", file=sys.stderr)
        for way in ways:
            ratio = statistics.median(theirs / ours for theirs, ours in zip(taken[way], taken["ours"], strict=True))
            print(f"| {name} | {way} | {statistics.median(taken[way]):.2f} | {ratio:.1f} | {values[way]} |", flush=True)


if __name__ == "__main__":
    main()
