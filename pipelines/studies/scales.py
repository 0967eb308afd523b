"""How small can a study be made? The bases of its rows: on two CPU cores (tiny), on one GPU (reduced)."""

from __future__ import annotations

from dataclasses import replace

from diffusion.classifier import ClassifierConfig
from diffusion.ema import EmaConfig
from diffusion.sampling import SamplerConfig
from diffusion.superres import SuperResConfig
from diffusion.unet import UNetConfig
from pipelines.configs import RunConfig
from pipelines.own_classifier import OwnClassifierConfig
from pipelines.presets import reduced, tiny, tiny_guided
from pipelines.sample import SampleConfig
from pipelines.train_classifier import HeldOutConfig, TrainClassifierConfig
from pipelines.train_superres import SuperResRun
from pipelines.upsample import UpsampleConfig, UpsamplerConfig

CLASSES = 10


def tiny_steps() -> RunConfig:
    """Digits, and a chain that is short enough to be walked whole."""
    base = tiny()
    return replace(
        base, diffusion=replace(base.diffusion, num_timesteps=1000), sample=replace(base.sample, count=400)
    )  # fmt: skip


def tiny_schedules() -> RunConfig:
    """The same, with 50 steps where the paper has 250."""
    base = tiny_steps()
    return replace(base, sample=replace(base.sample, count=512, sampler=SamplerConfig(respacing="50")))


def reduced_schedules() -> RunConfig:
    """Fashion-MNIST, T = 1000 as in the paper."""
    base = reduced()
    return replace(base, diffusion=replace(base.diffusion, num_timesteps=1000, schedule="linear"))


def tiny_classes() -> RunConfig:
    """Digits of a wider network that knows their classes."""
    base = tiny()
    return replace(
        base,
        model=replace(base.model, model_channels=64, num_classes=CLASSES),
        train=replace(base.train, images=12_800),
        features=OwnClassifierConfig(),
        metrics=replace(base.metrics, neighbours=5),
    )


def reduced_classes() -> RunConfig:
    """Fashion-MNIST of a network that knows its classes."""
    base = reduced()
    return replace(
        base,
        model=replace(base.model, model_channels=96, num_classes=CLASSES),
        features=OwnClassifierConfig(channel_mult=(1, 2, 4)),
        metrics=replace(base.metrics, neighbours=5),
    )


def tiny_guidance() -> RunConfig:
    """Digits, guided; they are judged by a classifier of their own."""
    base = tiny_guided()
    sampler = replace(base.sample.sampler, respacing="50")
    return replace(base, sample=replace(base.sample, sampler=sampler), features=OwnClassifierConfig())


def reduced_guidance() -> RunConfig:
    """Fashion-MNIST, guided; it is judged by a classifier of its own."""
    base = reduced_classes()
    encoder = replace(
        base.model, model_channels=64, num_heads=None, num_head_channels=64, resampling="residual", dropout=0.0,
        num_res_blocks=2, num_classes=None,
    )  # fmt: skip
    return replace(base, classifier=_classifier(base, encoder, images=128 * 20_000, lr=3e-4))


