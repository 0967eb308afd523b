"""Which variance did a model learn? The fraction of its range that it chooses for held-out images, from t to t."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffusion.variance_fraction import check_learned_range, variance_fractions
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import WORKING, Arrays, Block, kept_arrays, map_blocks
from pipelines.nll import load_block
from pipelines.shards import count_images
from pipelines.trained import Origin

VERSION = 1
BLOCK = 64  # images a worker evaluates at a time
VARIANCES_FILE = "variances.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class VariancesConfig:
    """On what a learned variance is looked at."""

    images: int = 128
    """How many test images, in the data set's order."""
    points: int = 100
    """At how many t, spaced evenly in log(t + 1): near t = 0 the two bounds are far apart."""
    seed: int = 0
    """Seed of the noise: the same for every model."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.points < 2:
            raise ValueError(
                f"variances.images={self.images}, variances.points={self.points}: at least 1 image, and 2 points, the "
                f"ends of the chain"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"variances.seed={self.seed}: must be between 0 and 2^64-1")


def variances_step(config: VariancesConfig, *, train: Step, dataset: Step) -> Step:
    """Measuring it as a step. Raises ValueError for a model that learns no range."""
    check_learned_range(train.config.diffusion)
    return Step(
        name="variances", version=VERSION, config=config, inputs={"train": train, "dataset": dataset}, run=measure
    )


def check_images(config: VariancesConfig, dataset: Path) -> None:
    """Raises ValueError when the data set has fewer held-out images than are asked for."""
    held_out = count_images(dataset, "test")
    if config.images > held_out:
        raise ValueError(
            f"variances.images={config.images}: there are {held_out} held-out images; ask for at most that"
        )


def measure(config: VariancesConfig, ctx: StepContext) -> None:
    """Measure it on the test split: variances.npz has timestep (k,), and fraction (images, k), a mean over pixels."""
    check_images(config, ctx.inputs["dataset"])
    origin = Origin.read(ctx.inputs["train"])
    steps = measured_steps(config, origin.diffusion.num_timesteps)
    work = partial(measure_block, config, ctx.inputs["train"], ctx.inputs["dataset"], ctx.resources)
    kept = kept_arrays(ctx.output / WORKING / "blocks", VERSION, lambda one: {"fraction": one}, _fraction)
    fraction = np.concatenate(map_blocks(ctx, work, config.images, block_size=BLOCK, kept=kept))
    np.savez(ctx.output / VARIANCES_FILE, timestep=steps, fraction=fraction)
    said = {"variance_fraction": float(fraction.mean()), "variance_images": float(len(fraction))}
    ctx.write_metrics(said, protocol={"variance_fraction": protocol(config, origin)})


def _fraction(arrays: Arrays) -> np.ndarray:
    return arrays["fraction"]


def measured_steps(config: VariancesConfig, num_timesteps: int) -> np.ndarray:
    """The t at which it is measured, ascending (int64); fewer than asked for where they would repeat."""
    return np.unique(np.geomspace(1, num_timesteps, config.points).round().astype(np.int64)) - 1


def protocol(config: VariancesConfig, origin: Origin) -> dict[str, str | int]:
    """What two of them must share to be compared."""
    return {
        "mean": f"over images, pixels, and {config.points} t spaced evenly in log(t + 1)",
        "split": "test",
        "images": config.images,
        "weights": origin.weights(None),
        "seed": config.seed,
    }


def measure_block(
    config: VariancesConfig, train: Path, dataset: Path, resources: Resources, block: Block
) -> np.ndarray:
    """The fractions of the block's test images, (n, k)."""
    model, x_start, y = load_block(train, dataset, resources, block)
    steps = torch.from_numpy(measured_steps(config, model.schedule.num_timesteps)).to(x_start.device)
    with model.in_use():
        found = variance_fractions(
            model.diffusion, model.schedule, model.network, x_start=x_start, y=y, steps=steps, seed=config.seed,
            index=torch.arange(*block, device=x_start.device),
        )  # fmt: skip
    return found.cpu().numpy()
