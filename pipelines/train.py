"""How is one diffusion model trained? A step that goes on from its own checkpoints, on one worker or many.

python pipelines/train.py tiny --store artifacts --set diffusion.loss=hybrid
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion.augment import flipped
from diffusion.checkpoints import HEADER, header_of
from diffusion.ema import rate_name
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.precision import allow_tf32
from diffusion.training import TrainConfig, TrainState, build_train_state, train_step
from diffusion.transfer import sent
from diffusion.unet import UNet, UNetConfig
from orchestrator.backend import SpmdContext
from orchestrator.checkpoint import CheckpointDirectory
from orchestrator.config import canonical_json, from_dict, to_dict
from orchestrator.journal import Journal
from orchestrator.step import JOURNAL_FILE, Step, StepContext, write_progress
from pipelines.decoded import MIB, cache_folder
from pipelines.metrics_window import MetricsWindow
from pipelines.readers import ImageReader, open_reader
from pipelines.trained import CONFIG, MODEL_FILE, TrainStepConfig, placed

VERSION = 3
LOG_EVERY_STEPS = 10
PROGRESS_SECONDS = 1.0


def train_step_of(
    model: UNetConfig, diffusion: DiffusionConfig, train_config: TrainConfig, seed: int, *, dataset: Step
) -> Step:
    """Training as a step of a plan."""
    config = TrainStepConfig(model=model, diffusion=diffusion, train=train_config, seed=seed)
    return Step(name="train", version=VERSION, config=config, inputs={"dataset": dataset}, run=train)


def train(config: TrainStepConfig, ctx: StepContext) -> None:
    """Train on the workers the resources name; leaves model.safetensors: averaged weights, config in its header.

    Averages at further rates stand beside it, as ema_{rate}.safetensors.
    """
    payload = {
        "config": to_dict(config),
        "dataset": str(ctx.inputs["dataset"]),
        "output": str(ctx.output),
        "threads": ctx.resources.cpus_per_worker,
        "checkpoint_seconds": ctx.resources.checkpoint_seconds,
        "data_mib": ctx.resources.data_mib,
    }
    name = f"{ctx.output.parent.name}-{ctx.output.name}"
    summary = ctx.backend.spmd(train_worker, payload, name=name, resources=ctx.resources)
    ctx.write_metrics(summary["metrics"], notes=summary["notes"])


def train_worker(spmd: SpmdContext, payload: dict[str, Any]) -> dict[str, Any]:
    """One worker's part of training. All workers hold the same state; rank 0 writes it."""
    torch.set_num_threads(payload["threads"])
    config = from_dict(TrainStepConfig, payload["config"])
    allow_tf32(config.train.tf32)
    reader = open_reader(
        Path(payload["dataset"]), "train", seed=config.seed, batch_size=config.train.batch_size,
        shuffle_bytes=config.train.shuffle_mib * MIB, memory_bytes=payload["data_mib"] * MIB, cache=cache_folder(),
    )  # fmt: skip
    with reader:
        run = TrainingRun(config, spmd, Path(payload["output"]), reader)
        run.resume()
        run.train(checkpoint_seconds=payload["checkpoint_seconds"])
    return run.finish() if spmd.rank == 0 else {}


@dataclass(frozen=True)
class Examples:
    """What a worker trains on in one step."""

    step: int
    index: Tensor
    """Of each example within the global batch."""
    x_start: Tensor
    data_wait: float
    """Seconds until the reader had the images."""