def _classifier(base: RunConfig, encoder: UNetConfig, *, images: int, lr: float) -> TrainClassifierConfig:
    train = replace(
        base.train, images=images, lr=lr, weight_decay=0.05, lr_anneal="adm", ema=EmaConfig(rates=())
    )  # fmt: skip
    return TrainClassifierConfig(
        model=ClassifierConfig(encoder=encoder, num_classes=CLASSES), diffusion=base.diffusion, train=train,
        held_out=HeldOutConfig(every_images=images // 4 // base.train.batch_size * base.train.batch_size),
    )  # fmt: skip


def tiny_upsampling() -> RunConfig:
    """Digits of 4x4 pixels, guided, which a second network makes 8x8."""
    base = tiny_guidance()
    assert base.classifier is not None
    encoder = replace(base.classifier.model.encoder, image_size=4, attention_resolutions=(2,))
    classifier = replace(base.classifier, model=replace(base.classifier.model, encoder=encoder))
    return _with_second_stage(
        base, small_size=4, classifier=classifier, images=12_800, attention_resolutions=(2,)
    )  # fmt: skip


def reduced_upsampling() -> RunConfig:
    """Fashion-MNIST of 16x16 pixels, guided, which a second network makes 32x32."""
    base = reduced_guidance()
    assert base.classifier is not None
    encoder = replace(base.classifier.model.encoder, image_size=16, attention_resolutions=(8, 4))
    classifier = replace(base.classifier, model=replace(base.classifier.model, encoder=encoder))
    return _with_second_stage(
        base, small_size=16, classifier=classifier, images=128 * 50_000, attention_resolutions=(8, 4)
    )  # fmt: skip


def _with_second_stage(
    base: RunConfig, *, small_size: int, classifier: TrainClassifierConfig, images: int,
    attention_resolutions: tuple[int, ...],
) -> RunConfig:  # fmt: skip
    training = SuperResRun(
        data=base.data, model=SuperResConfig(unet=base.model, small_size=small_size), diffusion=base.diffusion,
        train=replace(base.train, images=images),
    )  # fmt: skip
    upsampler = UpsamplerConfig(training=training, sample=UpsampleConfig(sampler=base.sample.sampler))
    return replace(
        base,
        data=replace(base.data, image_size=small_size),
        model=replace(base.model, image_size=small_size, attention_resolutions=attention_resolutions),
        classifier=classifier,
        upsampler=upsampler,
        sample=replace(base.sample, guidance_scale=1.0),
    )


def tiny_architecture() -> RunConfig:
    """Digits of a network with one block a level, one head, and attention at the smallest size alone."""
    base = tiny()
    model = replace(base.model, model_channels=64, num_heads=1, attention_resolutions=(4,), num_classes=CLASSES)
    return replace(base, model=model, train=replace(base.train, images=128 * 120), sample=_few_steps(base))


def _few_steps(base: RunConfig) -> SampleConfig:
    """For wide networks: a quarter of the steps that other tiny studies take."""
    return replace(base.sample, sampler=replace(base.sample.sampler, respacing="25"))


def reduced_architecture() -> RunConfig:
    """Fashion-MNIST of a network of 96 channels and two blocks a level, otherwise as table 1's base."""
    base = reduced()
    model = replace(
        base.model, model_channels=96, num_res_blocks=2, num_heads=1, attention_resolutions=(8,), dropout=0.0,
        num_classes=CLASSES,
    )  # fmt: skip
    return replace(base, model=model, train=replace(base.train, images=128 * 48_000))


def with_attention(base: RunConfig) -> RunConfig:
    """Tables 2 and 3 go on from what table 1 keeps: attention at three sizes and BigGAN's blocks."""
    channels = 64 if base.model.model_channels <= 64 else 128
    model = replace(
        base.model, model_channels=channels, attention_resolutions=base.model.sizes[-3:], resampling="residual"
    )  # fmt: skip
    return replace(base, model=model)


def with_head_channels(base: RunConfig) -> RunConfig:
    """Table 3's: 64 channels a head."""
    attended = with_attention(base)
    return replace(attended, model=replace(attended.model, num_heads=None, num_head_channels=64))


def tiny_short() -> RunConfig:
    """Digits, trained so briefly that 7.5 times as long is minutes, too."""
    base = tiny()
    return replace(base, train=replace(base.train, images=128 * 60))


def reduced_short() -> RunConfig:
    """Fashion-MNIST, trained so briefly that 7.5 times as long is a night, at most."""
    base = reduced()
    return replace(base, train=replace(base.train, images=128 * 20_000))


def tiny_scaling() -> RunConfig:
    """Digits, trained briefly: the widest network takes sixteen times the narrowest's compute."""
    base = tiny()
    return replace(base, train=replace(base.train, images=128 * 96), sample=_few_steps(base))
