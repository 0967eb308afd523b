"""Who takes part in benchmarks/networks.py: a network with its optimizer and average, as its users run it."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._lucidrains import lucidrains
from benchmarks._published_way import computed_as_published
from diffusion import fused
from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.diffusers_export import to_diffusers
from diffusion.ema import Ema, EmaConfig
from diffusion.guidance import log_probability_gradient
from diffusion.metrics.inception import declare_missing_torchvision_operators
from diffusion.precision import Precision, autocast
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet

N = TypeVar("N", UNet, NoisyClassifier)

EMA_RATE = 0.9999
REFERENCE = "published way"


class Contestant:
    """A network with its optimizer and average, as its users run it."""

    def __init__(
        self, network: nn.Module, *, classes: int | None, loops: bool = False, channels_last: bool = False,
        fuse: bool = False, classifier: NoisyClassifier | None = None,
    ) -> None:  # fmt: skip
        self.network, self.classes, self.loops, self.channels_last = network, classes, loops, channels_last
        self.called = network  # or what compiles it
        self.fuse, self.classifier = fuse, classifier
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=not loops)
        self.average = None if loops else Ema(EmaConfig(rates=(EMA_RATE,)), network)
        self.slow_average = [parameter.detach().clone() for parameter in network.parameters()] if loops else []
        self.steps = 0

    def call(self, x: Tensor, t: Tensor) -> Tensor:
        """Of the network, with classes 0, 1, ... where it wants some."""
        return self.called(x, t) if self.classes is None else self.called(x, t, self._labels(x) % self.classes)

    def train_step(self, x: Tensor, t: Tensor, target: Tensor, precision: Precision) -> None:
        """Forward, backward, AdamW, average."""
        with fused.used(self.fuse):
            with autocast(x.device, precision):
                loss = functional.mse_loss(self.call(x, t).float(), target)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # none are held while others take their turn
        if self.average is not None:
            self.average.update(step=self.steps)
        else:
            with torch.no_grad():
                for kept, parameter in zip(self.slow_average, self.network.parameters(), strict=True):
                    kept.mul_(EMA_RATE).add_(parameter, alpha=1 - EMA_RATE)
        self.steps += 1

    @torch.inference_mode()
    def forward(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """What sampling asks of it at each step."""
        with fused.used(self.fuse), autocast(x.device, precision):
            return self.call(x, t)

    @torch.no_grad()
    def guided(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """forward, and the classifier's gradient."""
        return self.forward(x, t, precision) + self.gradient(x, t, precision)

    def gradient(self, x: Tensor, t: Tensor, precision: Precision) -> Tensor:
        """Of log p(class 0)."""
        assert self.classifier is not None
        y = self._labels(x) * 0
        with fused.used(self.fuse), autocast(x.device, precision):
            return log_probability_gradient(self.classifier, x_t=x, model_t=t, y=y)

    def _labels(self, x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device)


def contestants(config: UNetConfig, options: argparse.Namespace, device: str) -> dict[str, Contestant]:
    """All implementations that are asked for, with the same weights where they are the same function."""
    declare_missing_torchvision_operators()
    torch.manual_seed(0)
    plain = _randomized(UNet(config, out_channels=3)).to(device)
    classifier = _classifier(config).to(device)
    makers: dict[str, Callable[[], Contestant]] = {
        REFERENCE: lambda: Contestant(
            computed_as_published(copy.deepcopy(plain)), classes=config.num_classes, loops=True,
            classifier=computed_as_published(copy.deepcopy(classifier)),
        ),
        "ours, torch's operators": lambda: _ours(plain, classifier),
        "ours, contiguous": lambda: Contestant(copy.deepcopy(plain), classes=config.num_classes),
        "lucidrains (another network)": lambda: Contestant(lucidrains(config).to(device), classes=None),
    }  # fmt: skip
    if device == "cpu":
        fused.compile()
        makers["ours, fused norm"] = lambda: _ours(plain, classifier, fuse=True)
    if _is_diffusers(plain):
        makers["diffusers"] = lambda: _diffusers(plain, channels_last=False)
        makers["diffusers, channels_last"] = lambda: _diffusers(plain, channels_last=True)
    if options.compile:
        makers["ours, torch.compile"] = lambda: _compiled(_ours(plain, None))
        if _is_diffusers(plain):
            makers["diffusers, torch.compile"] = lambda: _compiled(_diffusers(plain, channels_last=True))
    if options.compile and options.cuda_graphs:
        makers["ours, torch.compile, CUDA graphs"] = lambda: _compiled(_ours(plain, None), mode="reduce-overhead")
    for spec in options.impl:
        makers[spec] = lambda spec=spec: Contestant(_from_file(spec)(config, 3).to(device), classes=config.num_classes)  # type: ignore[misc]
    wanted = [name for name in makers if name == REFERENCE or not options.only or any(o in name for o in options.only)]
    return {name: makers[name]() for name in wanted}


def _ours(plain: UNet, classifier: NoisyClassifier | None, *, fuse: bool = False) -> Contestant:
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    guide = None
    if classifier is not None:
        guide = copy.deepcopy(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Contestant(last, classes=plain.config.num_classes, channels_last=True, fuse=fuse, classifier=guide)


def _compiled(contestant: Contestant, **options: str) -> Contestant:
    contestant.called = torch.compile(contestant.network, dynamic=False, **options)  # type: ignore[call-overload]
    return contestant


def _from_file(spec: str) -> Callable[[UNetConfig, int], nn.Module]:
    path, _, name = spec.partition(":")
    module_spec = importlib.util.spec_from_file_location("contestant", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)


def _classifier(config: UNetConfig) -> NoisyClassifier:
    encoder = replace(config, num_heads=None, num_head_channels=config.model_channels // 2, num_classes=None)
    return _randomized(NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=10))).eval().requires_grad_(False)


class _Unwrapped(nn.Module):
    """diffusers' network, giving a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.network(x, t, class_labels=y, return_dict=False)[0]


def _is_diffusers(network: UNet) -> bool:
    """Whether it is among their networks; says why where it is not."""
    try:
        to_diffusers(network)
    except ValueError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _diffusers(network: UNet, *, channels_last: bool) -> Contestant:
    from diffusers import UNet2DModel

    exported = to_diffusers(network)
    theirs = UNet2DModel(**exported.config)
    theirs.load_state_dict(exported.weights)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theirs = theirs.to(next(network.parameters()).device, memory_format=layout)
    return Contestant(_Unwrapped(theirs), classes=network.config.num_classes, channels_last=channels_last)


def _randomized(network: N) -> N:
    """Nothing at its initial value: zero-initialised layers would hide what is behind them."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network
