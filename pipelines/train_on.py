"""How is a training run as a step of a plan? On as many workers as its resources name, each told the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffusion.precision import allow_tf32
from orchestrator.backend import Resumable, SpmdContext
from orchestrator.blobs import open_blobs
from orchestrator.checkpoint import CheckpointStore
from orchestrator.config import canonical_json, to_dict
from orchestrator.errors import PreflightError
from orchestrator.step import StepContext
from orchestrator.stopping import ask_to_stop
from pipelines.decoded import MIB, cache_folder
from pipelines.readers import open_reader
from pipelines.trained import CONFIG, Origin
from pipelines.training_parts import Place, Training
from pipelines.training_run import TrainingRun

C = TypeVar("C")
Build = Callable[[C, str], Training]
"""(config of the step, device) -> what is trained there."""


@dataclass(frozen=True)
class Order:
    """What every worker of a training is told."""

    build: Build[Any]
    config: Any
    dataset: Path
    place: Place
    threads: int
    data_mib: int


def run_training(config: Any, ctx: StepContext, build: Build[Any]) -> None:
    """Train on the workers the resources name, and leave what the first of them says."""
    order = _order(config, ctx, build)
    store = CheckpointStore(open_blobs(order.place.checkpoints))
    name = f"{ctx.output.parent.name}-{ctx.output.name}"
    resumable = Resumable(store.clock, partial(ask_to_stop, ctx.output, began_by=ctx.began_by))
    summary = ctx.backend.spmd(train_worker, order, name=name, resources=ctx.resources, resumable=resumable)
    ctx.write_metrics(summary["metrics"], notes=summary["notes"])


def _order(config: Any, ctx: StepContext, build: Build[Any]) -> Order:
    resources, start = ctx.resources, None
    checkpoints = kept_in(ctx.output, resources.checkpoints)
    if "start" in ctx.inputs and not CheckpointStore(open_blobs(checkpoints)).last_clock():
        start = _end_of(ctx.inputs["start"], resources.checkpoints)
    place = Place(
        output=ctx.output,
        checkpoints=checkpoints,
        start=start,
        goes_on="start" in ctx.inputs,
        fence=ctx.fence,
        began_by=ctx.began_by,
        checkpoint_seconds=resources.checkpoint_seconds,
        checkpoint_steps=resources.checkpoint_steps,
    )
    return Order(build, config, ctx.inputs["dataset"], place, resources.cpus_per_worker, resources.data_mib)


def kept_in(output: Path, checkpoints: str | None) -> str:
    """Where the states of a step are: with it, or where the command says."""
    if checkpoints is None:
        return str(output / "checkpoints")
    return f"{checkpoints.rstrip('/')}/{output.parent.name}/{output.name}"


def _end_of(start: Path, checkpoints: str | None) -> str:
    """Where the last state of a finished training is. Raises PreflightError when it is nowhere that is known."""
    train = Origin.read(start).train
    assert train is not None
    places = dict.fromkeys([kept_in(start, checkpoints), kept_in(start, None)])
    for place in places:
        if CheckpointStore(open_blobs(place)).last_clock() == train.images:
            return place
    raise PreflightError(
        f"training cannot go on from {start.parent.name}/{start.name}: its state after {train.images} images is not in "
        f"{' or '.join(places)}; name the place with --checkpoints, or train from the beginning, without milestones"
    )


def train_worker(spmd: SpmdContext, order: Order) -> dict[str, Any]:
    """One worker's part of a training; what the first worker returns is for write_metrics."""
    torch.set_num_threads(order.threads)
    allow_tf32(order.config.train.tf32)
    training = order.build(order.config, spmd.device)
    config = training.config
    reader = open_reader(
        order.dataset, "train", seed=training.seed, batch_size=config.batch_size,
        shuffle_bytes=config.shuffle_mib * MIB, memory_bytes=order.data_mib * MIB, cache=cache_folder(),
    )  # fmt: skip
    with reader:
        run = TrainingRun(training, spmd, order.place, reader)
        run.resume()
        run.train()
    return run.finish({CONFIG: canonical_json(to_dict(order.config))})
