"""What becomes of samples that a second network makes larger? Two-stage models (IDDPM and ADM, section 3.2 and 5)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.sampling import SamplerConfig, sample, to_uint8
from diffusion.superres import SuperResUNet
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block
from pipelines.devices import worker_device
from pipelines.drawn import PROTOCOL_FILE, Drawn, batches, draw_all, drawn, labels_of
from pipelines.sample import sampler_protocol
from pipelines.shards import UNLABELLED
from pipelines.train import to_tensor, to_unit_range
from pipelines.train_superres import SuperResRun
from pipelines.trained import Origin, TrainedModel, load_upsampler

VERSION = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class UpsampleConfig:
    """How samples are made larger. How many there are, and of which classes, the samples say."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    ema: float | None = None
    """Rate of the average that draws; null: the first of its training."""
    seed: int = 1
    """Of this stage's noise: another than that of the samples, whose numbers it would be otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpsamplerConfig:
    """The second stage of a run."""

    training: SuperResRun
    """Its network and how that is trained; its data are of the larger size, and what the results are compared with."""
    sample: UpsampleConfig = field(default_factory=UpsampleConfig)


def upsample_step(config: UpsampleConfig, *, samples: Step, upsampler: Step) -> Step:
    """Enlarging as a step of a plan."""
    inputs = {"samples": samples, "upsampler": upsampler}
    return Step(name="upsample", version=VERSION, config=config, inputs=inputs, run=enlarge)


def enlarge(config: UpsampleConfig, ctx: StepContext) -> None:
    """Make all samples larger, image by image of the same index and class; see draw_all for what is left."""
    samples, upsampler = ctx.inputs["samples"], ctx.inputs["upsampler"]
    small = json.loads((samples / PROTOCOL_FILE).read_text())
    own = {
        **sampler_protocol(config.sampler),
        "weights": Origin.read(upsampler).weights(config.ema),
        "seed": config.seed,
    }
    said = {**small, **{f"upsampler {key}": value for key, value in own.items()}}
    work = partial(enlarge_block, config, samples, upsampler, ctx.resources)
    draw_all(ctx, work, small["samples"], version=VERSION, protocol=said)


@lru_cache(maxsize=1)
def _loaded(upsampler: Path, ema: float | None, device: str) -> TrainedModel[SuperResUNet]:
    """Kept from one block to the next."""
    return load_upsampler(upsampler, device=device, ema=ema)


def enlarge_block(config: UpsampleConfig, samples: Path, upsampler: Path, resources: Resources, block: Block) -> Drawn:
    """The block's images, enlarged, and their classes."""
    device = worker_device(resources)
    model, (images, labels) = _loaded(upsampler, config.ema, device), drawn(samples, block)
    parts = []
    for index in batches(block, resources, device=device):
        here = (index - block[0]).cpu().numpy()
        parts.append(_enlarge(config, model, index, images[here], labels[here]))
    enlarged, classes = zip(*parts, strict=True)
    return np.concatenate(enlarged), np.concatenate(classes)


def _enlarge(
    config: UpsampleConfig, model: TrainedModel[SuperResUNet], index: Tensor, images: np.ndarray, labels: np.ndarray
) -> Drawn:
    device, unet = index.device, model.network.config
    y = None if (labels == UNLABELLED).all() else torch.from_numpy(labels).to(device)
    shown = {"low_res": to_unit_range(to_tensor(images).to(device)), "y": None if unet.num_classes is None else y}
    with model.in_use():
        x_start = sample(
            config.sampler,
            model.diffusion,
            model.schedule,
            partial(model.network, **shown),
            index=index,
            seed=config.seed,
            image_shape=(unet.channels, unet.image_size, unet.image_size),
        )
    return to_uint8(x_start).cpu().numpy(), labels_of(y, len(index))
