"""What is one step of training, and what state does it carry? Loops, files and workers are the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion import fused
from diffusion.divergence import DivergenceWatch
from diffusion.ema import Ema, EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.losses import LossTerms, diffusion_losses, quartile_sums
from diffusion.randomness import TIMESTEP, TRAIN_NOISE, normal, uniform
from diffusion.schedule import NoiseSchedule
from diffusion.timestep_sampler import TimestepConfig, TimestepSampler, UniformConfig, build_timestep_sampler
from diffusion.types import Images, PerExample, Steps, check_choice

Norms = Literal["torch", "fused"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, in torch's words


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a network is trained. The defaults are IDDPM's: Adam, no warm-up, no annealing, no clipping."""

    images: int
    """Length of training on the clock of images_seen."""
    batch_size: int = 128
    """Of all workers together."""
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    ema: EmaConfig = field(default_factory=EmaConfig)
    """The averages of the weights."""
    timesteps: TimestepConfig = field(default_factory=UniformConfig)
    """How t is drawn."""
    shuffle_mib: int = 1024
    """Images are shuffled among so many MiB of pixels, drawn anew every epoch; all of a data set that is smaller."""
    flip: bool = False
    """Mirror half of the images left to right, as ADM does and IDDPM does not."""
    norms: Norms = "torch"
    """fused: an operator of our own (fused.py), on CPUs, where it is compiled first; other rounding, more speed."""
    tf32: bool = False
    """On GPUs: float32 loses 13 of its 23 bits before it is multiplied, for speed; all that follows, too."""

    def __post_init__(self) -> None:
        check_choice("train.norms", self.norms, Norms)
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
        if self.images % self.batch_size:
            raise ValueError(
                f"train.images={self.images}: must be a multiple of train.batch_size={self.batch_size}, such as "
                f"{-(-self.images // self.batch_size) * self.batch_size}"
            )


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured, over the batch of all workers. Tensors still on the device: reading one waits for it.

    Every mean is weighted as the loss is, so that it estimates the mean over uniform t however t was drawn.
    """

    loss: Float[Tensor, ""]
    simple: Float[Tensor, ""]
    """Mean squared error of the prediction."""
    vlb: Float[Tensor, ""] | None
    """T times the mean term of the bound: an estimate of L_vlb in bits/dim, less its prior."""
    grad_norm: Float[Tensor, ""]
    quartiles: Float[Tensor, "2 4"]
    """Of t: the weighted losses in each quarter of 0..T-1, summed, and their weights, summed."""

    def means(self) -> dict[str, Tensor]:
        """Those that were measured, by name."""
        measured = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "quartiles"}
        return {name: value for name, value in measured.items() if value is not None}


class TrainState:
    """All that one step hands to the next. Equal on all workers, and complete: what is saved resumes bit by bit."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, ema: Ema, timestep_sampler: TimestepSampler, *,
        fused_norms: bool = False,
    ) -> None:  # fmt: skip
        self.model = model
        self.fused_norms = fused_norms
        self.optimizer = optimizer
        self.ema = ema
        self.timestep_sampler = timestep_sampler
        self.images_seen = 0
        self.step = 0
        self._warm_at = torch.full_like(timestep_sampler.is_warm, -1, dtype=torch.int64)
        self.divergence = DivergenceWatch()

    @property
    def sampler_warm_at(self) -> int | None:
        """images_seen when importance sampling of t began. Reading it waits for the device."""
        seen = int(self._warm_at)
        return None if seen < 0 else seen

    def learn_timesteps(self, t: Steps, losses: PerExample) -> None:
        """Tell the sampler of t what a batch cost, and note when it has heard enough."""
        self.timestep_sampler.update(t, losses)
        begins = self.timestep_sampler.is_warm & (self._warm_at < 0)
        self._warm_at = torch.where(begins, self.images_seen, self._warm_at)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: model.*, ema.*, optimizer.*, sampler.*. Raises TrainingDiverged when it is lost."""
        self.divergence.check()
        return {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"ema.{name}": tensor for name, tensor in self.ema.state().items()},
            **{
                f"optimizer.{name}.{moment}": self.optimizer.state[parameter][moment]
                for name, parameter in self.model.named_parameters()
                for moment in MOMENTS
            },
            **{f"sampler.{name}": tensor for name, tensor in self.timestep_sampler.state().items()},
        }

    def meta(self) -> dict[str, Any]:
        """The rest of the state, as JSON has it."""
        return {"images_seen": self.images_seen, "step": self.step, "sampler_warm_at": self.sampler_warm_at}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from what tensors() and meta() gave. Refuses by name what is missing, unknown or misshapen."""
        own = self.tensors()
        _check_same_entries(own, tensors)
        if set(meta) != set(self.meta()):
            raise ValueError(f"training state has meta data {sorted(meta)}, not {sorted(self.meta())}")
        for name, tensor in own.items():
            if not name.startswith("sampler."):
                tensor.copy_(tensors[name])
        sampler = {name: tensors[f"sampler.{name}"] for name in self.timestep_sampler.state()}
        self.timestep_sampler.load(sampler)
        self.images_seen, self.step = meta["images_seen"], meta["step"]
        warm_at = meta["sampler_warm_at"]
        self._warm_at.fill_(-1 if warm_at is None else warm_at)

    def ema_weights(self, rate: float | None = None) -> dict[str, Tensor]:
        """The model's state_dict with averaged parameters: at a rate, or the first. Raises TrainingDiverged if lost."""
        self.divergence.check()
        return {**self.model.state_dict(), **self.ema.weights(rate)}


