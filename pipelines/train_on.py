"""How is a training run as a step of a plan? On as many workers as its resources name, each told the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.backend import SpmdContext
from orchestrator.blobs import open_blobs
from orchestrator.checkpoint import CheckpointStore
from orchestrator.config import canonical_json, to_dict
from orchestrator.step import StepContext
from pipelines.decoded import MIB, cache_folder
from pipelines.readers import open_reader
from pipelines.trained import CONFIG
from pipelines.training_parts import Place, Training
from pipelines.training_run import TrainingRun


def payload_of(config: Any, ctx: StepContext) -> dict[str, Any]:
    """What a worker of a training is told; config is the step's."""
    resources, step = ctx.resources, f"{ctx.output.parent.name}/{ctx.output.name}"
    own = str(ctx.output / "checkpoints")
    return {
        "config": to_dict(config),
        "dataset": str(ctx.inputs["dataset"]),
        "threads": resources.cpus_per_worker,
        "data_mib": resources.data_mib,
        "place": Place(
            output=ctx.output,
            checkpoints=own if resources.checkpoints is None else f"{resources.checkpoints.rstrip('/')}/{step}",
            fence=ctx.fence,
            checkpoint_seconds=resources.checkpoint_seconds,
            checkpoint_steps=resources.checkpoint_steps,
        ),
    }


def run_training(ctx: StepContext, worker: Callable[[SpmdContext, Any], Any], config: Any) -> None:
    """Train on the workers the resources name, and leave what the first of them says."""
    name = f"{ctx.output.parent.name}-{ctx.output.name}"
    payload = payload_of(config, ctx)
    store = CheckpointStore(open_blobs(payload["place"].checkpoints))
    summary = ctx.backend.spmd(worker, payload, name=name, resources=ctx.resources, kept=store.clock)
    ctx.write_metrics(summary["metrics"], notes=summary["notes"])


def train_on(spmd: SpmdContext, payload: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """One worker's part of a training; what the first worker returns is for write_metrics."""
    config = training.config
    reader = open_reader(
        Path(payload["dataset"]), "train", seed=training.seed, batch_size=config.batch_size,
        shuffle_bytes=config.shuffle_mib * MIB, memory_bytes=payload["data_mib"] * MIB, cache=cache_folder(),
    )  # fmt: skip
    with reader:
        run = TrainingRun(training, spmd, payload["place"], reader)
        run.resume()
        run.train()
    return run.finish({CONFIG: canonical_json(payload["config"])})
