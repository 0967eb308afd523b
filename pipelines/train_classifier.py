"""How is a classifier trained that sees through noise? On x_t of labelled images; the weights of its best day stay.

python pipelines/train_classifier.py tiny --store artifacts
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from diffusion.augment import flipped, random_crop, whole
from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.objectives import ClassifierObjective, Examples
from diffusion.reduction import world_size
from diffusion.train_config import AllReduceConfig, TrainConfig
from diffusion.transfer import sent
from orchestrator.step import Step, StepContext
from pipelines.decoded import MIB, decoded_split
from pipelines.held_out import BLOCK, BestByLoss
from pipelines.readers import Batch
from pipelines.train import seeded, to_unit_range
from pipelines.train_on import run_training
from pipelines.trained import placed
from pipelines.training_parts import HeldOut, Training

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutConfig:
    """How a classifier is judged while it trains."""

    every_images: int
    """Measured whenever so many more images have been seen, and at the end."""
    images: int | None = None
    """How many test images, in the data set's order; null: all."""

    def __post_init__(self) -> None:
        if self.every_images < 1 or (self.images is not None and self.images < 1):
            raise ValueError(
                f"held_out.every_images={self.every_images}, held_out.images={self.images}: both must be at least 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainClassifierConfig:
    """All that decides the trained weights, beside the data."""

    model: ClassifierConfig
    diffusion: DiffusionConfig
    """The process whose x_t it sees: that of the model it is to guide."""
    train: TrainConfig
    held_out: HeldOutConfig
    """By which the weights that stay are chosen."""
    noised: bool = True
    """Without it a plain classifier of clean images."""
    crop: bool = False
    """Random crops of images that are prepared larger (augment.py), as published."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.held_out.every_images % self.train.batch_size:
            raise ValueError(
                f"held_out.every_images={self.held_out.every_images}: must be a multiple of train.batch_size="
                f"{self.train.batch_size}"
            )
        if isinstance(self.train.reduction, AllReduceConfig) and self.train.reduction.sharded:
            raise ValueError(
                "train.reduction.sharded=true: workers measure different held-out images, for which each needs the "
                "whole classifier; set it to false"
            )


def train_classifier_step(config: TrainClassifierConfig, *, dataset: Step) -> Step:
    """Training as a step of a plan."""
    return Step(
        name="train_classifier", version=VERSION, config=config, inputs={"dataset": dataset}, run=train,
        prefix="classifier_",
    )  # fmt: skip


def train(config: TrainClassifierConfig, ctx: StepContext) -> None:
    """Train on the workers the resources name; leaves model.safetensors: the weights of the lowest held-out loss."""
    build = partial(classifier_training, dataset=ctx.inputs["dataset"], memory_mib=ctx.resources.data_mib)
    run_training(config, ctx, build)


def classifier_training(config: TrainClassifierConfig, device: str, *, dataset: Path, memory_mib: int) -> Training:
    """What is trained."""
    network = placed(seeded(lambda: NoisyClassifier(config.model), seed=config.seed), device)
    objective = ClassifierObjective(build_schedule(config.diffusion).to(device), noised=config.noised)
    held_out = _held_out(config, network, objective, device, dataset, memory_mib=memory_mib)
    size, flip, seed = config.model.encoder.image_size, config.train.flip, config.seed

    def examples(stored: Batch, step: int, index: Tensor) -> Examples:
        images = sent(stored.images, device)
        if config.crop:
            images = random_crop(images, image_size=size, seed=seed, step=step, index=index.cpu())
        if flip:
            images = flipped(images, seed=seed, step=step, index=index)
        return Examples(to_unit_range(images), index, sent(stored.labels, device))

    return Training(config.train, seed, network, objective, examples, held_out)


def _held_out(
    config: TrainClassifierConfig, network: NoisyClassifier, objective: ClassifierObjective, device: str, dataset: Path,
    *, memory_mib: int,
) -> HeldOut:  # fmt: skip
    with closing(decoded_split(dataset, "test", memory_bytes=memory_mib * MIB)) as test:
        count = len(test.pixels) if config.held_out.images is None else config.held_out.images
        images, labels = test.pixels[:count].copy(), test.labels[:count].copy()
    if len(images) < count or len(images) <= BLOCK * (world_size() - 1):
        raise ValueError(
            f"held_out.images={config.held_out.images}: the data set holds out {len(images)}; ask for at most that, "
            f"and for {world_size()} workers, who share them in blocks of {BLOCK}, there must be more than "
            f"{BLOCK * (world_size() - 1)}"
        )
    size = config.model.encoder.image_size

    def prepare(stored: Tensor) -> Tensor:
        return to_unit_range(whole(stored, image_size=size) if config.crop else stored)

    return BestByLoss(
        network, objective, images, labels, prepare=prepare, precision=config.train.precision, device=device,
        every_steps=config.held_out.every_images // config.train.batch_size,
    )  # fmt: skip


if __name__ == "__main__":
    from pipelines.classifier_runs import FAMILY
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("train_classifier", "Train one noisy classifier.", FAMILY))
