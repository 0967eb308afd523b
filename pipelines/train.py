"""How is one diffusion model trained? A step that goes on from its own checkpoints, on one worker or many.

python pipelines/train.py tiny --store artifacts --set diffusion.loss=hybrid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.augment import flipped
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.train_config import TrainConfig
from diffusion.transfer import sent
from diffusion.unet import UNet, UNetConfig
from orchestrator.step import Step, StepContext
from pipelines.readers import Batch
from pipelines.train_on import run_training
from pipelines.trained import TrainStepConfig, placed
from pipelines.training_parts import HeldOut, Training

VERSION = 5

N = TypeVar("N")


def train_step_of(
    model: UNetConfig, diffusion: DiffusionConfig, train_config: TrainConfig, seed: int, *, dataset: Step,
    milestones: tuple[int, ...] = (),
) -> Step:  # fmt: skip
    """Training as a step of a plan; with milestones, as the last of several that go on from each other."""
    step: Step | None = None
    for images in (*milestones, train_config.images):
        config = TrainStepConfig(
            model=model, diffusion=diffusion, train=replace(train_config, images=images), seed=seed
        )
        inputs = {"dataset": dataset} if step is None else {"dataset": dataset, "start": step}
        step = Step(name="train", version=VERSION, config=config, inputs=inputs, run=train)
    assert step is not None
    return step


def train(config: TrainStepConfig, ctx: StepContext) -> None:
    """Train on the workers the resources name; leaves model.safetensors: averaged weights, config in its header.

    Averages at further rates stand beside it, as ema_{rate}.safetensors.
    """
    run_training(config, ctx, diffusion_training)


def diffusion_training(config: TrainStepConfig, device: str) -> Training:
    """What is trained: a diffusion model, told the class of each image where it has classes."""
    network = placed(build_network(config.model, config.diffusion, seed=config.seed), device)
    objective = DiffusionObjective(config.diffusion, build_schedule(config.diffusion).to(device))
    examples = examples_of(config.train, config.seed, device, labelled=config.model.num_classes is not None)
    return Training(config.train, config.seed, network, objective, examples, HeldOut())


def examples_of(
    train: TrainConfig, seed: int, device: str, *, labelled: bool
) -> Callable[[Batch, int, Tensor], Examples]:
    """How stored images become what a network is trained on: sent to the device, mirrored by choice, normalised."""

    def examples(stored: Batch, step: int, index: Tensor) -> Examples:
        images = sent(stored.images, device)
        if train.flip:
            images = flipped(images, seed=seed, step=step, index=index)
        return Examples(to_unit_range(images), index, sent(stored.labels, device) if labelled else None)

    return examples


def build_network(model: UNetConfig, diffusion: DiffusionConfig, *, seed: int) -> UNet:
    """The U-Net with initial weights that are a function of the seed."""
    return seeded(lambda: UNet(model, out_channels=out_channels(model, diffusion)), seed=seed)


def out_channels(model: UNetConfig, diffusion: DiffusionConfig) -> int:
    """Of a network that predicts the mean, and the variance where it is learned."""
    return model.channels * (2 if diffusion.learns_variance else 1)


def seeded(build: Callable[[], N], *, seed: int) -> N:
    """What build() gives when torch's generator begins at the seed; the generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def to_tensor(images: Any) -> Tensor:
    """uint8 (n, h, w, c) array -> uint8 (n, c, h, w) tensor."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], as published: pixel / 127.5 - 1."""
    return images.float().div_(127.5).sub_(1)  # in place: new memory costs a CPU more than the arithmetic


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("train", "Train one diffusion model."))
