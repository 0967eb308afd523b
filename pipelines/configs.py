"""What is one run? Everything that changes its numbers, in one frozen value; where and how it runs is not here."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.gaussian import DiffusionConfig
from diffusion.schedule import kept_timesteps
from diffusion.train_config import TrainConfig
from diffusion.unet import UNetConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import FeaturesConfig
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
        if self.metrics.kid_subset_size > self.sample.count:
            raise ValueError(
                f"metrics.kid_subset_size={self.metrics.kid_subset_size}: must be at most "
                f"sample.count={self.sample.count}; lower the one or raise the other"
            )
        if self.model.num_classes is None and self.sample.labels != "balanced":
            raise ValueError(
                f"sample.labels={self.sample.labels!r}: the network is told no classes; set model.num_classes, or "
                f"leave it out"
            )
        if self.metrics.fewest_images > self.sample.count:
            raise ValueError(
                f"sample.count={self.sample.count}: the metrics and their intervals take at least "
                f"{self.metrics.fewest_images} samples"
            )
        self._check_respacing()
        self._check_seeds()

    def _check_respacing(self) -> None:
        for name, respacing in (
            ("sample.sampler.respacing", self.sample.sampler.respacing),
            ("nll.respacing", self.nll.respacing),
        ):
            try:
                kept_timesteps(self.diffusion.num_timesteps, respacing)
            except ValueError as error:
                raise ValueError(
                    f"{name}={respacing!r} with diffusion.num_timesteps={self.diffusion.num_timesteps}: {error}"
                ) from error

    def _check_seeds(self) -> None:
        seeds = {"seed": self.seed, "nll.seed": self.nll.seed, "sample.seed": self.sample.seed}
        for name, seed in {**seeds, "metrics.seed": self.metrics.seed}.items():
            if not 0 <= seed < 2**64:
                raise ValueError(f"{name}={seed}: must be between 0 and 2^64-1")
