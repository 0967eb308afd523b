"""Which images does a trained model draw? Pixels that depend on the seed and the image's index alone.

On one kind of machine; in batches of another size (--batch) the last bits of a network's output differ, so that a pixel
on the edge of two grey levels may fall the other way.

python pipelines/sample.py tiny --store artifacts
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from diffusion.classifier import NoisyClassifier
from diffusion.guidance import Guide, classifier_guide
from diffusion.sampling import SamplerConfig, class_labels, sample, to_uint8
from diffusion.unet import UNet
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block
from pipelines.devices import worker_device
from pipelines.drawn import Drawn, batches, draw_all, labels_of
from pipelines.trained import Origin, TrainedModel, load_classifier, load_trained

VERSION = 7
Labels = Literal["balanced", "drawn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How many images are drawn, and how."""

    count: int = 10_000
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    ema: float | None = None
    """Rate of the average that draws; null: the first of train.ema.rates."""
    guidance_scale: float = 0.0
    """How strongly the classifier steers (ADM, section 4): the factor of its gradient; 0: not at all."""
    seed: int = 0
    """Seed of the starting and step noise: the same in every row of a table, so that rows can be compared by eye."""
    labels: Labels = "balanced"
    """Of what is told classes: as many of each, or drawn evenly, as the papers' code does it."""

    def __post_init__(self) -> None:
        if self.count < 3:
            raise ValueError(f"sample.count={self.count}: KID and its error need at least 3 images")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"sample.guidance_scale={self.guidance_scale}: 0 or more, and finite")


def sample_step(config: SampleConfig, *, train: Step, classifier: Step | None) -> Step:
    """Sampling as a step of a plan; the classifier is one that guides."""
    inputs = {"train": train} if classifier is None else {"train": train, "classifier": classifier}
    return Step(name="sample", version=VERSION, config=config, inputs=inputs, run=draw)


def draw(config: SampleConfig, ctx: StepContext) -> None:
    """Draw config.count images; see draw_all for what is left."""
    train, classifier = ctx.inputs["train"], ctx.inputs.get("classifier")
    origin = Origin.read(train)
    knows_classes = origin.num_classes is not None or classifier is not None
    said = protocol(config, weights=origin.weights(config.ema), knows_classes=knows_classes)
    if classifier is not None:
        said["classifier"] = Origin.read(classifier).published or f"{classifier.parent.name}/{classifier.name}"
    work = partial(draw_block, config, train, classifier, ctx.resources)
    draw_all(ctx, work, config.count, version=VERSION, protocol=said)


def protocol(config: SampleConfig, *, weights: str, knows_classes: bool) -> dict[str, str | int]:
    """What two sets of samples must share to be compared. T and the schedule are the row's own."""
    return {
        "samples": config.count,
        **sampler_protocol(config.sampler),
        "weights": weights,
        "guidance": f"classifier, scale {config.guidance_scale:g}" if config.guidance_scale else "none",
        "seed": config.seed,
        **({"labels": config.labels} if knows_classes else {}),
    }


def sampler_protocol(sampler: SamplerConfig) -> dict[str, str | int]:
    """How the chain was walked."""
    steps = f"respacing {sampler.respacing}" if sampler.respacing else "all T steps"
    return {
        "sampler": f"{sampler.kind}, {steps}" + (f", eta {sampler.eta:g}" if sampler.kind == "ddim" else ""),
        "x_start": "clipped" if sampler.clip_denoised else "not clipped",
    }


@dataclass(frozen=True)
class Networks:
    """What draws, and what steers it."""

    model: TrainedModel[UNet]
    classifier: NoisyClassifier | None

    @property
    def num_classes(self) -> int | None:
        """Of what is told classes; None where nothing is."""
        if self.classifier is not None:
            return self.classifier.config.num_classes
        return self.model.network.config.num_classes

    def guide(self, config: SampleConfig, y: Tensor | None) -> Guide | None:
        """Towards each image's class."""
        if self.classifier is None or y is None:
            return None
        return classifier_guide(self.classifier, y=y, guidance_scale=config.guidance_scale)


@lru_cache(maxsize=1)
def networks_of(train: Path, classifier: Path | None, ema: float | None, device: str) -> Networks:
    """What a sample step's inputs hold; kept from one block to the next."""
    return Networks(
        load_trained(train, device=device, ema=ema),
        None if classifier is None else load_classifier(classifier, device=device),
    )


def draw_block(config: SampleConfig, train: Path, classifier: Path | None, resources: Resources, block: Block) -> Drawn:
    """The block's images and classes, the batch that the machine has room for at a time."""
    device = worker_device(resources)
    networks = networks_of(train, classifier, config.ema, device)
    parts = [_draw(config, networks, index) for index in batches(block, resources, device=device)]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _draw(config: SampleConfig, networks: Networks, index: Tensor) -> Drawn:
    model, network, y = networks.model, networks.model.network, None
    if networks.num_classes is not None:
        y = class_labels(config.labels, index=index, seed=config.seed, num_classes=networks.num_classes)
    size = network.config.image_size
    with model.in_use():
        x_start = sample(
            config.sampler,
            model.diffusion,
            model.schedule,
            network if network.config.num_classes is None else partial(network, y=y),
            index=index,
            seed=config.seed,
            image_shape=(network.config.channels, size, size),
            guide=networks.guide(config, y),
        )
    return to_uint8(x_start).cpu().numpy(), labels_of(y, len(index))


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("sample", "Draw images from a trained model, training it first if it is not there."))
