"""What does a network see in the images? Features of samples and of real images, as artifacts of their own.

Metrics are computed from them, so another metric needs neither the network nor a GPU again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion.metrics.efficientnet import EfficientNetLite0Features
from diffusion.metrics.features import Extractor, FeatureProtocol, Features
from diffusion.metrics.inception import FILES, InceptionFeatures, Mode
from orchestrator.protocols import MEASURED_WITH
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import WORKING, Block, kept_arrays, map_blocks
from pipelines.devices import worker_device
from pipelines.drawn import PROTOCOL_FILE, SAMPLES_FILE
from pipelines.libraries import made_with, versions
from pipelines.moments import MOST_IMAGES, STATISTICS_FILE, Moments, evenly
from pipelines.own_classifier import OwnClassifierConfig, own_classifier_step, read_own_classifier
from pipelines.shards import MANIFEST_FILE, Split, read_split, sha256_of
from pipelines.weights import WEIGHTS_FILE, WeightsConfig, weights_step

VERSION = 6
BLOCK = 256
FEATURES_FILE, FEATURES_PROTOCOL_FILE = "features.npz", "protocol.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientNetConfig:
    """The network that a package brings. A distance over it is named after it, and is no FID."""

    kind: Literal["efficientnet-lite0"] = "efficientnet-lite0"
    size: int = 64
    """Pixels a side to which images are resized before the network sees them."""

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 224:
            raise ValueError(f"features.size={self.size}: between 32 and 224 pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class InceptionConfig:
    """The FID's own network, from a file of the user's."""

    kind: Literal["inception"] = "inception"
    mode: Mode = "legacy_tensorflow"
    """How images are resized, by clean-fid's names; the papers' numbers are legacy_tensorflow."""
    weights_sha256: str | None = None
    """Of the file with the weights; null: the published one's."""

    def weights(self) -> WeightsConfig:
        """Which file that is."""
        known = FILES[self.mode]
        return WeightsConfig(name=known.name, sha256=self.weights_sha256 or known.sha256)


PublishedConfig = EfficientNetConfig | InceptionConfig
FeaturesConfig = PublishedConfig | OwnClassifierConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """What samples are compared with."""

    network: FeaturesConfig
    split: Split
    """Of the data set: test, or train, as both papers do it."""


def reference_step(config: FeaturesConfig, *, dataset: Step, split: Split = "test") -> Step:
    """Features of real images: one artifact for all rows that share a data set."""
    inputs = {"dataset": dataset, **_weights(config, dataset)}
    compared = ReferenceConfig(network=config, split=split)
    return Step(name="reference", version=VERSION, config=compared, inputs=inputs, run=extract_reference)


def features_step(config: FeaturesConfig, *, samples: Step, dataset: Step) -> Step:
    """Features of the samples, by a network that knows the data set where it is one of its own."""
    inputs = {"samples": samples, **_weights(config, dataset)}
    return Step(name="features", version=VERSION, config=config, inputs=inputs, run=extract_samples)


def _weights(config: FeaturesConfig, dataset: Step) -> dict[str, Step]:
    if isinstance(config, OwnClassifierConfig):
        return {"classifier": own_classifier_step(config, dataset=dataset)}
    return {"weights": weights_step(config.weights())} if isinstance(config, InceptionConfig) else {}


def extract_reference(config: ReferenceConfig, ctx: StepContext) -> None:
    """Features of the split; also leaves statistics.npz, which evaluate.py takes as the first of two files."""
    images = read_split(ctx.inputs["dataset"], config.split).images
    of = images_of(ctx.inputs["dataset"], len(images), config.split)
    libraries = libraries_of(config.network)
    found = _extract(config.network, images, of, {"reference": libraries}, ctx)
    shown = images[evenly(len(images), most=MOST_IMAGES)]
    Moments.of([found.features]).save(
        ctx.output / STATISTICS_FILE, network=found.network, of=of, images=shown, libraries=libraries
    )


def images_of(dataset: Path, count: int, split: Split) -> dict[str, str]:
    """What a protocol says of the images of a data set, which is known by the hash of its manifest."""
    return {"reference": f"{count} {split} images", "dataset": sha256_of(dataset / MANIFEST_FILE)[:12]}


