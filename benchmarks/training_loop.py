"""What does our training loop cost over a bare one, and the tree over plain sums? Ratios in one run, taking turns.

The bare loop has the same arithmetic and nothing else: images in memory, the same draws of t and noise, the same
network, loss, AdamW and average, gradients of as many parts added up by torch, and their norm, which the papers' loop
takes, too. Ours also reads images in their order, sums over the tree, measures and watches every step, journals and
shows progress. What a checkpoint costs is measured by
itself: the wait for a copy of the state, and what is done in another thread.

    PYTHONPATH=. python benchmarks/training_loop.py > docs/results/training_loop.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.losses import diffusion_losses
from diffusion.randomness import TIMESTEP, TRAIN_NOISE, normal, uniform
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.unet import UNetConfig
from orchestrator.backend import LocalBackend, SpmdContext
from orchestrator.checkpoint_writer import CheckpointWriter
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.data import dataset_step
from pipelines.decoded import MIB, cache_folder, decoded_split
from pipelines.presets import tiny
from pipelines.readers import open_reader
from pipelines.train import build_network, diffusion_training, to_unit_range
from pipelines.trained import TrainStepConfig, placed
from pipelines.training_parts import Place
from pipelines.training_run import TrainingRun

ROUNDS = 15
SEED = 0


@dataclass(frozen=True)
class Case:
    """A network, the batch, its shards, and the steps of a turn."""

    model: UNetConfig
    batch: int
    shards: int
    steps: int


SMALL = tiny().model
CASES = {
    "8x8, batch 4": Case(SMALL, 4, 1, 30),
    "8x8, one level, batch 16": Case(replace(SMALL, channel_mult=(1,), attention_resolutions=(8,)), 16, 1, 20),
    "8x8, batch 32": Case(SMALL, 32, 1, 10),
    "8x8, batch 128, 2 shards": Case(SMALL, 128, 2, 10),
    "8x8, batch 128, 4 shards": Case(SMALL, 128, 4, 10),
    "8x8, 64 channels, batch 32": Case(replace(SMALL, model_channels=64), 32, 1, 10),
}


def bare_loop(case: Case, images: Tensor, diffusion: DiffusionConfig, config: TrainConfig) -> Iterator[None]:
    """A step for every next()."""
    network, schedule = placed(build_network(case.model, diffusion, seed=SEED), "cpu"), build_schedule(diffusion)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    rate, index, step = config.ema.rates[0], torch.arange(case.batch), 0
    while True:
        begin = step * case.batch % (len(images) - case.batch)
        x_start = to_unit_range(images[begin : begin + case.batch])
        optimizer.zero_grad()
        for part in range(case.shards):
            rows = index.chunk(case.shards)[part]
            draws = uniform(seed=SEED, stream=TIMESTEP, step=step, index=rows, count=1)[:, 0]
            t = (draws * diffusion.num_timesteps).long()
            eps = normal(seed=SEED, stream=TRAIN_NOISE, step=step, index=rows, shape=tuple(x_start.shape[1:]))
            terms = diffusion_losses(diffusion, schedule, network, x_start=x_start[rows], t=t, eps=eps)
            (terms.objective.mean() / case.shards).backward()
        torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(average, rate)
            torch._foreach_add_(average, parameters, alpha=1 - rate)
        step += 1
        yield


class Ours:
    """The whole loop of pipelines/training_run.py, advanced turn by turn: its length is set before each."""

    def __init__(self, case: Case, dataset: Path, diffusion: DiffusionConfig, config: TrainConfig, home: Path) -> None:
        step = TrainStepConfig(model=case.model, diffusion=diffusion, train=config, seed=SEED)
        home.mkdir()
        place = Place(home, str(home / "checkpoints"), None, "", checkpoint_seconds=1e9, checkpoint_steps=None)
        reader = open_reader(
            dataset, "train", seed=SEED, batch_size=config.batch_size, shuffle_bytes=2**30, memory_bytes=2**30,
            cache=cache_folder(),
        )  # fmt: skip
        spmd = SpmdContext(rank=0, world_size=1, local_rank=0, device="cpu")
        self.run = TrainingRun(diffusion_training(step, "cpu"), spmd, place, reader)
        self.run.resume()
        self._until = 0
        self.run._ended = lambda: self.run.state.step >= self._until  # type: ignore[method-assign]

    def advance(self, steps: int) -> None:
        """Train for so many steps."""
        self._until = self.run.state.step + steps
        with CheckpointWriter(self.run.store) as writer:
            self.run._train_and_keep(writer)

    def checkpoint(self) -> tuple[float, float]:
        """Seconds that training waits for a checkpoint, and until it is stored."""
        with CheckpointWriter(self.run.store) as writer:
            began = time.perf_counter()
            self.run._offer(writer)
            waited = time.perf_counter() - began
            writer.flush()
        return waited, time.perf_counter() - began


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process: the machine is shared, and what runs beside must not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    home, diffusion = Path(tempfile.mkdtemp()), DiffusionConfig()
    store, dataset = ArtifactStore(str(home / "store")), dataset_step(tiny().data)
    materialize([dataset], store, backend=LocalBackend(), resources=Resources())
    folder = store.path(dataset)
    images = torch.from_numpy(decoded_split(folder, "train", memory_bytes=2**10 * MIB).pixels.copy())
    print("# What the training loop costs\n\n1 thread, torch", torch.__version__)
    print("CPU seconds; medians of", options.rounds, "rounds, taking turns.\n")
    print("`PYTHONPATH=. python benchmarks/training_loop.py`\n")
    print("| | bare loop, ms a step | ours, ms a step | ours over bare | checkpoint: wait, ms | until stored, ms |")
    print("|---|---:|---:|---|---:|---:|")
    for number, (name, case) in enumerate(CASES.items()):
        config = TrainConfig(
            images=case.batch * 10**6, batch_size=case.batch, lr=1e-4, ema=EmaConfig(rates=(0.98,)),
            reduction=TreeConfig(shards=case.shards),
        )  # fmt: skip
        bare = bare_loop(case, images, diffusion, config)
        ours = Ours(case, folder, diffusion, config, home / str(number))
        rounds = []
        for turn in range(options.rounds + 1):
            taken = (
                seconds(lambda: [next(bare) for _ in range(case.steps)]),  # noqa: B023
                seconds(lambda: ours.advance(case.steps)),  # noqa: B023
            )
            rounds += [taken] if turn else []  # the first warms up
            print(f"{name}: round {turn}", file=sys.stderr)
        ratios = sorted(our / their for their, our in rounds)
        theirs, mine = (1000 * statistics.median(column) / case.steps for column in zip(*rounds, strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        kept = [ours.checkpoint() for _ in range(5)]
        waited, stored = (1000 * statistics.median(column) for column in zip(*kept, strict=True))
        over = f"{middle:.3f} ({low:.3f}-{high:.3f})"
        print(f"| {name} | {theirs:.1f} | {mine:.1f} | {over} | {waited:.1f} | {stored:.0f} |", flush=True)


if __name__ == "__main__":
    main()
