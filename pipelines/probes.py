"""How fast is this device at the work of a study? The real step, forward and features, for a second or so each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.guidance import classifier_guide
from diffusion.metrics.features import Features
from diffusion.nll import nll_full
from diffusion.objectives import ClassifierObjective
from diffusion.sampling import SamplerConfig, sample
from diffusion.schedule import respace
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from diffusion.unet import UNet, UNetConfig
from orchestrator.step import Resources
from pipelines.devices import worker_device
from pipelines.evaluate import MetricsConfig, Reference, measure
from pipelines.features import EfficientNetConfig, extractor
from pipelines.readers import Batch
from pipelines.train import diffusion_training, examples_of, out_channels
from pipelines.train_classifier import TrainClassifierConfig
from pipelines.train_superres import TrainSuperResConfig, superres_training
from pipelines.trained import TrainStepConfig
from pipelines.training_parts import HeldOut, Training

SECONDS, FEWEST = 1.0, 3
"""A probe goes on until both are reached."""
IMAGES, WALKED = 64, 4
"""At a time, and steps of a chain, of probes."""
MOST_FEATURES = 2000
"""Of metrics: more samples are reckoned from so many."""


@dataclass(frozen=True)
class TrainingProbe:
    """A training step: seconds of one."""

    config: TrainStepConfig | TrainSuperResConfig | TrainClassifierConfig


@dataclass(frozen=True)
class SamplingProbe:
    """A step of sampling, guided or not: seconds an image."""

    network: UNetConfig | SuperResConfig
    diffusion: DiffusionConfig
    kind: Literal["ancestral", "ddim"]
    classifier: ClassifierConfig | None
    batch: int


@dataclass(frozen=True)
class LikelihoodProbe:
    """A term of the bound: seconds an image."""

    network: UNetConfig
    diffusion: DiffusionConfig


@dataclass(frozen=True)
class ClassifierProbe:
    """A classifier at work: seconds an image."""

    network: ClassifierConfig


@dataclass(frozen=True)
class FeaturesProbe:
    """What sees images: seconds an image."""

    config: EfficientNetConfig
    image_size: int
    channels: int


@dataclass(frozen=True)
class MetricsProbe:
    """All metrics of so many features: seconds of once."""

    config: MetricsConfig
    samples: int
    reference: int
    dimension: int


Probe = TrainingProbe | SamplingProbe | LikelihoodProbe | ClassifierProbe | FeaturesProbe | MetricsProbe


def measured(probe: Probe, resources: Resources) -> float:
    """Seconds, as the probe counts them, on this worker's device with its threads."""
    torch.set_num_threads(resources.cpus_per_worker)
    device = worker_device(resources)
    if isinstance(probe, TrainingProbe):
        return _seconds(_training(probe.config, device), device)
    if isinstance(probe, SamplingProbe):
        return _seconds(_sampling(probe, device), device) / (probe.batch * WALKED)
    if isinstance(probe, LikelihoodProbe):
        return _seconds(_likelihood(probe, device), device) / (IMAGES * WALKED)
    if isinstance(probe, ClassifierProbe):
        return _seconds(_classifier(probe, device), device) / IMAGES
    if isinstance(probe, FeaturesProbe):
        seen = extractor(probe.config, None, device=device)
        shape = (IMAGES, probe.image_size, probe.image_size, probe.channels)
        images = np.zeros(shape, dtype=np.uint8)
        return _seconds(lambda: seen(images), device) / IMAGES
    return _metrics(probe)


def _seconds(work: Callable[[], object], device: str) -> float:
    """The median of its repetitions, after two that warm up."""
    for _ in range(2):
        work()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < SECONDS:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _training(config: TrainStepConfig | TrainSuperResConfig | TrainClassifierConfig, device: str) -> Callable[[], Any]:
    training = _parts(config, device)
    network, batch = training.network.train(), training.config.batch_size
    schedule = training.objective.schedule
    state = build_train_state(training.config, network, num_timesteps=schedule.num_timesteps)
    size, channels = _images(config)
    stored = Batch(torch.zeros(batch, channels, size, size, dtype=torch.uint8), torch.zeros(batch, dtype=torch.int64))
    index = torch.arange(batch, device=device)

    def step() -> None:
        examples = training.examples(stored, state.step, index)
        train_step(state, network, training.objective, examples, step=state.step, seed=training.seed)

    return step


