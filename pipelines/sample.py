"""Which images does a trained model draw? Pixels that depend on the seed and the image's index alone.

python pipelines/sample.py tiny --store artifacts
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from diffusion.sampling import SamplerConfig, class_labels, sample, to_uint8
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block, Kept, map_blocks
from pipelines.devices import worker_device
from pipelines.shards import UNLABELLED, decoded_images, encoded_images
from pipelines.trained import TrainStepConfig, load_trained, trained_config, weights_used

VERSION = 4
BLOCK = 128  # images a worker draws at a time: the unit of progress, and what a lost worker loses
GRID_SIDE = 8
SAMPLES_FILE = "samples.npz"
GRID_FILE = "grid.png"
PROTOCOL_FILE = "protocol.json"
BLOCKS = "blocks"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """How many images are drawn, and how."""

    count: int = 10_000
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    seed: int = 0
    """Seed of the starting and step noise: the same in every row of a table, so that rows can be compared by eye."""
    labels: Literal["balanced", "drawn"] = "balanced"
    """Of a network that is told classes: as many of each, or drawn evenly, as the papers' code does it."""

    def __post_init__(self) -> None:
        if self.count < 3:
            raise ValueError(f"sample.count={self.count}: KID and its error need at least 3 images")


def sample_step(config: SampleConfig, *, train: Step) -> Step:
    """Sampling as a step of a plan."""
    return Step(name="sample", version=VERSION, config=config, inputs={"train": train}, run=draw)


def draw(config: SampleConfig, ctx: StepContext) -> None:
    """Draw config.count images.

    blocks/*.parquet (pixels, label), samples.npz (arr_0, uint8 NHWC, and of classes arr_1: the published evaluator's
    layout), and grid.png.
    """
    work = partial(draw_block, config, ctx.inputs["train"], ctx.resources)
    kept = Kept(ctx.output / BLOCKS, VERSION, ".parquet", encoded_images, decoded_images)
    blocks = map_blocks(ctx, work, config.count, block_size=BLOCK, kept=kept)
    images, labels = (np.concatenate(column) for column in zip(*blocks, strict=True))
    arrays = {"arr_0": images} if (labels == UNLABELLED).all() else {"arr_0": images, "arr_1": labels}
    np.savez_compressed(ctx.output / SAMPLES_FILE, **arrays)  # type: ignore[arg-type]  # its stub's allow_pickle
    (ctx.output / PROTOCOL_FILE).write_text(json.dumps(protocol(config, trained_config(ctx.inputs["train"]))))
    image_grid(images[: GRID_SIDE**2]).save(ctx.output / GRID_FILE)
    ctx.write_metrics({"samples": float(len(images))})


def protocol(config: SampleConfig, trained: TrainStepConfig) -> dict[str, str | int]:
    """What two sets of samples must share to be compared. T and the schedule are the row's own."""
    sampler = config.sampler
    steps = f"respacing {sampler.respacing}" if sampler.respacing else "all T steps"
    return {
        "samples": config.count,
        "sampler": f"{sampler.kind}, {steps}" + (f", eta {sampler.eta:g}" if sampler.kind == "ddim" else ""),
        "x_start": "clipped" if sampler.clip_denoised else "not clipped",
        "weights": weights_used(trained.train),
        "seed": config.seed,
        **({} if trained.model.num_classes is None else {"labels": config.labels}),
    }


def draw_block(config: SampleConfig, train: Path, resources: Resources, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """The block's images as uint8 (n, h, w, c), and their classes (n,), UNLABELLED where the network knows none."""
    device = worker_device(resources)
    model = load_trained(train, device=device)
    size, classes = model.network.config.image_size, model.network.config.num_classes
    index, network = torch.arange(*block, device=device), model.network
    y = None if classes is None else class_labels(config.labels, index=index, seed=config.seed, num_classes=classes)
    with model.in_use():
        x_start = sample(
            config.sampler,
            model.diffusion,
            model.schedule,
            network if y is None else partial(network, y=y),
            index=index,
            seed=config.seed,
            image_shape=(model.network.config.channels, size, size),
        )
    labels = np.full(len(index), UNLABELLED) if y is None else y.cpu().numpy()
    return to_uint8(x_start).cpu().numpy(), labels


def image_grid(images: np.ndarray, *, at_least: int = 512) -> Image.Image:
    """A square contact sheet of uint8 NHWC images, enlarged pixel by pixel to about `at_least` pixels a side."""
    side = int(np.ceil(np.sqrt(len(images))))
    height, width, channels = images.shape[1:]
    sheet = np.zeros((side * height, side * width, channels), dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = (number // side) * height, (number % side) * width
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    zoom = max(1, round(at_least / picture.width))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("sample", "Draw images from a trained model, training it first if it is not there."))
