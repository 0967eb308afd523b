"""What of an evaluation is timed? A sampler's steps, the bound's terms, what a network sees, and the metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.flops import TRAINING
from diffusion.gaussian import VLB_WEIGHT, DiffusionConfig, build_schedule
from diffusion.guidance import classifier_guide
from diffusion.likelihood import Cdf
from diffusion.metrics.classifier import ClassifierFeatures
from diffusion.metrics.features import SPATIAL_CHANNELS, Extractor, Features
from diffusion.metrics.frechet_uncertainty import GROUPS
from diffusion.nll import term_at
from diffusion.randomness import NLL_DRAWN_NOISE, normal
from diffusion.sampling import SamplerConfig, sample
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet
from orchestrator.step import Resources
from pipelines.data import DataConfig
from pipelines.devices import worker_device
from pipelines.evaluate import MetricsConfig, Reference, frechet_name, measure
from pipelines.features import FeaturesConfig, InceptionConfig, extractor, protocol_of
from pipelines.own_classifier import OwnClassifierConfig
from pipelines.timed import SHORT_CHAIN, Repeat, cost
from pipelines.train import build_network, out_channels, seeded
from pipelines.train_superres import TrainSuperResConfig
from pipelines.trained import TrainedModel, TrainStepConfig, placed

WALK = 2  # steps of a walk that a timed sampler takes
MOST_COMPARED = 512  # samples whose metrics are timed; of more, the time is reckoned from that
EFFICIENTNET_MACS = 385e6 / 224**2  # of a pixel that Lite0 sees, by its authors' 385 M at 224x224
INCEPTION_MACS = 5.7e9
SPATIAL, CLASSES = SPATIAL_CHANNELS * 17**2, 1008  # of Inception


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """A trained network as evaluation uses it."""

    network: UNetConfig | SuperResConfig
    diffusion: DiffusionConfig
    fused_norms: bool
    tf32: bool

    @classmethod
    def of(cls, config: TrainStepConfig | TrainSuperResConfig) -> Drawer:
        """What that training leaves."""
        process = replace(
            config.diffusion, num_timesteps=SHORT_CHAIN, schedule="linear", vlb_weight=VLB_WEIGHT,
            loss="vlb" if config.diffusion.learns_variance else "simple", rescale_timesteps=True,
        )  # fmt: skip
        fused_norms = config.train.norms == "fused"
        return cls(network=config.model, diffusion=process, fused_norms=fused_norms, tf32=config.train.tf32)

    @property
    def unet(self) -> UNetConfig:
        """Its image and classes."""
        return self.network.unet if isinstance(self.network, SuperResConfig) else self.network

    @property
    def macs(self) -> int:
        """Of one forward of one image."""
        return cost(self.network, out_channels(self.unet, self.diffusion)).macs

    def build(self) -> UNet:
        """With weights of chance."""
        if isinstance(self.network, SuperResConfig):
            superres, channels = self.network, out_channels(self.network.unet, self.diffusion)
            return seeded(lambda: SuperResUNet(superres, channels), seed=0)
        return build_network(self.network, self.diffusion, seed=0)

    def model(self, device: str) -> TrainedModel[UNet]:
        """Ready to be used."""
        network = placed(self.build(), device).requires_grad_(False)
        schedule = build_schedule(self.diffusion).to(device)
        return TrainedModel(network, self.diffusion, schedule, self.fused_norms and device == "cpu", self.tf32)

    def bound(self, model: TrainedModel[UNet], images: int, device: str) -> Callable[..., torch.Tensor]:
        """The network, told a class where it takes one, and shown small images where it enlarges."""
        told: dict[str, torch.Tensor] = {}
        if self.unet.num_classes is not None:
            told["y"] = torch.zeros(images, dtype=torch.int64, device=device)
        if isinstance(self.network, SuperResConfig):
            small = self.network.small_size
            told["low_res"] = torch.zeros(images, self.unet.channels, small, small, device=device)
        return partial(model.network, **told)


@dataclass(frozen=True, kw_only=True)
class SamplerStep:
    """One step of the walk of one image."""

    drawer: Drawer
    sampler: SamplerConfig
    images: int
    """That are drawn together."""
    classifier: ClassifierConfig | None = None
    """What steers."""

    @property
    def group(self) -> str:
        """See Timed."""
        return "enlarging" if isinstance(self.drawer.network, SuperResConfig) else "sampling"

    @property
    def flops(self) -> float:
        """See Timed."""
        steering = 0 if self.classifier is None else TRAINING * cost(self.classifier).macs
        return 2 * (self.drawer.macs + steering)

    def prepare(self, resources: Resources) -> Repeat:
        """See Timed."""
        device = worker_device(resources)
        model, unet = self.drawer.model(device), self.drawer.unet
        index, guide = torch.arange(self.images, device=device), None
        if (steering := self.classifier) is not None:
            classifier = placed(seeded(lambda: NoisyClassifier(steering), seed=0), device).requires_grad_(False)
            guide = classifier_guide(classifier, y=torch.zeros_like(index), guidance_scale=1.0)
        sampler, network = replace(self.sampler, respacing=str(WALK)), self.drawer.bound(model, self.images, device)

        def repeat() -> float:
            with model.in_use():
                sample(
                    sampler, model.diffusion, model.schedule, network, index=index, seed=0,
                    image_shape=(unet.channels, unet.image_size, unet.image_size), guide=guide,
                )  # fmt: skip
            return self.images * WALK

        return repeat


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term of the bound of one image."""

    drawer: Drawer
    pairs: int
    """Of image and t that the network sees together."""
    clip_denoised: bool
    cdf: Cdf

    @property
    def group(self) -> str:
        """See Timed."""
        return "likelihood"

    @property
    def flops(self) -> float:
        """See Timed."""
        return 2.0 * self.drawer.macs

    def prepare(self, resources: Resources) -> Repeat:
        """See Timed."""
        device = worker_device(resources)
        model, unet = self.drawer.model(device), self.drawer.unet
        x_start = torch.zeros(self.pairs, unet.channels, unet.image_size, unet.image_size, device=device)
        t = torch.arange(self.pairs, device=device) % SHORT_CHAIN
        network = self.drawer.bound(model, self.pairs, device)

        def repeat() -> float:
            with model.in_use():
                eps = normal(seed=0, stream=NLL_DRAWN_NOISE, step=t, index=t, shape=tuple(x_start.shape[1:]))
                term_at(
                    model.diffusion, model.schedule, network, x_start=x_start, t=t, eps=eps,
                    clip_denoised=self.clip_denoised, cdf=self.cdf,
                )  # fmt: skip
            return self.pairs

        return repeat


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One image, seen by the network whose features are compared."""

    config: FeaturesConfig
    data: DataConfig
    """Of images of that size."""
    images: int
    """That it sees together."""
    weights: Path | None
    """The file, of a network that takes one."""

    @property
    def group(self) -> str:
        """See Timed."""
        return "features"

    @property
    def flops(self) -> float:
        """See Timed."""
        if isinstance(self.config, OwnClassifierConfig):
            return 2.0 * cost(self.config.training(self.data).model).macs
        if isinstance(self.config, InceptionConfig):
            return 2 * INCEPTION_MACS
        return 2 * EFFICIENTNET_MACS * self.config.size**2

    def prepare(self, resources: Resources) -> Repeat:
        """See Timed."""
        device = worker_device(resources)
        size = self.data.image_size
        see, images = self._extractor(device), np.zeros((self.images, size, size, self.data.channels), np.uint8)

        def repeat() -> float:
            see(images)
            return self.images

        return repeat

    def _extractor(self, device: str) -> Extractor:
        if isinstance(self.config, OwnClassifierConfig):
            own = self.config.training(self.data).model
            return ClassifierFeatures(seeded(lambda: NoisyClassifier(own), seed=0), weights_sha256="", device=device)
        return extractor(self.config, None if self.weights is None else self.weights.read_bytes(), device=device)


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """All metrics between samples and reference images."""

    config: MetricsConfig
    features: FeaturesConfig
    samples: int
    reference: int

    @property
    def group(self) -> str:
        """See Timed."""
        return "metrics"

    @property
    def flops(self) -> float:
        """See Timed."""
        return self._flops(self.samples, self.reference)

    def prepare(self, resources: Resources) -> Repeat:
        """See Timed."""
        worker_device(resources)
        n, m = min(self.samples, MOST_COMPARED), min(self.reference, MOST_COMPARED)
        config = replace(self.config, kid_subset_size=min(self.config.kid_subset_size, n, m))
        samples, reference = _features(self.features, n, seed=0), _features(self.features, m, seed=1)
        share = self._flops(n, m) / self.flops

        def repeat() -> float:
            measure(config, samples, Reference.of(reference), name=frechet_name(self.features))
            return share

        return repeat

    def _flops(self, n: int, m: int) -> float:
        """Of decompositions of covariances with each group left out, and of the distances of all pairs."""
        d = dimension(self.features)
        least = min(n, m, d)
        subset = min(self.config.kid_subset_size, n, m)
        layers = 2 if isinstance(self.features, InceptionConfig) else 1
        frechet = layers * (GROUPS + 1) * (2 * least**2 * d + 20 * least**3)
        return frechet + 2 * d * (6 * (n + m) ** 2 + 3 * self.config.kid_subsets * subset**2)


def dimension(config: FeaturesConfig) -> int:
    """Of the features of one image."""
    if isinstance(config, OwnClassifierConfig):
        return config.model_channels * config.channel_mult[-1]
    return protocol_of(config)["dimension"]


def numbers(config: FeaturesConfig) -> int:
    """That are kept of one image: features, and of Inception also its spatial ones and probabilities."""
    others = SPATIAL + CLASSES if isinstance(config, InceptionConfig) else 0
    return dimension(config) + (config.num_classes if isinstance(config, OwnClassifierConfig) else others)


def _features(config: FeaturesConfig, images: int, *, seed: int) -> Features:
    """Of chance."""
    random = np.random.default_rng(seed)

    def values(count: int) -> np.ndarray:
        return random.random((images, count), np.float32) + 1e-3

    pool = values(dimension(config))
    if isinstance(config, OwnClassifierConfig):
        probabilities = values(config.num_classes)
        return Features(pool, probabilities=probabilities / probabilities.sum(axis=1, keepdims=True))
    if isinstance(config, InceptionConfig):
        probabilities = values(CLASSES)
        return Features(pool, values(SPATIAL), probabilities / probabilities.sum(axis=1, keepdims=True))
    return Features(pool)
