"""Which set-ups are there? Each is a function that returns a whole RunConfig; studies vary it row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffusion.classifier import ClassifierConfig
from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.sampling import SamplerConfig
from diffusion.superres import SuperResConfig
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.unet import UNetConfig
from pipelines.configs import RunConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import EfficientNetConfig
from pipelines.nll import DrawnTerms, NllConfig
from pipelines.sample import SampleConfig
from pipelines.train_classifier import HeldOutConfig, TrainClassifierConfig
from pipelines.train_superres import SuperResRun
from pipelines.upsample import UpsampleConfig, UpsamplerConfig


def tiny() -> RunConfig:
    """Handwritten digits at 8x8 on two CPU cores, in minutes: the whole way, at toy scale."""
    return RunConfig(
        data=DataConfig(source="digits", image_size=8),
        model=UNetConfig(
            image_size=8, channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(4,), num_heads=2,
        ),
        diffusion=DiffusionConfig(),
        # The papers average over 10,000 steps of hundreds of thousands; a run of a few hundred needs a shorter memory.
        train=TrainConfig(
            batch_size=128, lr=2e-3, ema=EmaConfig(rates=(0.98,)), images=28_160,
            reduction=TreeConfig(shards=2),  # for one worker or two: four small parts take 1.4 times as long
        ),
        nll=NllConfig(terms=DrawnTerms(draws=10)),
        sample=SampleConfig(count=512, sampler=SamplerConfig(kind="ancestral", respacing="100")),
        features=EfficientNetConfig(size=64),
        metrics=MetricsConfig(kid_subset_size=200),
    )  # fmt: skip


def tiny_guided() -> RunConfig:
    """The same digits, of a network that knows their classes; a classifier steers from sample.guidance_scale on."""
    base = tiny()
    encoder = replace(base.model, num_heads=None, num_head_channels=16, resampling="residual")
    classifier = TrainClassifierConfig(
        model=ClassifierConfig(encoder=encoder, num_classes=10),
        diffusion=base.diffusion,
        train=replace(
            base.train, images=12_800, lr=1e-3, weight_decay=0.05, lr_anneal="adm", ema=EmaConfig(rates=())
        ),
        held_out=HeldOutConfig(every_images=3_200),
    )  # fmt: skip
    return replace(base, model=replace(base.model, num_classes=10), classifier=classifier)


def tiny_upsampled() -> RunConfig:
    """Digits of 4x4 pixels, which a second network makes 8x8."""
    base = tiny()
    training = SuperResRun(
        data=base.data,
        model=SuperResConfig(unet=base.model, small_size=4),
        diffusion=base.diffusion,
        train=replace(base.train, images=12_800),
    )
    upsampler = UpsamplerConfig(training=training, sample=UpsampleConfig(sampler=base.sample.sampler))
    small = replace(base.model, image_size=4, attention_resolutions=(2,))
    return replace(base, data=replace(base.data, image_size=4), model=small, upsampler=upsampler)


def fashion() -> RunConfig:
    """Fashion-MNIST at its 28x28 on CPU cores: an hour a run on one of them."""
    base = tiny()
    return replace(
        base,
        data=DataConfig(source="fashion-mnist", image_size=28, test_percent=None),
        model=replace(base.model, image_size=28, channel_mult=(1, 2, 2), attention_resolutions=(7,)),
        train=replace(base.train, lr=1e-3, ema=EmaConfig(rates=(0.99,)), images=102_400),
        nll=NllConfig(terms=DrawnTerms(draws=10), images=2_000),
        sample=SampleConfig(count=10_000, sampler=SamplerConfig(kind="ancestral", respacing="25")),
        metrics=MetricsConfig(kid_subset_size=1000),
    )


def reduced() -> RunConfig:
    """Fashion-MNIST at 32x32 with IDDPM's CIFAR-10 network at half its width: one GPU, hours."""
    return RunConfig(
        data=DataConfig(source="fashion-mnist", image_size=32, test_percent=None),
        model=UNetConfig(
            image_size=32, channels=1, model_channels=64, channel_mult=(1, 2, 2, 2), num_res_blocks=3,
            attention_resolutions=(16, 8), num_heads=4, dropout=0.3,
        ),
        diffusion=DiffusionConfig(),
        train=TrainConfig(batch_size=128, lr=1e-4, images=128 * 100_000),
        nll=NllConfig(),
        sample=SampleConfig(count=10_000, sampler=SamplerConfig(kind="ancestral", respacing="250")),
        features=EfficientNetConfig(size=224),
        metrics=MetricsConfig(kid_subset_size=1000),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "tiny-guided": tiny_guided,
    "tiny-upsampled": tiny_upsampled,
    "fashion": fashion,
    "reduced": reduced,
}
