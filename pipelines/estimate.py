"""Of how much work is each step of a study? In units that a probe measures, from the step's config alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion.classifier import NoisyClassifier
from diffusion.flops import Cost as Compute
from diffusion.flops import compute_of
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.nll import PILOT_STEPS
from diffusion.sampling import SamplerConfig
from diffusion.schedule import respace
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.train_config import TrainConfig
from diffusion.unet import UNet, UNetConfig
from orchestrator.planner import TRAINING, Cost
from orchestrator.step import Resources, Step, parts_of
from orchestrator.store import ArtifactStore
from pipelines.evaluate import MetricsConfig
from pipelines.features import EfficientNetConfig, FeaturesConfig, ReferenceConfig
from pipelines.nll import PILOT_IMAGES, AllTerms, NllConfig
from pipelines.own_classifier import OwnClassifierConfig
from pipelines.probes import (
    ClassifierProbe,
    FeaturesProbe,
    LikelihoodProbe,
    MetricsProbe,
    Probe,
    SamplingProbe,
    TrainingProbe,
)
from pipelines.sample import SampleConfig
from pipelines.shards import MANIFEST_FILE, Split, count_images
from pipelines.train import out_channels
from pipelines.train_classifier import TrainClassifierConfig
from pipelines.train_superres import TrainSuperResConfig
from pipelines.trained import TrainStepConfig
from pipelines.upsample import UpsampleConfig

SAMPLING, LIKELIHOOD, FEATURES, METRICS, DATA = "sampling", "likelihood", "features", "metrics", "data"
KINDS = {
    "train": TRAINING, "train_superres": TRAINING, "train_classifier": TRAINING, "sample": SAMPLING,
    "upsample": SAMPLING, "nll": LIKELIHOOD, "features": FEATURES, "reference": FEATURES, "metrics": METRICS,
}  # fmt: skip
UNKNOWN_IMAGES: Mapping[Split, int] = {"train": 50_000, "test": 10_000}
"""Of a data set that is not prepared yet."""
DIMENSIONS = {"efficientnet-lite0": 1280, "inception": 2048}
MOST_PROBES = 8
"""Of a kind: of more networks the others are reckoned from their compute."""
BYTES = 4  # of float32
STATES = 3  # a weight, and what Adam keeps of it


@dataclass(frozen=True)
class Work:
    """Of one step."""

    kind: str
    units: tuple[tuple[Probe, float], ...]
    bytes: int = 0


def work_of(step: Step, store: ArtifactStore) -> Work:
    """The step's work; none of one that reads data or files."""
    config = step.config
    kind = KINDS.get(step.name, DATA)
    if isinstance(config, TrainStepConfig | TrainSuperResConfig):
        return Work(kind, ((TrainingProbe(_timed(config)), _steps(step)),), _bytes_of(config))
    if isinstance(config, TrainClassifierConfig):
        held_out = config.held_out.images or images_of(step.inputs["dataset"], "test", store)
        seen = config.train.images // config.held_out.every_images * held_out
        units = ((TrainingProbe(_timed(config)), _steps(step)), (ClassifierProbe(config.model), float(seen)))
        return Work(kind, units, _bytes_of(config))
    if isinstance(config, SampleConfig):
        return _sampling(step, config)
    if isinstance(config, UpsampleConfig):
        return _enlarging(step, config)
    if isinstance(config, NllConfig):
        return _likelihood(step, config, store)
    if isinstance(config, ReferenceConfig):
        count = images_of(step.inputs["dataset"], config.split, store)
        return Work(kind, _seen(config.network, step.inputs["dataset"].config, count))
    if step.name == "features":
        drawn = step.inputs["samples"]
        return Work(kind, _seen(config, _data_of(drawn), _count(drawn)))
    if isinstance(config, MetricsConfig):
        return _metrics(step, config, store)
    return Work(kind, ())


def images_of(dataset: Step, split: Split, store: ArtifactStore) -> int:
    """How many images a split has; UNKNOWN_IMAGES of a data set that is not there yet."""
    place = store.path(dataset)
    return count_images(place, split) if (place / MANIFEST_FILE).is_file() else UNKNOWN_IMAGES[split]


def _steps(step: Step) -> float:
    """Of this part of a training: those before it are steps of their own."""
    train: TrainConfig = step.config.train
    before = step.inputs.get("start")
    return (train.images - (before.config.train.images if before is not None else 0)) / train.batch_size


def _timed(config: Any) -> Any:
    """The same config without what does not change the time of a step, so that rows share a probe."""
    train = replace(
        config.train, images=config.train.batch_size, lr=1e-4, lr_warmup_images=0, lr_anneal="none"
    )  # fmt: skip
    timed = replace(config, train=train, diffusion=_chain(config.diffusion), seed=0)
    if isinstance(config, TrainClassifierConfig):
        return replace(timed, held_out=replace(config.held_out, every_images=config.train.batch_size))
    return timed


def _chain(diffusion: DiffusionConfig) -> DiffusionConfig:
    """Of any length and schedule a step takes as long."""
    return replace(diffusion, num_timesteps=1000, schedule="cosine")


def _visits(sampler: SamplerConfig, diffusion: DiffusionConfig) -> int:
    return respace(build_schedule(diffusion), sampler.respacing).num_timesteps


