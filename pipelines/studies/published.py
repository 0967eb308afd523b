"""What did the papers train? Their set-ups, with every hyper-parameter that they print (PAPERS.md, section 6).

The images are the user's to bring: --data NAME takes the place of UNNAMED.
"""

from __future__ import annotations

from dataclasses import replace

from diffusion.classifier import ClassifierConfig
from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.published import PUBLISHED
from diffusion.sampling import SamplerConfig
from diffusion.superres import SuperResConfig
from diffusion.train_config import LossScaleConfig, TrainConfig
from diffusion.unet import UNetConfig
from pipelines.configs import RunConfig
from pipelines.data import DataConfig
from pipelines.evaluate import MetricsConfig
from pipelines.features import InceptionConfig
from pipelines.nll import AllTerms, NllConfig
from pipelines.sample import SampleConfig
from pipelines.train_classifier import HeldOutConfig, TrainClassifierConfig
from pipelines.train_superres import SuperResRun
from pipelines.upsample import UpsampleConfig, UpsamplerConfig

UNNAMED = "0" * 64
"""Stands for the images until they are named."""
SAMPLES = 50_000
IDDPM_BATCH, ADM_BATCH = 128, 256


def images(size: int) -> DataConfig:
    """The user's, in colour, with a split of their own."""
    return DataConfig(source="files", content=UNNAMED, image_size=size, channels=3, test_percent=None)


def iddpm(name: str, *, iterations: int, lr: float = 1e-4, batch: int = IDDPM_BATCH) -> RunConfig:
    """A model of Improved DDPM by its file's name: Adam, EMA 0.9999, no flips, all T steps, 50,000 samples."""
    model = PUBLISHED[name]
    assert isinstance(model.network, UNetConfig)
    return RunConfig(
        data=images(model.network.image_size),
        model=model.network,
        diffusion=model.diffusion,
        train=TrainConfig(images=iterations * batch, batch_size=batch, lr=lr),
        nll=NllConfig(terms=AllTerms()),
        sample=SampleConfig(count=SAMPLES),
        features=InceptionConfig(),
        metrics=MetricsConfig(kid_subset_size=1000, neighbours=5),
        reference="train",
    )


def cifar10() -> RunConfig:
    """Table 2 of Improved DDPM: CIFAR-10, 500K iterations."""
    return iddpm("cifar10_uncond_50M_500K", iterations=500_000)


def imagenet64() -> RunConfig:
    """Table 1 of Improved DDPM: ImageNet 64x64, 200K iterations, 10,000 samples."""
    base = iddpm("imagenet64_uncond_100M_1500K", iterations=200_000)
    return replace(base, sample=SampleConfig(count=10_000))


def class_conditional64() -> RunConfig:
    """Table 4 of Improved DDPM: the large model; 250 steps, batch 2048."""
    base = iddpm("imagenet64_cond_270M_250K", iterations=250_000, lr=3e-4, batch=2048)
    return replace(base, sample=SampleConfig(count=SAMPLES, sampler=SamplerConfig(respacing="250"), labels="drawn"))


def adm(
    network: UNetConfig, diffusion: DiffusionConfig, *, iterations: int, lr: float = 1e-4, batch: int = ADM_BATCH
) -> RunConfig:
    """A model of ADM: Adam, EMA 0.9999, flips, 250 steps, 50,000 samples of classes drawn evenly, k = 3 in float16.

    All but the one of 512 pixels were trained in fp16.
    """
    return RunConfig(
        data=images(network.image_size),
        model=network,
        diffusion=diffusion,
        train=TrainConfig(
            images=iterations * batch, batch_size=batch, lr=lr, flip=True,
            precision="float32" if network.image_size == 512 else "fp16",
        ),
        nll=NllConfig(images=2_000),
        sample=SampleConfig(
            count=SAMPLES, sampler=SamplerConfig(respacing="250"),
            labels="balanced" if network.num_classes is None else "drawn",
        ),
        features=InceptionConfig(),
        metrics=MetricsConfig(kid_subset_size=1000, neighbours=3, distances="published"),
        reference="train",
    )  # fmt: skip


def published_adm(name: str, *, iterations: int, lr: float = 1e-4, batch: int = ADM_BATCH) -> RunConfig:
    """One of ADM's published models by its file's name."""
    model = PUBLISHED[name]
    assert isinstance(model.network, UNetConfig)
    return adm(model.network, model.diffusion, iterations=iterations, lr=lr, batch=batch)


def classifier(
    name: str, *, iterations: int, lr: float = 3e-4, batch: int = ADM_BATCH, weight_decay: float = 0.05
) -> TrainClassifierConfig:
    """One of ADM's classifiers by its file's name: AdamW, annealed to 0, no EMA."""
    model = PUBLISHED[name]
    assert isinstance(model.network, ClassifierConfig)
    return TrainClassifierConfig(
        model=model.network,
        diffusion=model.diffusion,
        train=TrainConfig(
            images=iterations * batch, batch_size=batch, lr=lr, weight_decay=weight_decay, lr_anneal="adm", flip=True,
            ema=EmaConfig(rates=()), precision="fp16", loss_scale=LossScaleConfig(initial_log2=16.0),
        ),
        held_out=HeldOutConfig(every_images=10_000 * batch, images=10_000),
    )  # fmt: skip


def upsampler(name: str, *, iterations: int) -> UpsamplerConfig:
    """One of ADM's second stages by its file's name; 250 steps."""
    model = PUBLISHED[name]
    assert isinstance(model.network, SuperResConfig)
    train = TrainConfig(
        images=iterations * ADM_BATCH, batch_size=ADM_BATCH, lr=1e-4, flip=True, precision="fp16"
    )  # fmt: skip
    training = SuperResRun(
        data=images(model.network.unet.image_size), model=model.network, diffusion=model.diffusion, train=train
    )
    return UpsamplerConfig(training=training, sample=UpsampleConfig(sampler=SamplerConfig(respacing="250")))
