"""How long do the metrics take, beside clean-fid's and torch-fidelity's? Ratios in one run, taking turns.

Features of 2,048 dimensions, as Inception's: positive, correlated, with eigenvalues over six decades. The network that
sees images has Inception's layers and chance weights (tests/inception.py). torch-fidelity comes with the tests.

    PYTHONPATH=. python benchmarks/evaluation.py > docs/results/evaluation.md
    PYTHONPATH=. python benchmarks/evaluation.py --only extraction
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.metrics.frechet import frechet_distance, frechet_distance_of_features
from diffusion.metrics.inception import (
    FILES,
    IMAGES_AT_ONCE,
    TORCHSCRIPT,
    InceptionFeatures,
    Mode,
    declare_missing_torchvision_operators,
)
from diffusion.metrics.precision_recall import precision_recall
from diffusion.metrics.resize import resize_clean
from diffusion.metrics.stats import GaussianStats
from tests.inception import inception_file

ROUNDS, DIMENSIONS, IMAGES = 3, 2048, 64
Ways = dict[str, Callable[[], Any]]


class Row(NamedTuple):
    """What one way took."""

    way: str
    seconds: float
    ratio: float
    """How many times as long as ours."""
    value: Any


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


EXTRACTIONS: list[tuple[Mode, int]] = [("legacy_tensorflow", 32), ("clean", 32), ("clean", 256)]
CASES: dict[str, Callable[[], Ways]] = {
    "Frechet distance from moments": lambda: frechet(5000),
    "Frechet distance of 1,000 features": lambda: frechet_of_few(1000),
    "precision and recall, 10,000 by 10,000": lambda: neighbours(10_000),
    "moments of 10,000 features, in blocks": lambda: moments(10_000),
    "resizing 256 images, 32 to 299": lambda: resizing(256),
}


def extraction(mode: Mode, folder: Path, *, size: int) -> Ways:
    """Features of images of that size: ours from an array, clean-fid's by its loop over files that hold it."""
    from cleanfid.fid import get_files_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    files = [folder / f"{size}-{number}.npy" for number in range(IMAGES)]
    for file, image in zip(files, images, strict=True):
        np.save(file, image)
    content = (folder / FILES[mode].name).read_bytes()
    ours = InceptionFeatures(content, mode=mode, weights_sha256=hashlib.sha256(content).hexdigest())
    theirs = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow").eval()
    by_clean_fid = partial(
        get_files_features, files, model=theirs, num_workers=0, batch_size=IMAGES_AT_ONCE, device=torch.device("cpu"),
        mode=mode, verbose=False,
    )  # fmt: skip
    return {"ours": lambda: float(ours(images).pool.mean()), "clean-fid": lambda: float(by_clean_fid().mean())}


def timed(name: str, ways: Ways, rounds: int) -> list[Row]:
    """All ways, taking turns."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    values: dict[str, Any] = {}
    for turn in range(rounds):
        for way, call in ways.items():
            began = time.perf_counter()
            values[way] = call()
            taken[way].append(time.perf_counter() - began)
        print(f"{name}: round {turn}", file=sys.stderr)
    pairs = {way: zip(taken[way], taken["ours"], strict=True) for way in ways}
    ratios = {way: statistics.median(theirs / ours for theirs, ours in pairs[way]) for way in ways}
    return [Row(way, statistics.median(taken[way]), ratios[way], values[way]) for way in ways]


def show_metrics(rounds: int) -> None:
    """Seconds of each."""
    print("| | by | seconds | as many times as long as ours | value |\n|---|---|---:|---:|---|")
    for name, prepare in CASES.items():
        for row in timed(name, prepare(), rounds):
            print(f"| {name} | {row.way} | {row.seconds:.2f} | {row.ratio:.1f} | {row.value} |", flush=True)


def show_extraction(rounds: int) -> None:
    """Images a second, by the same network."""
    print(f"\n## Features of {IMAGES} images\n\n{processor()}. The same network of chance weights for both, with")
    print(
        "Inception's layers and a quarter of its multiplications (1.4 billion an image).", IMAGES_AT_ONCE, "at a time;"
    )
    print("clean-fid's loop reads .npy files in its own process. Ours also has spatial features and probabilities.\n")
    print("| | by | img/s | as many times as long as ours | mean |\n|---|---|---:|---:|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / TORCHSCRIPT.name).write_bytes(inception_file(width=32))
        for mode, size in EXTRACTIONS:
            name = f"{mode}, {size} to 299"
            for row in timed(name, extraction(mode, folder, size=size), rounds):
                print(
                    f"| {name} | {row.way} | {IMAGES / row.seconds:.1f} | {row.ratio:.2f} | {row.value:.6g} |",
                    flush=True,
                )


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unnamed CPU")


def main() -> None:
    """Print the tables as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    declare_missing_torchvision_operators()
    print("# What the metrics take\n\n1 thread, numpy", np.__version__, "torch", torch.__version__)
    print(f"{DIMENSIONS} dimensions. Medians of {options.rounds} rounds, taking turns.\n")
    print("`OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONPATH=. python benchmarks/evaluation.py`\n")
    for part, show in PARTS.items():
        if options.only in (None, part):
            show(options.rounds)


PARTS: dict[str, Callable[[int], None]] = {"metrics": show_metrics, "extraction": show_extraction}

if __name__ == "__main__":
    main()
