"""What does each kind of network make small in training? A diffusion model, one that enlarges images, a classifier.

An objective draws x_t, calls the network and gives one number an example; train_step minimises its weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional

from diffusion.gaussian import DiffusionConfig, q_sample
from diffusion.losses import diffusion_losses
from diffusion.schedule import NoiseSchedule
from diffusion.superres import reduced
from diffusion.types import Images, PerExample, Steps

Module = Callable[..., Tensor]
"""The network, or what trains it on several workers: called as the network is."""


@dataclass(frozen=True)
class Examples:
    """What a worker trains on in one step: its share of the batch."""

    x_start: Images
    index: Int64[Tensor, "b"]
    """Of each example within the whole batch: what is drawn for it is a function of it."""
    y: Int64[Tensor, "b"] | None = None
    """Classes, for networks that know them."""

    def part(self, begin: int, end: int) -> Examples:
        """Some of them, in order."""
        y = None if self.y is None else self.y[begin:end]
        return Examples(self.x_start[begin:end], self.index[begin:end], y)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Measured:
    """One number an example: what is minimised, and what people want to see beside it."""

    objective: PerExample
    shown: dict[str, PerExample]
    """By the names of metrics, in their units."""


@runtime_checkable
class Objective(Protocol):
    """The loss of each example at its t."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the noise that x_t has."""

    def __call__(self, module: Module, examples: Examples, *, t: Steps, eps: Images) -> Measured: ...


@dataclass(frozen=True)
class DiffusionObjective:
    """L_simple, L_vlb or L_hybrid of a diffusion model; conditioned on classes where examples have them."""

    config: DiffusionConfig
    schedule: NoiseSchedule

    def __call__(self, module: Module, examples: Examples, *, t: Steps, eps: Images) -> Measured:
        """See Objective; shown are simple, and vlb: T times the term, an estimate of L_vlb less its prior, bits/dim."""
        model = module if examples.y is None else partial(module, y=examples.y)
        terms = diffusion_losses(self.config, self.schedule, model, x_start=examples.x_start, t=t, eps=eps)
        shown = {"simple": terms.simple}
        if terms.vlb is not None:
            shown["vlb"] = terms.vlb * self.schedule.num_timesteps
        return Measured(terms.objective, shown)


@dataclass(frozen=True)
class SuperResObjective:
    """The same, of a network that is shown a small version of the image: its means over areas (PAPERS.md 3.2)."""

    config: DiffusionConfig
    schedule: NoiseSchedule
    small_size: int

    def __call__(self, module: Module, examples: Examples, *, t: Steps, eps: Images) -> Measured:
        """See DiffusionObjective."""
        shown_to_it = partial(module, low_res=reduced(examples.x_start, self.small_size))
        return DiffusionObjective(self.config, self.schedule)(shown_to_it, examples, t=t, eps=eps)


@dataclass(frozen=True)
class ClassifierObjective:
    """Cross-entropy of a classifier that sees x_t and is told t (ADM section 4.1), in nats."""

    schedule: NoiseSchedule
    noised: bool = True
    """Without it every image is shown as it is, and t as 0: a plain classifier."""

    def __call__(self, module: Module, examples: Examples, *, t: Steps, eps: Images) -> Measured:
        """See Objective; shown is accuracy: 1 where the true class has the highest logit. Needs the examples' y."""
        if examples.y is None:
            raise ValueError("a classifier learns from classes, and these examples have none")
        t = t if self.noised else torch.zeros_like(t)
        x = q_sample(self.schedule, x_start=examples.x_start, t=t, eps=eps) if self.noised else examples.x_start
        logits = module(x, self.schedule.model_t(t)).float()
        loss = functional.cross_entropy(logits, examples.y, reduction="none")
        with torch.no_grad():
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = best == examples.y[:, None]
        shown = {"accuracy": hits[:, 0].float()}
        if logits.shape[1] > 5:
            shown["accuracy_top5"] = hits.any(dim=1).float()
        return Measured(loss, shown)
