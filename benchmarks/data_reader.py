"""How fast do images come to a training step, beside torch's DataLoader over the same images in memory?

Noise of 32x32x3, written as shards; batches of 128. All take turns in one process with one thread, besides the
DataLoader's workers and the stream's own thread; the files are on this machine. The stream shuffles a quarter of the
images at a time and may keep 0.7 of them, so that every epoch decodes them anew. "bytes" are handed over as they are
stored, for a GPU to normalise; "floats" are in [-1, 1]. Printed are medians over the rounds, and their quarter points.
    PYTHONPATH=. python benchmarks/data_reader.py > docs/results/data_reader.md
    PYTHONPATH=. python benchmarks/data_reader.py --images 8000 --rounds 2 --batches 20
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines import shards
from pipelines.readers import ImageReader, StreamingReader, open_reader
from pipelines.shards import ShardWriter
from pipelines.train import to_unit_range

BATCH = 128
WARM_UP = 10  # batches of each turn that are not timed: a DataLoader's workers have to begin an epoch
SHARD_ROWS = 4096
REFERENCE = "DataLoader, 2 workers"
Images = Callable[[], Iterator[Tensor]]
"""Begins a turn: batches without end."""


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images as a user would hand them to a DataLoader."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, floats: bool) -> None:
        self._images, self._labels, self._floats = images, labels, floats

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self._images[index]).permute(2, 0, 1)
        return to_unit_range(image) if self._floats else image, int(self._labels[index])


def loaded(images: np.ndarray, labels: np.ndarray, *, floats: bool, workers: int) -> Images:
    """A DataLoader's batches, epoch after epoch."""
    loader = DataLoader(
        InMemory(images, labels, floats=floats), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def batches() -> Iterator[Tensor]:
        while True:
            yield from (batch[0] for batch in loader)

    return batches


def read(reader: ImageReader, *, floats: bool) -> Images:
    """A reader's batches; every turn goes on where the last one ended."""
    steps = count()

    def batches() -> Iterator[Tensor]:
        for step in steps:
            images = reader.batch(step, slice(None)).images
            yield to_unit_range(images) if floats else images

    return batches


def write(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """As a prepared data set."""
    folder.mkdir()
    with patch.object(shards, "MOST_SHARD_ROWS", SHARD_ROWS):
        writer = ShardWriter(folder, shape=images.shape[1:], num_classes=10)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.add("train", image, int(label), str(number))
        writer.add("test", images[0], 0, "test")
        writer.finish(source="noise", classes=list("0123456789"))


def contestants(folder: Path, images: np.ndarray, labels: np.ndarray, opened: ExitStack) -> dict[str, Images]:
    """All of them, by name and by what they hand over."""
    write(folder / "data", images, labels)
    found = dict[str, Images]()
    for kind in ("bytes", "floats"):
        floats = kind == "floats"
        for workers in (0, 2):
            loader = loaded(images, labels, floats=floats, workers=workers)
            found[f"DataLoader, {workers} workers | {kind}"] = loader
        for name, shuffled, kept in (("resident", 1.0, 2.0), ("streaming", 0.25, 0.7)):
            cache = folder / f"{name} {kind}"
            cache.mkdir()
            reader = opened.enter_context(
                open_reader(folder / "data", "train", seed=0, batch_size=BATCH, cache=cache,
                            shuffle_bytes=int(images.nbytes * shuffled), memory_bytes=int(images.nbytes * kept))
            )  # fmt: skip
            assert isinstance(reader, StreamingReader) == (name == "streaming")
            found[f"our reader, {name} | {kind}"] = read(reader, floats=floats)
    return found


def images_per_second(begin: Images, batches: int) -> float:
    """Of one turn."""
    turn = begin()
    for _ in range(WARM_UP):
        next(turn)
    began = time.perf_counter()
    for _ in range(batches):
        next(turn)
    return batches * BATCH / (time.perf_counter() - began)


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=300, help="timed in each turn")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (flags.images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, flags.images)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        turns = contestants(Path(folder), images, labels, opened)
        for begin in turns.values():
            images_per_second(begin, flags.images // BATCH)  # an epoch, in which files are made and memory is mapped
        speeds: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(flags.rounds):
            for name, begin in turns.items():
                speeds[name].append(images_per_second(begin, flags.batches))
    print(
        f"# Images to a training step, a second\n\n{flags.images:,} images of 32x32x3, batches of {BATCH}, "
        f"{flags.rounds} rounds of {flags.batches} batches, {os.cpu_count()} CPUs.\n"
        f"`PYTHONPATH=. python benchmarks/data_reader.py`\n\n"
        f"| who | hands over | images/s | quarters | times {REFERENCE} |\n|---|---|---:|---:|---:|"
    )
    for name, measured in speeds.items():
        low, median, high = statistics.quantiles(measured, n=4)
        ratios = [a / b for a, b in zip(measured, speeds[f"{REFERENCE} | {name.partition(' | ')[2]}"], strict=True)]
        print(f"| {name} | {median:,.0f} | {low:,.0f} to {high:,.0f} | {statistics.median(ratios):.1f} |")


if __name__ == "__main__":
    main()
