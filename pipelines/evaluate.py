"""How far are the samples from held-out images? Features of both, then the Frechet distance and KID between them.

python pipelines/evaluate.py tiny --store artifacts
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from diffusion.metrics.inception import EfficientNetLite0Features, clean_fid_frechet_distance
from diffusion.metrics.kid import kid
from diffusion.metrics.stats import GaussianStats
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block, map_blocks
from pipelines.devices import worker_device
from pipelines.sample import PROTOCOL_FILE, SAMPLES_FILE
from pipelines.shards import read_split

VERSION = 3
BLOCK = 256
FEATURES_FILE = "features.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig:
    """The network that sees the images. A distance over it is named after it; only Inception's is a FID."""

    network: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    size: int = 64
    """Pixels a side to which images are resized before the network sees them."""

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 224:
            raise ValueError(f"features.size={self.size}: between 32 and 224 pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """How the two sets of features are compared."""

    kid_subsets: int = 100
    kid_subset_size: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kid_subsets < 2 or self.kid_subset_size < 2:
            raise ValueError(
                f"metrics.kid_subsets={self.kid_subsets}, metrics.kid_subset_size={self.kid_subset_size}: "
                f"both must be at least 2"
            )


def reference_step(config: FeaturesConfig, *, dataset: Step) -> Step:
    """Features of the held-out images: one artifact for all rows that share a data set."""
    return Step(name="reference", version=VERSION, config=config, inputs={"dataset": dataset}, run=extract_reference)


def features_step(config: FeaturesConfig, *, samples: Step) -> Step:
    """Features of the samples: an artifact of its own, so that metrics can be recomputed without the network."""
    return Step(name="features", version=VERSION, config=config, inputs={"samples": samples}, run=extract_samples)


def metrics_step(config: MetricsConfig, *, features: Step, reference: Step) -> Step:
    """The distances as a step of a plan."""
    inputs = {"features": features, "reference": reference}
    return Step(name="metrics", version=VERSION, config=config, inputs=inputs, run=compare)


def extract_reference(config: FeaturesConfig, ctx: StepContext) -> None:
    """Features of the test split."""
    images = read_split(ctx.inputs["dataset"], "test").images
    manifest = (ctx.inputs["dataset"] / "manifest.json").read_bytes()
    whole = hashlib.sha256(manifest).hexdigest()[:12]
    _extract(config, images, {"reference": f"{len(images)} test images of data set {whole}"}, ctx)


def extract_samples(config: FeaturesConfig, ctx: StepContext) -> None:
    """Features of the samples."""
    drawn = json.loads((ctx.inputs["samples"] / PROTOCOL_FILE).read_text())
    with np.load(ctx.inputs["samples"] / SAMPLES_FILE, allow_pickle=False) as samples:
        _extract(config, samples["arr_0"], drawn, ctx)


def compare(config: MetricsConfig, ctx: StepContext) -> None:
    """Frechet distance and KID between two artifacts of features, with the protocol both rest on."""
    samples, reference = Features.load(ctx.inputs["features"]), Features.load(ctx.inputs["reference"])
    if samples.network != reference.network:
        raise ValueError(f"features of {samples.network} cannot be compared with features of {reference.network}")
    ours, theirs = GaussianStats.of(samples.values), GaussianStats.of(reference.values)
    distance = clean_fid_frechet_distance(ours.mean, ours.cov, theirs.mean, theirs.cov)
    value, error = kid(
        samples.values, reference.values, seed=config.seed,
        subsets=config.kid_subsets, subset_size=config.kid_subset_size,
    )  # fmt: skip
    protocol = {**samples.network, **reference.images, **samples.images}
    subsets = {"subsets": f"{config.kid_subsets} of {config.kid_subset_size}", "subset_seed": config.seed}
    ctx.write_metrics(
        {
            "fd": distance,
            "kid": value,
            "kid_se": error,
            "fd_samples": float(len(samples.values)),
            "fd_reference": float(len(reference.values)),
        },
        protocol={"fd": protocol, "kid": {**protocol, **subsets}},
        notes=_biased(len(samples.values), len(reference.values), samples.values.shape[1]),
    )


@dataclass(frozen=True)
class Features:
    """An artifact of features (n, d), and what they are features of."""

    values: np.ndarray
    network: dict[str, str | int]
    images: dict[str, str | int]

    @classmethod
    def load(cls, artifact: Path) -> Features:
        """From the directory of a step."""
        with np.load(artifact / FEATURES_FILE, allow_pickle=False) as stored:
            return cls(stored["features"], **json.loads(str(stored["protocol"])))


def _biased(samples: int, reference: int, dimension: int) -> list[str]:
    if min(samples, reference) > dimension:
        return []
    return [
        f"fd is strongly biased upwards: {dimension}-dimensional covariances of {samples} samples and {reference} "
        f"reference images are singular; compare rows by KID"
    ]


def extract_block(config: FeaturesConfig, images: np.ndarray, resources: Resources, block: Block) -> np.ndarray:
    """float32 features (n, d) of the block's images, uint8 NHWC."""
    return EfficientNetLite0Features(size=config.size, device=worker_device(resources))(images[slice(*block)])


def _extract(
    config: FeaturesConfig, images: np.ndarray, images_protocol: dict[str, str | int], ctx: StepContext
) -> None:
    work = partial(extract_block, config, images, ctx.resources)
    features = np.concatenate(map_blocks(ctx, work, len(images), block_size=BLOCK))
    network = dict(EfficientNetLite0Features.protocol_at(config.size))
    protocol = json.dumps({"network": network, "images": images_protocol})
    np.savez(ctx.output / FEATURES_FILE, features=features, protocol=np.array(protocol))


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("metrics", "Measure the Frechet distance and KID between samples and held-out images."))