def _sampling(step: Step, config: SampleConfig) -> Work:
    train, classifier = step.inputs["train"].config, step.inputs.get("classifier")
    probe = SamplingProbe(
        train.model, _chain(train.diffusion), config.sampler.kind,
        None if classifier is None else classifier.config.model, 64,
    )  # fmt: skip
    model = train.model
    pixels = config.count * model.image_size**2 * model.channels
    return Work(SAMPLING, ((probe, float(config.count * _visits(config.sampler, train.diffusion))),), 2 * pixels)


def _enlarging(step: Step, config: UpsampleConfig) -> Work:
    train, count = step.inputs["upsampler"].config, _count(step)
    probe = SamplingProbe(train.model, _chain(train.diffusion), config.sampler.kind, None, 64)
    pixels = count * train.model.unet.image_size**2 * train.model.unet.channels
    return Work(SAMPLING, ((probe, float(count * _visits(config.sampler, train.diffusion))),), 2 * pixels)


def _likelihood(step: Step, config: NllConfig, store: ArtifactStore) -> Work:
    train = step.inputs["train"].config
    images = min(config.images or UNKNOWN_IMAGES["test"], images_of(step.inputs["dataset"], "test", store))
    if config.images is None:
        images = images_of(step.inputs["dataset"], "test", store)
    if isinstance(config.terms, AllTerms):
        terms = float(images * respace(build_schedule(train.diffusion), config.respacing).num_timesteps)
    else:
        terms = float(images * config.terms.rounds * (config.terms.draws + 1) + PILOT_IMAGES * PILOT_STEPS)
    return Work(LIKELIHOOD, ((LikelihoodProbe(train.model, _chain(train.diffusion)), terms),))


def _count(drawn: Step) -> int:
    """How many images such a step draws."""
    return int(drawn.config.count) if isinstance(drawn.config, SampleConfig) else _count(drawn.inputs["samples"])


def _data_of(drawn: Step) -> Any:
    """The data set, as a config, that a step's images look like."""
    trained = drawn.inputs["upsampler"] if "upsampler" in drawn.inputs else parts_of(drawn.inputs["train"])[0]
    return trained.inputs["dataset"].config


def _seen(network: FeaturesConfig, data: Any, count: int) -> tuple[tuple[Probe, float], ...]:
    if isinstance(network, OwnClassifierConfig):
        return ((ClassifierProbe(network.training(data).model), float(count)),)
    if isinstance(network, EfficientNetConfig):
        return ((FeaturesProbe(network, data.image_size, data.channels), float(count)),)
    return ()  # Inception's weights are the user's, and may not be here


def _metrics(step: Step, config: MetricsConfig, store: ArtifactStore) -> Work:
    reference = step.inputs["reference"]
    network = reference.config.network
    dimension = (
        network.model_channels * network.channel_mult[-1] if isinstance(network, OwnClassifierConfig)
        else DIMENSIONS[network.kind]
    )  # fmt: skip
    compared = images_of(reference.inputs["dataset"], reference.config.split, store)
    probe = MetricsProbe(config, _count(step.inputs["features"].inputs["samples"]), compared, dimension)
    return Work(METRICS, ((probe, 1.0),))


def _bytes_of(config: TrainStepConfig | TrainSuperResConfig | TrainClassifierConfig) -> int:
    """The model and its averages, and the last state that a training keeps."""
    averages = len(config.train.ema.rates)
    return BYTES * _compute(config.model, config.diffusion).parameters * (max(averages, 1) + STATES + averages)


def _compute(network: Any, diffusion: DiffusionConfig) -> Compute:
    if isinstance(network, SuperResConfig):
        return compute_of(lambda: SuperResUNet(network, out_channels(network.unet, diffusion)))
    if isinstance(network, UNetConfig):
        return compute_of(lambda: UNet(network, out_channels(network, diffusion)))
    return compute_of(lambda: NoisyClassifier(network))


def macs_of(probe: Probe) -> float | None:
    """By which probes of a kind are reckoned from each other; None of those that are not of networks."""
    if isinstance(probe, TrainingProbe):
        return float(_compute(probe.config.model, probe.config.diffusion).macs * probe.config.train.batch_size)
    if isinstance(probe, SamplingProbe | LikelihoodProbe):
        return float(_compute(probe.network, probe.diffusion).macs)
    return None


def chosen(probes: Sequence[Probe]) -> list[Probe]:
    """Those that are measured: all, or of many networks some, spread over their compute."""
    found: list[Probe] = []
    for kind in dict.fromkeys(type(probe) for probe in probes):
        alike = [probe for probe in probes if type(probe) is kind]
        sized = {probe: macs for probe in alike if (macs := macs_of(probe)) is not None} if len(alike) > 1 else {}
        if len(sized) <= MOST_PROBES:
            found += alike
            continue
        ordered = sorted(sized, key=lambda probe: sized[probe])
        found += [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, MOST_PROBES)]
    return found


def rate_of(probe: Probe, rates: Mapping[Probe, float]) -> float:
    """Measured, or between its neighbours by compute."""
    if probe in rates:
        return rates[probe]
    known = sorted((macs_of(other) or 0.0, rate) for other, rate in rates.items() if type(other) is type(probe))
    macs, seconds = zip(*known, strict=True)
    return float(np.interp(macs_of(probe) or 0.0, macs, seconds))


def cost_of(work: Work, rates: Mapping[Probe, float], resources: Resources, *, begins: Mapping[str, float]) -> Cost:
    """Seconds on the workers of a step; begins: what starting them takes, by kind of work."""
    seconds = sum(units * rate_of(probe, rates) for probe, units in work.units) / resources.workers
    return Cost(work.kind, seconds + begins.get(work.kind, 0.0), work.bytes)
