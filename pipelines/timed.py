"""What of a study's work is timed? The very things its steps repeat, on networks of chance: no number is looked at.

Two of them that only differ in what costs no time, such as a seed or T, are equal, and are timed once. This file has
training; timed_evaluation.py the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.flops import Cost, compute_of
from diffusion.gaussian import VLB_WEIGHT, build_schedule
from diffusion.objectives import ClassifierObjective
from diffusion.precision import allow_tf32
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet
from orchestrator.step import Resources
from pipelines.devices import worker_device
from pipelines.readers import Batch
from pipelines.train import diffusion_training, examples_of, out_channels, seeded
from pipelines.train_classifier import TrainClassifierConfig
from pipelines.train_superres import TrainSuperResConfig, superres_training
from pipelines.trained import TrainStepConfig, placed
from pipelines.training_parts import HeldOut, Training

SHORT_CHAIN = 1000  # steps of the chain in which timed networks are called: any other costs as much a step

TrainedBy = TrainStepConfig | TrainClassifierConfig | TrainSuperResConfig
AnyNetwork = UNetConfig | SuperResConfig | ClassifierConfig
Repeat = Callable[[], float]
"""Does the thing, and returns how often; less than once where something smaller stands for it."""


class Timed(Protocol):
    """Something that steps repeat. Hashable, and the same wherever it costs the same."""

    @property
    def group(self) -> str:
        """A kind of thing, for people: within it, time goes roughly with the FLOPs."""

    @property
    def flops(self) -> float:
        """Of doing it once."""

    def prepare(self, resources: Resources) -> Repeat:
        """On a worker. What this does once, a step of a study does once, too."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A worker's part of one step of a training, without what workers tell each other."""

    config: TrainedBy
    """As timed_training leaves it."""
    workers: int

    @property
    def group(self) -> str:
        """See Timed."""
        if isinstance(self.config, TrainClassifierConfig):
            return "training of a classifier"
        return "training of an upsampler" if isinstance(self.config, TrainSuperResConfig) else "training"

    @property
    def flops(self) -> float:
        """See Timed."""
        return self.config.train.batch_size / self.workers * cost_of(self.config).training_flops

    def prepare(self, resources: Resources) -> Repeat:
        """See Timed."""
        device = worker_device(resources)
        config = replace(self.config, train=_share(self.config.train, self.workers))
        allow_tf32(config.train.tf32)
        training = _training(config, device)
        network = training.network
        state = build_train_state(config.train, network, num_timesteps=config.diffusion.num_timesteps)
        module = torch.compile(network, dynamic=False) if config.train.compile else network
        count, unet = config.train.batch_size, unet_of(config)
        images = torch.randint(0, 256, (count, unet.channels, unet.image_size, unet.image_size), dtype=torch.uint8)
        stored, index = Batch(images, torch.zeros(count, dtype=torch.int64)), torch.arange(count, device=device)

        def repeat() -> float:
            examples = training.examples(stored, state.step, index)
            train_step(state, module, training.objective, examples, step=state.step, seed=0)  # type: ignore[arg-type]
            return 1.0

        return repeat


@cache
def cost(network: AnyNetwork, channels: int = 1) -> Cost:
    """Of one forward of one image, which leads to so many channels where it leads to an image."""
    if isinstance(network, ClassifierConfig):
        return compute_of(lambda: NoisyClassifier(network))
    if isinstance(network, SuperResConfig):
        return compute_of(lambda: SuperResUNet(network, channels))
    return compute_of(lambda: UNet(network, channels))


def cost_of(config: TrainedBy) -> Cost:
    """Of what that training trains."""
    channels = 1 if isinstance(config, TrainClassifierConfig) else out_channels(unet_of(config), config.diffusion)
    return cost(config.model, channels)


def unet_of(config: TrainedBy) -> UNetConfig:
    """The U-Net, or the half of one, that is trained."""
    if isinstance(config, TrainClassifierConfig):
        return config.model.encoder
    return config.model.unet if isinstance(config, TrainSuperResConfig) else config.model


def timed_training(config: TrainedBy, *, workers: int) -> TrainingStep:
    """What a step of that training is timed by: without what costs no time."""
    rates = tuple(0.9 + number / 1000 for number in range(len(config.train.ema.rates)))
    train = replace(
        config.train, images=config.train.batch_size, lr=1e-4, lr_warmup_images=0, lr_anneal="none", weight_decay=0.0,
        ema=replace(config.train.ema, rates=rates),
    )  # fmt: skip
    process = replace(config.diffusion, schedule="linear", vlb_weight=VLB_WEIGHT)
    if train.timesteps.kind == "uniform":
        process = replace(process, num_timesteps=SHORT_CHAIN)
    return TrainingStep(config=replace(config, train=train, diffusion=process, seed=0), workers=workers)


def _share(train: TrainConfig, workers: int) -> TrainConfig:
    """What one of so many workers has of a batch."""
    size, reduction = train.batch_size // workers, train.reduction
    if isinstance(reduction, TreeConfig):
        reduction = replace(reduction, shards=reduction.shards // workers)
    elif reduction.sharded:
        reduction = replace(reduction, sharded=False)
    return replace(train, images=size, batch_size=size, reduction=reduction)


def _training(config: TrainedBy, device: str) -> Training:
    if isinstance(config, TrainStepConfig):
        return diffusion_training(config, device)
    if isinstance(config, TrainSuperResConfig):
        return superres_training(config, device)
    network = placed(seeded(lambda: NoisyClassifier(config.model), seed=0), device)
    objective = ClassifierObjective(build_schedule(config.diffusion).to(device), noised=config.noised)
    examples = examples_of(config.train, 0, device, labelled=True)
    return Training(config.train, 0, network, objective, examples, HeldOut())
