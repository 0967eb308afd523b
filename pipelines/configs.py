"""What is one run? Everything that changes its numbers, in one frozen value; where and how it runs is not here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from diffusion.gaussian import DiffusionConfig
from diffusion.train_config import TrainConfig
from diffusion.unet import UNetConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import FeaturesConfig
from pipelines.nll import NllConfig
from pipelines.sample import SampleConfig
from pipelines.shards import Split
from pipelines.stages import Stage, check_drawing, check_enlarging, check_respacing
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
    reference: Split = "test"
    """Of the data set's images, those that samples are compared with: test, which training has not seen, or train, as
    both papers do it."""
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
        check_respacing("nll.respacing", self.nll.respacing, "diffusion", self.diffusion)
        self._check_milestones()
        self._check_stages()
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
        if self.train.lr_warmup_images > self.milestones[0]:
            raise ValueError(
                f"milestones={list(self.milestones)}: the first must not come before the end of "
                f"train.lr_warmup_images={self.train.lr_warmup_images}"
            )

    @property
    def is_guided(self) -> bool:
        """Whether a classifier steers."""
        return self.sample.guidance_scale > 0

    def _check_stages(self) -> None:
        model, classifier = Stage("model", self.model, "diffusion", self.diffusion), None
        if self.classifier is not None:
            classifier = Stage(
                "classifier.model", self.classifier.model, "classifier.diffusion", self.classifier.diffusion
            )
            if self.is_guided and (not self.classifier.noised or self.classifier.crop):
                raise ValueError(
                    f"sample.guidance_scale={self.sample.guidance_scale:g}: what steers sees noisy images of the "
                    f"model's own size: set classifier.noised=true and classifier.crop=false"
                )
        check_drawing(self.sample, model, classifier)
        if (second := self.upsampler) is not None:
            training = second.training
            stage = Stage(
                "upsampler.training.model", training.model, "upsampler.training.diffusion", training.diffusion
            )
            check_enlarging(
                second.sample, stage, seed_name="upsampler.sample.seed",
                respacing_name="upsampler.sample.sampler.respacing",
                sample=self.sample, model=model, classifier=classifier,
            )  # fmt: skip
            check_rate("upsampler.sample.ema", second.sample.ema, training.train.ema.rates)
            _check_seeds({"upsampler.training.seed": training.seed, "upsampler.sample.seed": second.sample.seed})
            if training.data.source != self.data.source:
                raise ValueError(
                    f"upsampler.training.data.source={training.data.source!r}, but data.source={self.data.source!r}: "
                    f"the second stage enlarges images of the same kind; set both to the same"
                )


def _check_seeds(seeds: dict[str, int]) -> None:
    for name, seed in seeds.items():
        if not 0 <= seed < 2**64:
            raise ValueError(f"{name}={seed}: must be between 0 and 2^64-1")
