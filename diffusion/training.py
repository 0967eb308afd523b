"""What is one step of training? Loops, files and workers are the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion import fused
from diffusion.losses import quartile_sums
from diffusion.objectives import Examples, Measured, Module, Objective
from diffusion.precision import autocast
from diffusion.randomness import TIMESTEP, TRAIN_NOISE, normal, uniform
from diffusion.reduction import TreeSum, gathered, like_parameters, rank, sum_over_workers, world_size
from diffusion.sharding import whole
from diffusion.train_config import AllReduceConfig, TreeConfig
from diffusion.train_state import TrainState
from diffusion.types import PerExample, Steps


@dataclass(frozen=True)
class StepMetrics:
    """What a step measured, over the batch of all workers. Tensors still on the device: reading one waits for it.

    Every mean is weighted as the loss is, so that it estimates the mean over uniform t however t was drawn.
    """

    names: tuple[str, ...]
    """loss, and what the objective shows beside it."""
    rows: Float[Tensor, "t_and_weight_and_names b"]
    """t, weight, and a row for each name, of every example of the batch: means of many steps cost one look at them."""
    num_timesteps: int
    grad_norm: Float[Tensor, ""]
    """Before it was clipped; not finite in a step that was skipped."""
    lr: float
    loss_scale_log2: float | None
    """Of this step; None but at fp16."""
    skipped: bool
    """The gradient overflowed float16, and nothing was learned."""

    @property
    def means(self) -> Float[Tensor, "names"]:
        """By name, over the batch; the first is the loss, which was minimised."""
        return means_of(self.rows)

    @property
    def quartiles(self) -> Float[Tensor, "names_and_weight 4"]:
        """See quartiles_of."""
        return quartiles_of(self.rows, num_timesteps=self.num_timesteps)


@torch.no_grad()
def means_of(rows: Float[Tensor, "rows b"]) -> Float[Tensor, "names"]:
    """Weighted means over the examples of StepMetrics.rows, those of one step or of several beside each other."""
    return (rows[2:] * rows[1]).mean(dim=1)


@torch.no_grad()
def quartiles_of(rows: Float[Tensor, "rows b"], *, num_timesteps: int) -> Float[Tensor, "names_and_weight 4"]:
    """Of t: the weighted values in each quarter of 0..T-1, summed, and, last, their weights, summed."""
    return quartile_sums(rows[0].long(), rows[2:], rows[1], num_timesteps=num_timesteps)


def train_step(
    state: TrainState, module: nn.Module, objective: Objective, examples: Examples, *, step: int, seed: int
) -> StepMetrics:
    """One update from this worker's share of the batch. module is state.model, or what wraps it (DDP, a compiler).

    t and eps are functions of (seed, step, index), dropout is one of (seed, step, part of the batch): of the shard, on
    a tree, so that nothing hangs on how many workers there are; else of the worker and its microbatch. Raises
    TrainingDiverged, some steps late, when a loss or gradient is no number, and LossScaleAtFloor.
    """
    lr, scale = state.config.lr_at(step), state.loss_scale
    log2 = None if scale is None else scale.log2
    for parameter in state.parameters:
        parameter.grad = None
    with fused.used(state.config.norms == "fused"):  # the way back, too: it may run blocks again
        if isinstance(state.config.reduction, TreeConfig):
            rows = _tree_gradient(state, module, objective, examples, state.config.reduction, step=step, seed=seed)
        else:
            rows = _averaged_gradient(state, module, objective, examples, state.config.reduction, step=step, seed=seed)
    grad_norm, skipped = _update(state, lr=lr, step=step)
    everything = gathered(rows.values)
    state.images_seen += everything.shape[1]
    state.step = step + 1
    if state.timestep_sampler.state():
        state.learn_timesteps(everything[0].long(), everything[2])
    state.divergence.add(step, rows=everything, grad_norm=torch.zeros_like(grad_norm) if skipped else grad_norm)
    return StepMetrics(rows.names, everything, objective.schedule.num_timesteps, grad_norm, lr, log2, skipped)


@dataclass(frozen=True)
class _Rows:
    """t, weight, objective and what is shown, of each example, in float64."""

    names: tuple[str, ...]
    values: Float[Tensor, "rows b"]

    @staticmethod
    def of(t: Steps, weights: PerExample, measured: Measured) -> _Rows:
        rows = [t, weights, measured.objective.detach(), *(shown.detach() for shown in measured.shown.values())]
        return _Rows(("loss", *measured.shown), torch.stack([row.double() for row in rows]))

    @staticmethod
    def joined(parts: list[_Rows]) -> _Rows:
        return _Rows(parts[0].names, torch.cat([part.values for part in parts], dim=1))


def _tree_gradient(
    state: TrainState, module: nn.Module, objective: Objective, examples: Examples, tree: TreeConfig, *,
    step: int, seed: int,
) -> _Rows:  # fmt: skip
    """Leave the mean gradient of the whole batch in .grad, summed over the tree of its shards."""
    shards = tree.shards // world_size()
    size, total, parts = len(examples) // shards, TreeSum(), []
    for number in range(shards):
        shard = examples.part(number * size, (number + 1) * size)
        key = (seed, step, rank() * shards + number)
        # A power of two: the mean over shards costs no rounding.
        parts.append(_backward(state, module, objective, shard, key=key, share=1 / tree.shards))
        if tree.shards == 1:
            return parts[0]  # a sum of one: in .grad already
        total.add(like_parameters(state.parameters))
    gradients = total.total()
    if world_size() > 1:
        sum_over_workers(gradients)
    for parameter, gradient in zip(state.parameters, gradients, strict=True):
        parameter.grad = gradient
    return _Rows.joined(parts)


def _averaged_gradient(
    state: TrainState, module: nn.Module, objective: Objective, examples: Examples, allreduce: AllReduceConfig, *,
    step: int, seed: int,
) -> _Rows:  # fmt: skip
    """Leave in .grad what this worker's microbatches add up to; DDP or FSDP around the model averages workers."""
    size = allreduce.microbatch or len(examples)
    count, parts = len(examples) // size, []
    share = 1.0 if allreduce.accumulation == "sum" else 1 / count
    for number in range(count):
        part = examples.part(number * size, (number + 1) * size)
        with _synchronised(module, last=number == count - 1):
            key = (seed, step, rank(), number)
            parts.append(_backward(state, module, objective, part, key=key, share=share))
    return _Rows.joined(parts)


