"""Do the networks that draw together belong together? A model, what steers it, what makes its images larger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from diffusion.classifier import ClassifierConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.schedule import kept_timesteps
from diffusion.superres import SuperResConfig
from diffusion.trunk import UNetConfig
from pipelines.sample import SampleConfig
from pipelines.upsample import UpsampleConfig

C = TypeVar("C", UNetConfig, ClassifierConfig, SuperResConfig)


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A network, the process it was trained for, and what the user calls both."""

    name: str
    network: C
    process: str
    diffusion: DiffusionConfig


def check_drawing(sample: SampleConfig, model: Stage[UNetConfig], classifier: Stage[ClassifierConfig] | None) -> None:
    """Raises ValueError when the model cannot be sampled from so, or the classifier cannot steer it."""
    check_respacing("sample.sampler.respacing", sample.sampler.respacing, model.process, model.diffusion)
    if sample.guidance_scale and classifier is None:
        raise ValueError(
            f"sample.guidance_scale={sample.guidance_scale:g}: no classifier to steer by; name one, or set the scale "
            f"to 0"
        )
    if not sample.guidance_scale:
        if model.network.num_classes is None and sample.labels != SampleConfig().labels:
            raise ValueError(
                f"sample.labels={sample.labels!r}: nothing is told classes; set {model.name}.num_classes, or leave it "
                f"out"
            )
        return
    assert classifier is not None
    encoder, known = classifier.network.encoder, model.network.num_classes
    if (encoder.image_size, encoder.channels) != (model.network.image_size, model.network.channels):
        raise ValueError(
            f"{classifier.name} sees {encoder.image_size} pixels and {encoder.channels} channels, and {model.name} "
            f"draws {model.network.image_size} and {model.network.channels}: both must be the same to steer"
        )
    for field in ("num_timesteps", "schedule", "rescale_timesteps"):
        its, ours = getattr(classifier.diffusion, field), getattr(model.diffusion, field)
        if its != ours:
            raise ValueError(
                f"{classifier.process}.{field}={its!r}, but {model.process}.{field}={ours!r}: a classifier must know "
                f"the noise of what it steers; take one of the same"
            )
    if known is not None and known != classifier.network.num_classes:
        raise ValueError(
            f"{classifier.name}.num_classes={classifier.network.num_classes}, but {model.name}.num_classes={known}: "
            f"both must be the same to steer"
        )


def check_enlarging(
    config: UpsampleConfig, upsampler: Stage[SuperResConfig], *, seed_name: str, respacing_name: str,
    sample: SampleConfig, model: Stage[UNetConfig], classifier: Stage[ClassifierConfig] | None,
) -> None:  # fmt: skip
    """Raises ValueError when the second stage cannot take what the first one draws."""
    unet, drawn = upsampler.network.unet, model.network
    if upsampler.network.small_size != drawn.image_size or unet.channels != drawn.channels:
        raise ValueError(
            f"{upsampler.name} enlarges {upsampler.network.small_size} pixels and {unet.channels} channels, and "
            f"{model.name} draws {drawn.image_size} and {drawn.channels}: both must be the same"
        )
    steered = classifier.network.num_classes if classifier is not None and sample.guidance_scale else None
    told = drawn.num_classes or steered
    if unet.num_classes is not None and unet.num_classes != told:
        raise ValueError(
            f"{upsampler.name} is told one of {unet.num_classes} classes, but the samples are of {told or 'no'} "
            f"classes: take one for them, or one that is told none"
        )
    if config.seed == sample.seed:
        raise ValueError(f"{seed_name}={config.seed}: that is sample.seed, whose noise it would see again; set another")
    check_respacing(respacing_name, config.sampler.respacing, upsampler.process, upsampler.diffusion)


def check_respacing(name: str, respacing: str, process: str, diffusion: DiffusionConfig) -> None:
    """Raises ValueError for a respacing that the process has no steps for."""
    steps = diffusion.num_timesteps
    try:
        kept_timesteps(steps, respacing)
    except ValueError as error:
        raise ValueError(f"{name}={respacing!r} with {process}.num_timesteps={steps}: {error}") from error
