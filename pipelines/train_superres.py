"""How is a network trained that makes images larger? As a diffusion model that is shown a small version of each.

python pipelines/train_superres.py tiny --store artifacts
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.objectives import SuperResObjective
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.train_config import TrainConfig
from orchestrator.step import Step, StepContext
from pipelines.data import DataConfig
from pipelines.train import examples_of, out_channels, seeded
from pipelines.train_on import run_training
from pipelines.trained import placed
from pipelines.training_parts import HeldOut, Training

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSuperResConfig:
    """All that decides the trained weights, beside the data."""

    model: SuperResConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int


def train_superres_step(config: TrainSuperResConfig, *, dataset: Step) -> Step:
    """Training as a step of a plan."""
    return Step(
        name="train_superres", version=VERSION, config=config, inputs={"dataset": dataset}, run=train,
        prefix="upsampler_",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperResRun:
    """One network that makes images larger: data of the larger size, network, and how it is trained."""

    data: DataConfig
    model: SuperResConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int = 0

    def __post_init__(self) -> None:
        unet = self.model.unet
        if (self.data.image_size, self.data.channels) != (unet.image_size, unet.channels):
            raise ValueError(
                f"data.image_size={self.data.image_size}, data.channels={self.data.channels}, but model.unet is for "
                f"{unet.image_size} pixels and {unet.channels} channels: set both to the same"
            )

    def step(self, *, dataset: Step) -> Step:
        """Its training."""
        config = TrainSuperResConfig(model=self.model, diffusion=self.diffusion, train=self.train, seed=self.seed)
        return train_superres_step(config, dataset=dataset)


def train(config: TrainSuperResConfig, ctx: StepContext) -> None:
    """Train on the workers the resources name; leaves model.safetensors: averaged weights, config in its header."""
    run_training(config, ctx, superres_training)


def superres_training(config: TrainSuperResConfig, device: str) -> Training:
    """What is trained."""
    channels = out_channels(config.model.unet, config.diffusion)
    network = placed(seeded(lambda: SuperResUNet(config.model, channels), seed=config.seed), device)
    schedule = build_schedule(config.diffusion).to(device)
    objective = SuperResObjective(config.diffusion, schedule, config.model.small_size)
    examples = examples_of(config.train, config.seed, device, labelled=config.model.unet.num_classes is not None)
    return Training(config.train, config.seed, network, objective, examples, HeldOut())


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name
    from pipelines.superres_runs import FAMILY

    run(command("train_superres", "Train one network that makes images larger.", FAMILY))
