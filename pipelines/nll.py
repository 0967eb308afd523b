"""How well does a model predict held-out images? The variational bound on NLL in bits/dim, with its standard error.

python pipelines/nll.py tiny --store artifacts
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.nll import nll_estimate, nll_full, pilot
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block, map_blocks, worker_device
from pipelines.data import read_split
from pipelines.train import TrainedModel, load_trained, to_tensor, to_unit_range

VERSION = 1
BLOCK = 64  # images a worker evaluates at a time
PILOT_IMAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class NllConfig:
    """How the bound is measured: every term of every image, or an unbiased estimate from some of the terms."""

    draws: int | None = 64
    """Terms drawn per image by importance, beside L_0 and the prior, which are always included; None computes all T of
    them. Every term but the prior, L_0 too, is evaluated with one noise."""
    images: int | None = None
    """How many test images, in the data set's order; None takes all."""
    seed: int = 0
    """Seed of the noise: the same in every row of a table."""

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < 1:
            raise ValueError(f"nll.draws={self.draws}: must be at least 1, or null for the full loop over all T terms")
        if self.images is not None and self.images < 2:
            raise ValueError(f"nll.images={self.images}: a standard error needs at least 2 images; null takes all")


def nll_step(config: NllConfig, *, train: Step, dataset: Step) -> Step:
    """NLL as a step of a plan."""
    return Step(name="nll", version=VERSION, config=config, inputs={"train": train, "dataset": dataset}, run=measure)


def measure(config: NllConfig, ctx: StepContext) -> None:
    """Measure the bound on the test split; per-image values go to nll.npz."""
    images = len(read_split(ctx.inputs["dataset"], "test").images[: config.images])
    where = (ctx.inputs["train"], ctx.inputs["dataset"], ctx.resources)
    density = None
    if config.draws is not None:
        pilot_block = (0, min(PILOT_IMAGES, images))
        (density,) = ctx.backend.map(partial(measure_pilot, config, *where), [pilot_block], resources=ctx.resources)
    per_image = map_blocks(ctx, partial(measure_block, config, *where, density), images, block_size=BLOCK)
    np.savez(ctx.output / "nll.npz", nll_bpd=per_image)
    ctx.write_metrics(summary(per_image), protocol={"nll_bpd": protocol(config, len(per_image))})


def summary(per_image: np.ndarray) -> dict[str, float]:
    """Mean bits/dim, and its standard error: the images' own spread and the noise of their estimates together."""
    return {
        "nll_bpd": float(per_image.mean()),
        "nll_bpd_se": float(per_image.std(ddof=1) / math.sqrt(len(per_image))),
        "nll_images": float(len(per_image)),
    }


def protocol(config: NllConfig, images: int) -> dict[str, str | int]:
    """What two NLLs must share to be compared."""
    terms = "all T terms" if config.draws is None else f"L_0 and {config.draws} importance-drawn terms per image"
    return {
        "bound": terms,
        "split": "test",
        "images": images,
        "weights": "EMA",
        "x_start": "clipped",
        "seed": config.seed,
    }


def measure_pilot(config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block) -> Tensor:
    """The density from which the terms of all blocks are drawn, from the images of one."""
    model, x_start = _load(train, dataset, resources, block)
    return pilot(model.diffusion, model.schedule, model.network, x_start=x_start, seed=config.seed)


def measure_block(
    config: NllConfig, train: Path, dataset: Path, resources: Resources, density: Tensor | None, block: Block
) -> np.ndarray:
    """Bits/dim of the block's test images, float64."""
    model, x_start = _load(train, dataset, resources, block)
    index = torch.arange(*block, device=x_start.device)
    return _bits(model, config, density, x_start, index).double().cpu().numpy()


def _load(train: Path, dataset: Path, resources: Resources, block: Block) -> tuple[TrainedModel, Tensor]:
    """The model and the block's test images, on this worker's device."""
    device = worker_device(resources)
    images = read_split(dataset, "test").images[slice(*block)]
    return load_trained(train, device=device), to_unit_range(to_tensor(images)).to(device)


def _bits(model: TrainedModel, config: NllConfig, density: Tensor | None, x_start: Tensor, index: Tensor) -> Tensor:
    process = (model.diffusion, model.schedule, model.network)
    if density is None or config.draws is None:
        return nll_full(*process, x_start=x_start, index=index, seed=config.seed).total_bpd
    return nll_estimate(*process, x_start=x_start, index=index, seed=config.seed, density=density, draws=config.draws)


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("nll", "Measure a model's NLL in bits/dim on held-out images."))