def build_train_state(config: TrainConfig, diffusion: DiffusionConfig, model: nn.Module) -> TrainState:
    """The state before the first step, around a model that is on its device already."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over memory; gives the same bits on every run
    )
    for parameter in model.parameters():
        # What AdamW would set up in its first step, so that the state is complete before it too.
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    if config.norms == "fused":
        if any(not parameter.is_cpu for parameter in model.parameters()):
            raise ValueError("train.norms='fused' is compiled for CPUs, and this model is on a GPU: set it to 'torch'")
        fused.compile()
    device = next(model.parameters()).device
    if config.tf32 and device.type == "cpu":
        raise ValueError("train.tf32=true is of GPUs, and this model is on a CPU: set it to false")
    sampler = build_timestep_sampler(config.timesteps, diffusion.num_timesteps, device=device)
    return TrainState(model, optimizer, Ema(config.ema, model), sampler, fused_norms=config.norms == "fused")


def train_step(
    state: TrainState,
    module: nn.Module,
    diffusion: DiffusionConfig,
    schedule: NoiseSchedule,
    *,
    x_start: Images,
    index: Int64[Tensor, "b"],
    step: int,
    seed: int,
) -> StepMetrics:
    """One update from this worker's share of the batch: its examples `index`. module is state.model, or DDP around it.

    t and eps are functions of (seed, step, index), so they do not depend on how many workers share the batch. Dropout
    is a function of (seed, step, rank): a resumed run repeats it, another number of workers draws other masks.
    """
    draws = uniform(seed=seed, stream=TIMESTEP, step=step, index=index, count=1)[:, 0]
    t, weights = state.timestep_sampler.sample(draws)
    eps = normal(seed=seed, stream=TRAIN_NOISE, step=step, index=index, shape=tuple(x_start.shape[1:]))
    with fused.used(state.fused_norms):  # the way back, too: it may run blocks again
        with _dropout_noise(state.model, seed=seed, step=step):
            terms = diffusion_losses(diffusion, schedule, module, x_start=x_start, t=t, eps=eps)
        grad_norm = _update(state, (terms.objective * weights).mean(), step=step)
    objective = terms.objective.detach()
    state.images_seen += len(x_start) * _world_size()
    state.step = step + 1
    _learn_timesteps(state, t, objective)
    measured = _measure(terms, t, weights, grad_norm, schedule.num_timesteps)
    state.divergence.add(step, loss=measured.loss, grad_norm=grad_norm, t=t, objective=objective)
    return measured


def _update(state: TrainState, loss: Float[Tensor, ""], *, step: int) -> Float[Tensor, ""]:
    """Gradient, AdamW, average of the weights; returns the norm of the gradient (DDP has averaged it by then)."""
    state.optimizer.zero_grad()
    loss.backward()
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    grad_norm = nn.utils.get_total_norm(gradients)
    state.optimizer.step()
    state.ema.update(state.model, step=step)
    return grad_norm


@torch.no_grad()
def _measure(terms: LossTerms, t: Steps, weights: Tensor, grad_norm: Tensor, num_timesteps: int) -> StepMetrics:
    rows = [terms.objective, terms.simple] + ([] if terms.vlb is None else [terms.vlb * num_timesteps])
    means = (torch.stack(rows) * weights).mean(dim=1)
    quartiles = quartile_sums(t, terms.objective, weights, num_timesteps=num_timesteps)
    if _world_size() > 1:
        everything = torch.cat([means / _world_size(), quartiles.flatten()])
        dist.all_reduce(everything)
        means, quartiles = everything[: len(rows)], everything[len(rows) :].reshape(2, 4)
    return StepMetrics(means[0], means[1], None if terms.vlb is None else means[2], grad_norm, quartiles)


def _learn_timesteps(state: TrainState, t: Steps, losses: PerExample) -> None:
    """Tell the sampler of t what this batch cost. All workers tell it all workers' losses in the order of ranks."""
    if not state.timestep_sampler.state():
        return  # nothing is learned, so nothing need be exchanged
    pairs = torch.stack([t.double(), losses.double()])
    if _world_size() > 1:
        everybody = [torch.empty_like(pairs) for _ in range(_world_size())]
        dist.all_gather(everybody, pairs)
        pairs = torch.cat(everybody, dim=1)
    state.learn_timesteps(pairs[0].long(), pairs[1])


@contextmanager
def _dropout_noise(model: nn.Module, *, seed: int, step: int) -> Iterator[None]:
    """Inside, torch's generators are a function of (seed, step, rank); outside, as if nothing had been drawn."""
    if not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        yield
        return
    devices = {parameter.device.index for parameter in model.parameters() if parameter.is_cuda}
    rank = dist.get_rank() if _world_size() > 1 else 0
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))
        yield


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_same_entries(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    for name in own:
        if name in given and (own[name].shape, own[name].dtype) != (given[name].shape, given[name].dtype):
            problems.append(f"{name} is {_kind(given[name])}, not {_kind(own[name])}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"training state does not fit this model: {'; '.join(problems[:5])}{more}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
