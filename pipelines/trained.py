"""What does a training leave, and how is it used? The averaged weights, and all that made them in their header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import safe_open
from torch import nn

from diffusion import fused
from diffusion.classifier import NoisyClassifier
from diffusion.ema import rate_name
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.precision import allow_tf32
from diffusion.schedule import NoiseSchedule
from diffusion.superres import SuperResUNet
from diffusion.train_config import TrainConfig
from diffusion.unet import UNet, UNetConfig
from orchestrator.config import from_dict

MODEL_FILE = "model.safetensors"
N = TypeVar("N", bound=nn.Module)
U = TypeVar("U", bound=UNet)
CONFIG = "config"  # in the header of weights, beside the network's own description


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStepConfig:
    """All that decides the trained weights, beside the data."""

    model: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int


@dataclass(frozen=True)
class Origin:
    """What evaluation must know of how weights came to be."""

    diffusion: DiffusionConfig
    num_classes: int | None
    """Of what is told classes, or tells them."""
    train: TrainConfig | None
    """None of weights that were published."""
    published: str | None = None
    """Which those are, in the words of a protocol."""

    @classmethod
    def read(cls, output: Path) -> Origin:
        """From the header of a network that a training left, or that published weights became."""
        with safe_open(str(output / MODEL_FILE), framework="pt") as file:
            header = file.metadata()
        said = json.loads(header[CONFIG])
        network = said["model"].get("unet", said["model"])
        train = from_dict(TrainConfig, said["train"]) if "train" in said else None
        return cls(from_dict(DiffusionConfig, said["diffusion"]), network["num_classes"], train, said.get("published"))

    @property
    def rates(self) -> tuple[float, ...]:
        """Of the averages that there are, the first one the model; none of published weights."""
        return () if self.train is None else self.train.ema.rates

    def weights(self, ema: float | None) -> str:
        """Which weights these are, in the words of a protocol; null: those that were left as the model."""
        if self.published is not None:
            return self.published
        rate = self.rate(ema)
        return "the last, not averaged" if rate is None else f"EMA {rate_name(rate)}"

    def rate(self, ema: float | None) -> float | None:
        """The rate of the average that is meant. Raises ValueError for one that is not there."""
        check_rate("ema", ema, self.rates)
        return (self.rates[0] if self.rates else None) if ema is None else ema


def check_rate(name: str, ema: float | None, rates: tuple[float, ...]) -> None:
    """Raises ValueError when an average is asked for that training does not keep."""
    if ema is not None and ema not in rates:
        kept = ", ".join(map(rate_name, rates)) or "none"
        raise ValueError(f"{name}={ema}: there are averages at train.ema.rates: {kept}; add it there, or name one")


@dataclass(frozen=True)
class TrainedModel(Generic[U]):
    """A model as evaluation uses it: the averaged weights, and the process they were trained for."""

    network: U
    diffusion: DiffusionConfig
    schedule: NoiseSchedule
    fused_norms: bool = False
    tf32: bool = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the network computes with the kernels it was trained with."""
        if self.fused_norms:
            fused.compile()
        allow_tf32(self.tf32)
        try:
            with fused.used(self.fused_norms):
                yield
        finally:
            allow_tf32(False)


def placed(network: N, device: str) -> N:
    """The network itself on a device; on CPUs with its weights laid out so that convolutions are faster.

    A choice by kind of device, from docs/results/networks.md: one that was measured anew at every start could fall the
    other way after a resume, and round otherwise. For GPUs it is open; benchmarks/networks.py shows both layouts.
    """
    if torch.device(device).type == "cpu":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.to(device)


def load_trained(train_output: Path, *, device: str = "cpu", ema: float | None = None) -> TrainedModel[UNet]:
    """The diffusion model a train step left, ready for evaluation: its first average, or the one at a rate.

    Raises ValueError for a rate that training did not keep.
    """
    return _load(UNet, train_output, device=device, ema=ema)


def load_upsampler(
    train_output: Path, *, device: str = "cpu", ema: float | None = None
) -> TrainedModel[SuperResUNet]:  # fmt: skip
    """The network that enlarges, as load_trained."""
    return _load(SuperResUNet, train_output, device=device, ema=ema)


def load_classifier(train_output: Path, *, device: str = "cpu") -> NoisyClassifier:
    """The classifier a training left."""
    return placed(NoisyClassifier.from_checkpoint(train_output / MODEL_FILE), device).requires_grad_(False)


def _load(kind: type[U], train_output: Path, *, device: str, ema: float | None) -> TrainedModel[U]:
    origin = Origin.read(train_output)
    rate = origin.rate(ema)
    file = MODEL_FILE if rate is None or rate == origin.rates[0] else f"ema_{rate_name(rate)}.safetensors"
    network = placed(kind.from_checkpoint(train_output / file), device).requires_grad_(False)
    fused_norms = origin.train is not None and origin.train.norms == "fused" and device == "cpu"
    schedule = build_schedule(origin.diffusion).to(device)
    tf32 = origin.train is not None and origin.train.tf32
    return TrainedModel(network, origin.diffusion, schedule, fused_norms, tf32)