def _backward(
    state: TrainState, module: Module, objective: Objective, examples: Examples, *,
    key: tuple[int, ...], share: float,
) -> _Rows:  # fmt: skip
    """Add the gradient of a share of the weighted mean of these examples' losses to .grad."""
    seed, step = key[:2]
    draws = uniform(seed=seed, stream=TIMESTEP, step=step, index=examples.index, count=1)[:, 0]
    t, weights = state.timestep_sampler.sample(draws)
    shape = tuple(examples.x_start.shape[1:])
    eps = normal(seed=seed, stream=TRAIN_NOISE, step=step, index=examples.index, shape=shape)
    with _dropout_noise(state, key=key):
        with autocast(examples.x_start.device, state.config.precision):
            measured = objective(module, examples, t=t, eps=eps)
        loss = (measured.objective * weights).mean() * share
        (loss if state.loss_scale is None else loss * state.loss_scale.factor).backward()
    return _Rows.of(t, weights, measured)


def _update(state: TrainState, *, lr: float, step: int) -> tuple[Float[Tensor, ""], bool]:
    """AdamW and the averages, unless float16 overflowed; the norm of the gradient, and whether it did."""
    gradients = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
    if state.loss_scale is not None:
        torch._foreach_mul_(gradients, 1 / state.loss_scale.factor)
    total_norm = nn.utils.get_total_norm(gradients)
    grad_norm = whole(total_norm)
    if state.loss_scale is not None:
        overflowed = not bool(grad_norm.isfinite())  # the one look at a device that float16 costs every step
        state.loss_scale.update(overflowed=overflowed, step=step)
        if overflowed:
            return grad_norm, True
    if state.config.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(state.parameters, state.config.clip_grad_norm, total_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.step()
    state.ema.update(step=step)
    return grad_norm, False


@contextmanager
def _synchronised(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Workers exchange gradients in the last microbatch alone."""
    no_sync: Callable[[], Any] | None = getattr(module, "no_sync", None)
    if no_sync is None or last:
        yield
        return
    with no_sync():
        yield


@contextmanager
def _dropout_noise(state: TrainState, *, key: tuple[int, ...]) -> Iterator[None]:
    """Inside, torch's generators are a function of the key; outside, as if nothing had been drawn."""
    if not state.dropout:
        yield
        return
    devices = {parameter.device.index for parameter in state.parameters if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