def extract_samples(config: FeaturesConfig, ctx: StepContext) -> None:
    """Features of the samples."""
    drawn = json.loads((ctx.inputs["samples"] / PROTOCOL_FILE).read_text())
    with np.load(ctx.inputs["samples"] / SAMPLES_FILE, allow_pickle=False) as samples:
        libraries = {
            "sample": made_with(ctx.inputs["samples"], "torch", "numpy"),
            "features": libraries_of(config),
        }
        _extract(config, samples["arr_0"], drawn, libraries, ctx)


@dataclass(frozen=True)
class Extracted:
    """An artifact of features, and what they are features of."""

    features: Features
    network: FeatureProtocol
    images: Mapping[str, str | int]
    measured_with: Mapping[str, str]
    """Stage -> the versions of libraries that may have moved a bit of it."""

    def save(self, artifact: Path) -> None:
        """Into the directory of a step: features.npz (pool, spatial, probabilities) and protocol.json."""
        np.savez(artifact / FEATURES_FILE, **_arrays(self.features))  # type: ignore[arg-type]  # its stub's allow_pickle
        said = json.dumps(
            {"network": self.network, "images": dict(self.images), MEASURED_WITH: dict(self.measured_with)}
        )
        (artifact / FEATURES_PROTOCOL_FILE).write_text(said)

    @classmethod
    def load(cls, artifact: Path) -> Extracted:
        """From the directory of a step."""
        with np.load(artifact / FEATURES_FILE, allow_pickle=False) as stored:
            features = Features(**{name: stored[name] for name in stored.files})
        said = json.loads((artifact / FEATURES_PROTOCOL_FILE).read_text())
        return cls(features, said["network"], said["images"], said[MEASURED_WITH])


def _arrays(features: Features) -> dict[str, np.ndarray]:
    return {name: values for name, values in features._asdict().items() if values is not None}


def extractor(config: PublishedConfig, weights: bytes | None, *, device: str) -> Extractor:
    """The network, with the content of its weights' file where it needs one."""
    if isinstance(config, EfficientNetConfig):
        return EfficientNetLite0Features(size=config.size, device=device)
    assert weights is not None  # a step's input
    return InceptionFeatures(weights, mode=config.mode, weights_sha256=config.weights().sha256, device=device)


def protocol_of(config: PublishedConfig) -> FeatureProtocol:
    """How images become vectors, without the network being loaded."""
    if isinstance(config, EfficientNetConfig):
        return EfficientNetLite0Features.protocol_at(config.size)
    return InceptionFeatures.protocol_of(config.mode, config.weights().sha256)


def libraries_of(config: FeaturesConfig) -> str:
    """The versions of what turns images into vectors here."""
    own: tuple[str, ...] = ()
    if isinstance(config, EfficientNetConfig):
        own = ("efficientnet-lite-pytorch",)
    elif isinstance(config, InceptionConfig) and config.mode == "legacy_pytorch":
        # The other modes' network is a program in the file of its weights.
        own = ("clean-fid", "torchvision")
    return versions("torch", "numpy", *own)


def extract_block(
    config: FeaturesConfig, weights: Path | None, images: np.ndarray, resources: Resources, block: Block
) -> Features:
    """Features of the block's images, uint8 NHWC."""
    return _kept_extractor(config, weights, worker_device(resources))(images[slice(*block)])


@lru_cache(maxsize=1)
def _kept_extractor(config: FeaturesConfig, weights: Path | None, device: str) -> Extractor:
    """From one block to the next: it takes longer to load than to see some images."""
    if isinstance(config, OwnClassifierConfig):
        assert weights is not None  # a step's input
        return read_own_classifier(weights, device=device)
    return extractor(config, None if weights is None else weights.read_bytes(), device=device)


def _extract(
    config: FeaturesConfig, images: np.ndarray, of: dict[str, Any], libraries: dict[str, str], ctx: StepContext
) -> Extracted:
    if isinstance(config, OwnClassifierConfig):
        weights: Path | None = ctx.inputs["classifier"]
        network = read_own_classifier(ctx.inputs["classifier"], device="cpu").protocol
    else:
        weights = ctx.inputs["weights"] / WEIGHTS_FILE if "weights" in ctx.inputs else None
        network = protocol_of(config)
    work = partial(extract_block, config, weights, images, ctx.resources)
    kept = kept_arrays(ctx.output / WORKING / "blocks", VERSION, _arrays, lambda arrays: Features(**arrays))
    features = Features.together(map_blocks(ctx, work, len(images), block_size=BLOCK, kept=kept))
    found = Extracted(features, network, of, libraries)
    found.save(ctx.output)
    return found
