"""What is one run? Everything that changes its numbers, in one frozen value; where and how it runs is not here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from diffusion.gaussian import DiffusionConfig
from diffusion.schedule import kept_timesteps
from diffusion.train_config import TrainConfig
from diffusion.unet import UNetConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import FeaturesConfig
from pipelines.nll import NllConfig
from pipelines.sample import SampleConfig
from pipelines.train_classifier import TrainClassifierConfig
from pipelines.trained import check_rate
from pipelines.upsample import UpsamplerConfig


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
    classifier: TrainClassifierConfig | None = None
    """What steers where sample.guidance_scale is more than 0; trained on the same images."""
    upsampler: UpsamplerConfig | None = None
    """A second stage, whose images are then the ones that are judged."""
    milestones: tuple[int, ...] = ()
    """Images seen at which training ends a step and the next goes on: what is evaluated there needs no training of its
    own, and a finished training can be made longer. No bit of the result depends on them."""
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
        if self.metrics.fewest_images > self.sample.count:
            raise ValueError(
                f"sample.count={self.sample.count}: the metrics and their intervals take at least "
                f"{self.metrics.fewest_images} samples"
            )
        check_rate("sample.ema", self.sample.ema, self.train.ema.rates)
        check_rate("nll.ema", self.nll.ema, self.train.ema.rates)
        _check_respacing("sample.sampler.respacing", self.sample.sampler.respacing, "diffusion", self.diffusion)
        _check_respacing("nll.respacing", self.nll.respacing, "diffusion", self.diffusion)
        self._check_milestones()
        self._check_guidance()
        if self.upsampler is not None:
            self._check_upsampler(self.upsampler)
        seeds = {"seed": self.seed, "nll.seed": self.nll.seed, "sample.seed": self.sample.seed}
        _check_seeds({**seeds, "metrics.seed": self.metrics.seed})

    def _check_milestones(self) -> None:
        if not self.milestones:
            return
        marks = (0, *self.milestones, self.train.images)
        if any(low >= high for low, high in pairwise(marks)) or any(mark % self.train.batch_size for mark in marks):
            raise ValueError(
                f"milestones={list(self.milestones)}: must rise, end below train.images={self.train.images}, and be "
                f"multiples of train.batch_size={self.train.batch_size}"
            )
        if self.train.lr_anneal != "none":
            raise ValueError(
                f"milestones={list(self.milestones)}: with train.lr_anneal={self.train.lr_anneal!r} the learning rate "
                f"falls towards the end, so a shorter training is no beginning of a longer one; leave one of them out"
            )

    @property
    def is_guided(self) -> bool:
        """Whether a classifier steers."""
        return self.sample.guidance_scale > 0

    def _check_guidance(self) -> None:
        if self.model.num_classes is None and not self.is_guided and self.sample.labels != "balanced":
            raise ValueError(
                f"sample.labels={self.sample.labels!r}: nothing is told classes; set model.num_classes, or leave it out"
            )
        if not self.is_guided:
            return
        scale = f"sample.guidance_scale={self.sample.guidance_scale:g}"
        if self.classifier is None:
            raise ValueError(f"{scale}: no classifier to steer by; set classifier, or the scale to 0")
        encoder = self.classifier.model.encoder
        if (encoder.image_size, encoder.channels) != (self.model.image_size, self.model.channels):
            raise ValueError(
                f"{scale}: the classifier sees {encoder.image_size} pixels and {encoder.channels} channels, and the "
                f"model draws {self.model.image_size} and {self.model.channels}; set both to the same"
            )
        if not self.classifier.noised or self.classifier.crop:
            raise ValueError(
                f"{scale}: what steers sees noisy images of the model's own size: set classifier.noised=true and "
                f"classifier.crop=false"
            )
        for name in ("num_timesteps", "schedule", "rescale_timesteps"):
            its, ours = getattr(self.classifier.diffusion, name), getattr(self.diffusion, name)
            if its != ours:
                raise ValueError(
                    f"{scale}: classifier.diffusion.{name}={its!r}, but diffusion.{name}={ours!r}: the classifier "
                    f"must know the model's noise; set both to the same"
                )
        known = self.model.num_classes
        if known is not None and known != self.classifier.model.num_classes:
            raise ValueError(
                f"classifier.model.num_classes={self.classifier.model.num_classes}, but model.num_classes={known}: "
                f"set both to the same"
            )

    def _check_upsampler(self, second: UpsamplerConfig) -> None:
        unet = second.model.unet
        if second.model.small_size != self.model.image_size or unet.channels != self.model.channels:
            raise ValueError(
                f"upsampler.model.small_size={second.model.small_size}, channels {unet.channels}: it enlarges what the "
                f"model draws, {self.model.image_size} pixels and {self.model.channels} channels"
            )
        guiding = self.classifier.model.num_classes if self.classifier is not None and self.is_guided else None
        told = self.model.num_classes or guiding
        if unet.num_classes is not None and unet.num_classes != told:
            raise ValueError(
                f"upsampler.model.unet.num_classes={unet.num_classes}, but the samples are of "
                f"{told or 'no'} classes: set it to that, or null"
            )
        if second.sample.seed == self.sample.seed:
            raise ValueError(
                f"upsampler.sample.seed={second.sample.seed}: that is sample.seed, whose noise it would see again; set "
                f"another"
            )
        _check_seeds({"upsampler.seed": second.seed, "upsampler.sample.seed": second.sample.seed})
        _check_respacing(
            "upsampler.sample.sampler.respacing", second.sample.sampler.respacing,
            "upsampler.diffusion", second.diffusion,
        )  # fmt: skip


def _check_respacing(name: str, respacing: str, process: str, diffusion: DiffusionConfig) -> None:
    steps = diffusion.num_timesteps
    try:
        kept_timesteps(steps, respacing)
    except ValueError as error:
        raise ValueError(f"{name}={respacing!r} with {process}.num_timesteps={steps}: {error}") from error


def _check_seeds(seeds: dict[str, int]) -> None:
    for name, seed in seeds.items():
        if not 0 <= seed < 2**64:
            raise ValueError(f"{name}={seed}: must be between 0 and 2^64-1")
