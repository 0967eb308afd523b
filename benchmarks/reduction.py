"""What does it cost that any number of workers gives the same bits? The tree beside DDP, by two processes with gloo.

Both take whole steps of training: the same network, batch, optimizer and average; a turn each, behind a barrier.

    PYTHONPATH=. python benchmarks/reduction.py > docs/results/reduction.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.train_config import AllReduceConfig, Reduction, TrainConfig, TreeConfig
from diffusion.train_state import build_train_state
from diffusion.training import train_step
from diffusion.unet import UNetConfig
from pipelines.presets import tiny
from pipelines.train import build_network

WORKERS, ROUNDS, SEED = 2, 9, 0
DDP = "DDP"
WAYS: dict[str, Reduction] = {
    DDP: AllReduceConfig(),
    "tree, 2 shards": TreeConfig(shards=2),
    "tree, 4 shards": TreeConfig(shards=4),
    "tree, 8 shards": TreeConfig(shards=8),
}


@dataclass(frozen=True)
class Case:
    """A network, the batch of both workers together, and the steps of a turn."""

    model: UNetConfig
    batch: int
    steps: int


SMALL = tiny().model
CASES = {
    "8x8, batch 32": Case(SMALL, 32, 10),
    "8x8, batch 128": Case(SMALL, 128, 5),
    "32x32, 64 channels, batch 32": Case(
        replace(SMALL, image_size=32, channels=3, model_channels=64, attention_resolutions=(16,)), 32, 1
    ),
}


class Contestant:
    """One worker's part of a training whose gradients are added up in one way."""

    def __init__(self, case: Case, reduction: Reduction, images: Tensor) -> None:
        diffusion = DiffusionConfig()
        config = TrainConfig(
            images=10**9, batch_size=case.batch, lr=1e-4, ema=EmaConfig(rates=(0.98,)), reduction=reduction
        )
        network = build_network(case.model, diffusion, seed=SEED)
        self.state = build_train_state(config, network, num_timesteps=diffusion.num_timesteps)
        self.module: nn.Module = network
        if isinstance(reduction, AllReduceConfig):
            self.module = nn.parallel.DistributedDataParallel(network)
        self.objective = DiffusionObjective(diffusion, build_schedule(diffusion))
        share = case.batch // WORKERS
        rows = torch.arange(dist.get_rank() * share, (dist.get_rank() + 1) * share)
        self.examples = Examples(images[rows], rows)

    def advance(self, steps: int) -> None:
        """Take so many steps."""
        for _ in range(steps):
            train_step(self.state, self.module, self.objective, self.examples, step=self.state.step, seed=SEED)


def work(rank: int, folder: str, rounds: int) -> None:
    """One worker's part of all turns; the first one prints."""
    torch.set_num_threads(1)
    store = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORKERS, timeout=timedelta(minutes=5))
    for name, case in CASES.items():
        size, generator = case.model.image_size, torch.Generator().manual_seed(SEED)
        images = torch.randn(case.batch, case.model.channels, size, size, generator=generator)
        ways = {way: Contestant(case, reduction, images) for way, reduction in WAYS.items()}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, contestant in ways.items():
                dist.barrier()
                began = time.perf_counter()
                contestant.advance(case.steps)
                dist.barrier()
                taken[way] += [(time.perf_counter() - began) / case.steps] if turn else []  # the first warms up
            if rank == 0:
                print(f"{name}: round {turn}", file=sys.stderr)
        if rank == 0:
            parameters = sum(parameter.numel() for parameter in ways[DDP].state.model.parameters())
            print(f"| {name}, {parameters / 1e6:.1f} M parameters | " + " | ".join(_cells(taken)) + " |", flush=True)
    dist.destroy_process_group()


def _cells(taken: dict[str, list[float]]) -> list[str]:
    """DDP's step, and the others' as a multiple of DDP's in the same round, with quartiles."""
    cells = [f"{1000 * statistics.median(taken[DDP]):.1f}"]
    for way in [way for way in taken if way != DDP]:
        ratios = [ours / theirs for ours, theirs in zip(taken[way], taken[DDP], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    return cells


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print("# What it costs that any number of workers gives the same bits\n")
    print(f"{WORKERS} processes of 1 thread, gloo, float32, torch {torch.__version__}; medians of {options.rounds}")
    print("rounds (quartiles), taking turns. A tree is given as a multiple of DDP's step in the same round.\n")
    print("`PYTHONPATH=. python benchmarks/reduction.py`\n")
    print(f"| | DDP, ms a step | {' | '.join(way for way in WAYS if way != DDP)} |")
    print("|---|---:|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, args=(str(Path(folder)), options.rounds), nprocs=WORKERS)


if __name__ == "__main__":
    main()
