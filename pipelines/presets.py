"""Which set-ups are there? Each is a function that returns a whole RunConfig; studies vary it row by row."""

from __future__ import annotations

from collections.abc import Callable

from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.sampling import SamplerConfig
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.unet import UNetConfig
from pipelines.configs import RunConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import EfficientNetConfig
from pipelines.nll import DrawnTerms, NllConfig
from pipelines.sample import SampleConfig


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


PRESETS: dict[str, Callable[[], RunConfig]] = {"tiny": tiny, "reduced": reduced}
