"""What is one run? Everything that changes its numbers, in one frozen value; where and how it runs is not here."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.gaussian import DiffusionConfig
from diffusion.training import TrainConfig
from diffusion.unet import UNetConfig
from pipelines.data import DataConfig
from pipelines.evaluate import FeaturesConfig, MetricsConfig
from pipelines.nll import NllConfig
from pipelines.sample import SampleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One cell of a table: data, network, diffusion process, training, and how the result is judged."""

    data: DataConfig
    model: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    nll: NllConfig
    sample: SampleConfig
    features: FeaturesConfig
    metrics: MetricsConfig
    seed: int = 0
    """Seed of training: initial weights, order of the data, t and noise. Evaluation has seeds of its own."""

    def __post_init__(self) -> None:
        if self.model.image_size != self.data.image_size:
            raise ValueError(
                f"model.image_size={self.model.image_size}, but data.image_size={self.data.image_size}: "
                f"set both to the same size"
            )
        if self.model.channels != self.data.channels:
            raise ValueError(
                f"model.channels={self.model.channels}, but the images of {self.data.source} have "
                f"{self.data.channels}: set model.channels={self.data.channels}"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
