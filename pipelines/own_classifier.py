"""Which network sees images that are far from photographs? A small classifier, trained on the data set itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.metrics.classifier import ClassifierFeatures
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.trunk import UNetConfig
from orchestrator.step import Step, StepContext
from pipelines.data import DataConfig
from pipelines.train_classifier import HeldOutConfig, TrainClassifierConfig, train, train_classifier_step
from pipelines.trained import MODEL_FILE

MEASUREMENTS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnClassifierConfig:
    """A classifier of clean images of the data set. A distance over it is named after it, and is no FID."""

    kind: Literal["classifier"] = "classifier"
    num_classes: int = 10
    """As many as the data set has."""
    model_channels: int = 32
    channel_mult: tuple[int, ...] = (1, 2)
    """The features have model_channels times the last of them."""
    num_res_blocks: int = 1
    images: int = 51_200
    """Seen in training; the weights of the lowest loss on held-out images stay. 99 % of 8x8 digits are then known."""
    batch_size: int = 128
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"features.num_classes={self.num_classes}: as many as the data set has, at least 2")
        if not self.channel_mult:
            raise ValueError("features.channel_mult=[]: at least one level, such as [1, 2]")

    def training(self, data: DataConfig) -> TrainClassifierConfig:
        """How it is trained on that data set. Raises ValueError where its images do not fit the network."""
        try:
            encoder = UNetConfig(
                image_size=data.image_size, channels=data.channels, model_channels=self.model_channels,
                channel_mult=self.channel_mult, num_res_blocks=self.num_res_blocks, attention_resolutions=(),
                num_heads=1, resampling="residual",
            )  # fmt: skip
            optimizer = TrainConfig(
                images=self.images, batch_size=self.batch_size, lr=self.lr, weight_decay=0.05, lr_anneal="adm",
                ema=EmaConfig(rates=()), reduction=TreeConfig(shards=1),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"the classifier of features.kind='classifier': {error}") from error
        every = max(1, self.images // self.batch_size // MEASUREMENTS)
        return TrainClassifierConfig(
            model=ClassifierConfig(encoder=encoder, num_classes=self.num_classes, pool="adaptive"),
            diffusion=DiffusionConfig(),
            train=optimizer,
            held_out=HeldOutConfig(every_images=every * self.batch_size),
            noised=False,
            seed=self.seed,
        )  # fmt: skip


def own_classifier_step(config: OwnClassifierConfig, *, dataset: Step) -> Step:
    """Its training as a step of a plan; one for all rows that share a data set. A guide's numbers are others."""
    step = train_classifier_step(config.training(dataset.config), dataset=dataset)
    return replace(step, run=train_alone, prefix="features_classifier_")


def train_alone(config: TrainClassifierConfig, ctx: StepContext) -> None:
    """On one worker, however many train the model: it is small."""
    train(config, replace(ctx, resources=replace(ctx.resources, workers=1, min_workers=None)))


def read_own_classifier(artifact: Path, *, device: str) -> ClassifierFeatures:
    """The network that the step left."""
    file = artifact / MODEL_FILE
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return ClassifierFeatures(NoisyClassifier.from_checkpoint(file), weights_sha256=sha256, device=device)