class TrainingRun:
    """The state of one worker's training and where it is kept."""

    def __init__(self, config: TrainStepConfig, spmd: SpmdContext, output: Path, reader: ImageReader) -> None:
        if config.train.batch_size % spmd.world_size:
            raise ValueError(
                f"train.batch_size={config.train.batch_size} cannot be shared evenly by {spmd.world_size} workers: "
                f"use a number of workers that divides it"
            )
        self.config = config
        self.spmd = spmd
        self.output = output
        self.reader = reader
        self.schedule = build_schedule(config.diffusion).to(spmd.device)
        self.network = placed(build_network(config.model, config.diffusion, seed=config.seed), spmd.device)
        self.state: TrainState = build_train_state(config.train, config.diffusion, self.network)
        self.module: nn.Module = DistributedDataParallel(self.network) if spmd.world_size > 1 else self.network
        self.checkpoints = CheckpointDirectory(output / "checkpoints")
        self.damage: list[str] = []
        """What was wrong with checkpoints when training resumed: told in the step's notes."""
        self.journal = Journal(output / JOURNAL_FILE) if spmd.rank == 0 else None

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if there is one."""
        checkpoint = self.checkpoints.load_latest(on_damage=self.damage.append)
        if checkpoint is not None:
            state = checkpoint.files["state.safetensors"]
            self._check_network(state)
            self.state.load_tensors(load(state), json.loads(checkpoint.files["meta.json"]))
        if self.journal is not None:
            self.journal.truncate_after(self.state.images_seen)

    def _check_network(self, state: bytes) -> None:
        """Raises ValueError for the state of another network: one of another layout of attention fits as well."""
        described = header_of(state).get(HEADER)
        if described is None or json.loads(described) != json.loads(json.dumps(self.network.description())):
            raise ValueError(f"{self.output}: its checkpoint is of another network ({described}): remove checkpoints/")

    def train(self, *, checkpoint_seconds: float) -> None:
        """Train until train.images have been seen, journaling means over windows of LOG_EVERY_STEPS steps."""
        window = MetricsWindow(self.state.images_seen)
        saved = shown = time.monotonic()
        for examples in self._batches():
            measured = train_step(
                self.state, self.module, self.config.diffusion, self.schedule,
                x_start=examples.x_start, index=examples.index, step=examples.step, seed=self.config.seed,
            )  # fmt: skip
            if self.spmd.rank > 0:
                continue
            window.add(measured, data_wait=examples.data_wait)
            now = time.monotonic()
            if (examples.step + 1) % LOG_EVERY_STEPS == 0 or self._ended():
                self._log(window.close(self.state.images_seen))
            if now - shown >= PROGRESS_SECONDS:
                self._show(window)
                shown = now
            # Between windows: a resumed run then journals the means that an undisturbed one would.
            if now - saved >= checkpoint_seconds and window.is_empty and not self._ended():
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        """One verified checkpoint of the complete state."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.tensors().items()}
        described = {HEADER: json.dumps(self.network.description())}
        files = {
            "state.safetensors": save(tensors, metadata=described),
            "meta.json": canonical_json(self.state.meta()).encode(),
        }
        self.checkpoints.save(files, clock=self.state.images_seen)

    def finish(self) -> dict[str, Any]:
        """Write the averaged weights, and return what the table should know of this training."""
        self.save()
        for number, rate in enumerate(self.config.train.ema.rates):
            self._write_weights(MODEL_FILE if number == 0 else f"ema_{rate_name(rate)}.safetensors", rate)
        metrics = {"images_seen": float(self.state.images_seen), "parameters": float(_count(self.state.model))}
        length = f"trained on {self.state.images_seen:,} images, a batch of {self.config.train.batch_size} at a time"
        return {"metrics": metrics, "notes": [length, *self._notes(), *self.damage]}

    def _write_weights(self, file: str, rate: float) -> None:
        config = canonical_json(to_dict(self.config))
        self.network.save(self.output / file, weights=self.state.ema_weights(rate), metadata={CONFIG: config})

    def _batches(self) -> Iterator[Examples]:
        """This rank's share of every batch, until training ends."""
        train, seed = self.config.train, self.config.seed
        share = train.batch_size // self.spmd.world_size
        mine = slice(self.spmd.rank * share, (self.spmd.rank + 1) * share)
        index = torch.arange(train.batch_size)[mine].to(self.spmd.device)
        while not self._ended():
            step, began = self.state.images_seen // train.batch_size, time.monotonic()
            stored = self.reader.batch(step, mine).images
            data_wait = time.monotonic() - began
            images = sent(stored, self.spmd.device)
            if train.flip:
                images = flipped(images, seed=seed, step=step, index=index)
            yield Examples(step, index, to_unit_range(images), data_wait)

    def _ended(self) -> bool:
        return self.state.images_seen >= self.config.train.images

    def _log(self, means: dict[str, float]) -> None:
        assert self.journal is not None
        self.journal.log(means, step=self.state.images_seen)

    def _show(self, window: MetricsWindow) -> None:
        write_progress(
            self.output, done=self.state.images_seen, total=self.config.train.images, unit="img",
            facts=window.last,
        )  # fmt: skip

    def _notes(self) -> list[str]:
        sampler = self.config.train.timesteps
        if sampler.kind == "uniform":
            return []
        warm_at = self.state.sampler_warm_at
        name = (
            "the paper's history of each t"
            if sampler.pools is None
            else f"some {sampler.pools} histories of neighbouring t"
        )
        if warm_at is None:
            return [
                f"importance sampling of t ({name}) never left its uniform warm-up in {self.state.images_seen} images"
            ]
        return [f"importance sampling of t ({name}) began after {warm_at} of {self.state.images_seen} images"]


def build_network(model: UNetConfig, diffusion: DiffusionConfig, *, seed: int) -> UNet:
    """The U-Net with initial weights that are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(model, out_channels=model.channels * (2 if diffusion.learns_variance else 1))


def to_tensor(images: Any) -> Tensor:
    """uint8 (n, h, w, c) array -> uint8 (n, c, h, w) tensor."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1], as published: pixel / 127.5 - 1."""
    return images.float().div_(127.5).sub_(1)  # in place: new memory costs a CPU more than the arithmetic


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("train", "Train one diffusion model."))
