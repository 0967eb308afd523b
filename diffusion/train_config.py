"""What decides how a network is trained? The defaults are IDDPM's: Adam, no warm-up, no annealing, no clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from diffusion.ema import EmaConfig
from diffusion.precision import Precision
from diffusion.timestep_sampler import TimestepConfig, UniformConfig
from diffusion.types import check_choice

Norms = Literal["torch", "fused"]
LrAnneal = Literal["none", "iddpm", "adm"]
Accumulation = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeConfig:
    """Gradients are summed over a fixed binary tree, so that 1, 2, 4, ... up to `shards` workers give the same bits.

    A worker takes its shards one after the other and keeps the activations of one: more shards take less memory.
    """

    kind: Literal["tree"] = "tree"
    shards: int = 4
    """Equal parts of every batch, a power of two."""

    def __post_init__(self) -> None:
        if self.shards < 1 or self.shards & (self.shards - 1):
            raise ValueError(f"train.reduction.shards={self.shards}: must be a power of two, such as 1, 2, 4 or 8")


@dataclass(frozen=True, kw_only=True, slots=True)
class AllReduceConfig:
    """Gradients are averaged by DDP while they are computed: faster, and other bits for other numbers of workers."""

    kind: Literal["allreduce"] = "allreduce"
    microbatch: int | None = None
    """Examples of which a worker keeps activations at a time; null: all of its share."""
    accumulation: Accumulation = "mean"
    """Of microbatches: sum is what was published, a gradient as many times too large as there are microbatches."""
    sharded: bool = False
    """FSDP2: weights, averages and the optimizer's state are spread over the workers, for what fits no single GPU."""

    def __post_init__(self) -> None:
        check_choice("train.reduction.accumulation", self.accumulation, Accumulation)
        if self.microbatch is not None and self.microbatch < 1:
            raise ValueError(f"train.reduction.microbatch={self.microbatch}: must be 1 or more, or null")
        if self.microbatch is None and self.accumulation == "sum":
            raise ValueError("train.reduction.accumulation='sum' changes nothing without a train.reduction.microbatch")