def _parts(config: TrainStepConfig | TrainSuperResConfig | TrainClassifierConfig, device: str) -> Training:
    if isinstance(config, TrainStepConfig):
        return diffusion_training(config, device)
    if isinstance(config, TrainSuperResConfig):
        return superres_training(config, device)
    network = NoisyClassifier(config.model).to(device)
    objective = ClassifierObjective(build_schedule(config.diffusion).to(device), noised=config.noised)
    examples = examples_of(config.train, config.seed, device, labelled=True)
    return Training(config.train, config.seed, network, objective, examples, HeldOut())


def _images(config: TrainStepConfig | TrainSuperResConfig | TrainClassifierConfig) -> tuple[int, int]:
    """Size and channels of what it is trained on."""
    if isinstance(config, TrainStepConfig):
        unet = config.model
    elif isinstance(config, TrainSuperResConfig):
        unet = config.model.unet
    else:
        unet = config.model.encoder
    return unet.image_size, unet.channels


def _sampling(probe: SamplingProbe, device: str) -> Callable[[], object]:
    unet = probe.network.unet if isinstance(probe.network, SuperResConfig) else probe.network
    network = _network(probe.network, probe.diffusion).to(device).eval()
    inputs = network.example_inputs(probe.batch)
    told = {name: inputs[name].to(device) for name in ("y", "low_res") if name in inputs}
    guide = None
    if probe.classifier is not None:
        y = torch.zeros(probe.batch, dtype=torch.int64, device=device)
        guide = classifier_guide(NoisyClassifier(probe.classifier).to(device).eval(), y=y, guidance_scale=1.0)
    schedule, index = build_schedule(probe.diffusion).to(device), torch.arange(probe.batch, device=device)
    sampler = SamplerConfig(kind=probe.kind, respacing=str(WALKED))

    def walk() -> object:
        with torch.no_grad():
            return sample(
                sampler, probe.diffusion, schedule, partial(network, **told), index=index, seed=0,
                image_shape=(unet.channels, unet.image_size, unet.image_size), guide=guide,
            )  # fmt: skip

    return walk


def _likelihood(probe: LikelihoodProbe, device: str) -> Callable[[], object]:
    network, unet = _network(probe.network, probe.diffusion).to(device).eval(), probe.network
    schedule = respace(build_schedule(probe.diffusion), str(WALKED)).to(device)
    x_start = torch.zeros(IMAGES, unet.channels, unet.image_size, unet.image_size, device=device)
    index = torch.arange(IMAGES, device=device)
    y = None if unet.num_classes is None else torch.zeros(IMAGES, dtype=torch.int64, device=device)

    def measure_terms() -> object:
        with torch.no_grad():
            return nll_full(probe.diffusion, schedule, network, x_start=x_start, index=index, seed=0, y=y)

    return measure_terms


def _classifier(probe: ClassifierProbe, device: str) -> Callable[[], object]:
    network = NoisyClassifier(probe.network).to(device).eval()
    inputs = {name: value.to(device) for name, value in network.example_inputs(IMAGES).items()}

    def forward() -> object:
        with torch.no_grad():
            return network(**inputs)

    return forward


def _network(network: UNetConfig | SuperResConfig, diffusion: DiffusionConfig) -> UNet:
    if isinstance(network, SuperResConfig):
        return SuperResUNet(network, out_channels(network.unet, diffusion))
    return UNet(network, out_channels(network, diffusion))


def _metrics(probe: MetricsProbe) -> float:
    rng = np.random.default_rng(0)
    samples, reference = (min(count, MOST_FEATURES) for count in (probe.samples, probe.reference))
    pool = rng.normal(size=(samples + reference, probe.dimension)).astype(np.float32)
    began = time.perf_counter()
    of_reference = Reference.of(Features(pool=pool[samples:], spatial=None, probabilities=None))
    measure(probe.config, Features(pool=pool[:samples], spatial=None, probabilities=None), of_reference, name="fd")
    seconds = time.perf_counter() - began
    return seconds * (probe.samples / samples) * (probe.reference / reference)
