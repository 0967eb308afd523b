"""What does a training leave, and how is it used? The averaged weights, and all that made them in their header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import nn

from diffusion import fused
from diffusion.ema import rate_name
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.precision import allow_tf32
from diffusion.schedule import NoiseSchedule
from diffusion.train_config import TrainConfig
from diffusion.unet import UNet, UNetConfig
from orchestrator.config import from_dict

MODEL_FILE = "model.safetensors"
N = TypeVar("N", bound=nn.Module)
CONFIG = "config"  # in the header of weights, beside the network's own description


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainStepConfig:
    """All that decides the trained weights, beside the data."""

    model: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    seed: int


@dataclass(frozen=True)
class TrainedModel:
    """A model as evaluation uses it: the averaged weights, and the process they were trained for."""

    network: UNet
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


def load_trained(train_output: Path, *, device: str = "cpu") -> TrainedModel:
    """The model a train step left, ready for evaluation."""
    config = trained_config(train_output)
    network = placed(UNet.from_checkpoint(train_output / MODEL_FILE), device).requires_grad_(False)
    fused_norms = config.train.norms == "fused" and device == "cpu"
    return TrainedModel(
        network, config.diffusion, build_schedule(config.diffusion).to(device), fused_norms, config.train.tf32
    )


def trained_config(train_output: Path) -> TrainStepConfig:
    """The config a model was trained with, from the header of its weights."""
    with safe_open(str(train_output / MODEL_FILE), framework="pt") as file:
        return from_dict(TrainStepConfig, json.loads(file.metadata()[CONFIG]))


def weights_used(train: TrainConfig) -> str:
    """Which weights of a training are the model, in the words of a protocol."""
    return f"EMA {rate_name(train.ema.rates[0])}" if train.ema.rates else "the last, not averaged"