Reduction = TreeConfig | AllReduceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScaleConfig:
    """What keeps float16 gradients from vanishing: the loss times 2^log2, which adapts (PAPERS.md section 4)."""

    initial_log2: float = 20.0
    """16 in the published training of classifiers."""
    growth: float = 1e-3
    """Added to log2 after a good step; 1 is taken off when a gradient overflows, and the step is skipped."""
    floor_log2: float = 0.0
    """Training ends with an error below it, where what was published would go on for ever."""

    def __post_init__(self) -> None:
        for name in ("initial_log2", "growth", "floor_log2"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"train.loss_scale.{name}={getattr(self, name)}: must be finite")
        if self.growth < 0 or self.initial_log2 < self.floor_log2:
            raise ValueError(
                f"train.loss_scale: growth={self.growth} must be 0 or more, and initial_log2={self.initial_log2} not "
                f"below floor_log2={self.floor_log2}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a network is trained."""

    images: int
    """Length of training on the clock of images_seen."""
    batch_size: int = 128
    """Of all workers together."""
    lr: float = 1e-4
    lr_warmup_images: int = 0
    """Over so many images lr rises linearly from its first step's share. No published training does it."""
    lr_anneal: LrAnneal = "none"
    """Linearly to 0 at train.images: iddpm sets lr before a step, adm after it, so that its first two steps are full
    (PAPERS.md section 4)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad_norm: float | None = None
    """Gradients of a larger norm are shortened to it."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """The averages of the weights."""
    timesteps: TimestepConfig = field(default_factory=UniformConfig)
    """How t is drawn."""
    shuffle_mib: int = 1024
    """Images are shuffled among so many MiB of pixels, drawn anew every epoch; all of a data set that is smaller."""
    flip: bool = False
    """Mirror half of the images left to right, as ADM does and IDDPM does not."""
    reduction: Reduction = field(default_factory=TreeConfig)
    """How workers, and the parts of one worker's share, add up their gradients."""
    precision: Precision = "float32"
    """Of the forward pass and its gradient, by autocast; weights and averages stay float32. bf16 is for GPUs."""
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    """For fp16 alone."""
    gradient_checkpointing: bool = False
    """Compute activations twice and keep few: a third more time, far less memory."""
    compile: bool = False
    """torch.compile: minutes at the start, other rounding."""
    norms: Norms = "torch"
    """fused: an operator of our own (fused.py), on CPUs, where it is compiled first; other rounding, more speed."""
    tf32: bool = False
    """On GPUs: float32 loses 13 of its 23 bits before it is multiplied, for speed; all that follows, too."""

    def __post_init__(self) -> None:
        check_choice("train.norms", self.norms, Norms)
        check_choice("train.precision", self.precision, Precision)
        check_choice("train.lr_anneal", self.lr_anneal, LrAnneal)
        for name in ("images", "batch_size", "shuffle_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be 1 or more")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"train.{name}={getattr(self, name)}: must be more than 0 and finite")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"train.weight_decay={self.weight_decay}: must be 0 or more and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas={self.betas}: both must be at least 0 and less than 1")
        if self.clip_grad_norm is not None and not 0 < self.clip_grad_norm < float("inf"):
            raise ValueError(f"train.clip_grad_norm={self.clip_grad_norm}: must be more than 0 and finite, or null")
        if not 0 <= self.lr_warmup_images <= self.images:
            raise ValueError(f"train.lr_warmup_images={self.lr_warmup_images}: must be from 0 to train.images")
        if self.loss_scale != LossScaleConfig() and self.precision != "fp16":
            raise ValueError(
                f"train.loss_scale changes nothing at train.precision={self.precision!r}: leave it as it is, or set "
                f"train.precision='fp16'"
            )
        self._check_batch()

    def _check_batch(self) -> None:
        if self.images % self.batch_size:
            raise ValueError(
                f"train.images={self.images}: must be a multiple of train.batch_size={self.batch_size}, such as "
                f"{-(-self.images // self.batch_size) * self.batch_size}"
            )
        if isinstance(self.reduction, TreeConfig) and self.batch_size % self.reduction.shards:
            raise ValueError(
                f"train.batch_size={self.batch_size} cannot be cut into train.reduction.shards="
                f"{self.reduction.shards} equal parts: change one of them"
            )

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self.images // self.batch_size

    def check_workers(self, workers: int) -> None:
        """Raises ValueError when so many workers cannot train this together."""
        reduction = self.reduction
        if isinstance(reduction, TreeConfig) and reduction.shards % workers:
            raise ValueError(
                f"{workers} workers: must be a power of two up to train.reduction.shards={reduction.shards}, so that "
                f"each has as many shards and the result does not depend on their number; or set train.reduction.shards"
                f" higher, or train.reduction.kind=allreduce"
            )
        if self.batch_size % workers:
            raise ValueError(
                f"{workers} workers: train.batch_size={self.batch_size} must be a multiple of it, so that all get the "
                f"same share"
            )
        if isinstance(reduction, AllReduceConfig) and reduction.sharded and workers < 2:
            raise ValueError(
                "train.reduction.sharded=true spreads a network over workers: use 2 or more, or set it to false"
            )
        if isinstance(reduction, AllReduceConfig) and (size := reduction.microbatch) is not None:
            share = self.batch_size // workers
            if share % size:
                raise ValueError(
                    f"train.reduction.microbatch={size}: must divide the {share} examples that each of {workers} "
                    f"workers has of a batch"
                )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step (0-based)."""
        late = {"none": 0, "iddpm": step, "adm": max(step - 1, 0)}[self.lr_anneal]
        warm = min(1.0, (step + 1) * self.batch_size / self.lr_warmup_images) if self.lr_warmup_images else 1.0
        return self.lr * warm * (1 - late / self.steps)
