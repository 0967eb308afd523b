"""A small trained model for benchmarks: the tiny preset's network, on the digits, in this process."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.gaussian import build_schedule
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.data import dataset_step
from pipelines.decoded import MIB
from pipelines.presets import tiny
from pipelines.readers import open_reader
from pipelines.shards import read_split
from pipelines.train import build_network, to_tensor, to_unit_range
from pipelines.trained import TrainedModel


def trained_model(*, steps: int, loss: str = "hybrid") -> tuple[TrainedModel, Tensor]:
    """The averaged network after so many steps, and the test images in [-1, 1]."""
    base = tiny()
    diffusion = replace(base.diffusion, loss=loss)  # type: ignore[arg-type]
    store = ArtifactStore(tempfile.mkdtemp())
    dataset = dataset_step(base.data)
    materialize([dataset], store, backend=LocalBackend(), resources=Resources())
    folder: Path = store.path(dataset)
    network = build_network(base.model, diffusion, seed=0)
    schedule = build_schedule(diffusion)
    state = build_train_state(base.train, network, num_timesteps=diffusion.num_timesteps)
    objective = DiffusionObjective(diffusion, schedule)
    reader = open_reader(
        folder, "train", seed=0, batch_size=base.train.batch_size, shuffle_bytes=base.train.shuffle_mib * MIB,
        memory_bytes=2**30, cache=Path(tempfile.mkdtemp()),
    )  # fmt: skip
    index = torch.arange(base.train.batch_size)
    with reader:
        for step in range(steps):
            x_start = to_unit_range(reader.batch(step, slice(None)).images)
            train_step(state, network, objective, Examples(x_start, index), step=step, seed=0)
    network.load_state_dict(state.ema_weights())
    network.eval().requires_grad_(False)
    return TrainedModel(network, diffusion, schedule), to_unit_range(to_tensor(read_split(folder, "test").images))
