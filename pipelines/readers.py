"""How do images get from shards to the training step? A reader: its batch is a function of (seed, step, share).

A split whose decoded pixels fit the memory a node may use is mapped whole. A larger one streams by: the window of
shards in use and the next, which a thread fetches meanwhile. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pipelines.decoded import MIB, Decoded, DecodedCache, decoded_bytes, decoded_split
from pipelines.order import ShuffledOrder
from pipelines.shards import Manifest, Split

Share = slice | Tensor
"""Which examples of the global batch: a slice, or their indices (int64)."""
SIDE_BY_SIDE = 2
"""Shards of a window that are fetched and decoded at a time; each is held whole meanwhile."""
AT_ONCE = 2**15  # positions whose rows are worked out together: one by one they would cost more than the images


class Batch(NamedTuple):
    """Examples as they are stored."""

    images: Tensor
    """uint8 (b, channels, height, width)."""
    labels: Tensor
    """int64 (b,); UNLABELLED where there are none."""


@runtime_checkable
class ImageReader(Protocol):
    """Gives the batches of a training. Closed by whoever opened it."""

    def batch(self, step: int, share: Share) -> Batch:
        """A worker's share of a step's batch. Raises DamagedArtifact for a shard that is not what was written."""
        ...

    def close(self) -> None:
        """Let go of threads and files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def read_rows(dataset: Path, split: Split, rows: slice | np.ndarray, *, memory_bytes: int) -> Batch:
    """Some images of a split in the data set's order; all of it is decoded on this node, unless it is already."""
    with closing(decoded_split(dataset, split, memory_bytes=memory_bytes)) as held:
        return Batch(torch.from_numpy(held.pixels[rows].copy()), torch.from_numpy(held.labels[rows].copy()))


def open_reader(
    dataset: Path, split: Split, *, seed: int, batch_size: int, shuffle_bytes: int, memory_bytes: int, cache: Path
) -> ImageReader:
    """A reader of a split, in the order of its seed. cache is a folder on this node for decoded images.

    Workers of a node share what one of them has decoded. Raises ValueError when memory_bytes is too little.
    """
    manifest = Manifest.read(dataset)
    order = ShuffledOrder.of(manifest, split, seed=seed, shuffle_bytes=shuffle_bytes)
    steps, shards = StepRows(order, batch_size), list(manifest.of_split(split))
    decoded = DecodedCache(cache, memory_bytes, dataset, manifest)
    if fits_whole(manifest, order, memory_bytes):
        return ResidentReader(decoded.open(shards), steps)
    return StreamingReader(decoded, shards, steps)


def check_memory(dataset: Path, split: Split, *, shuffle_bytes: int, memory_bytes: int) -> None:
    """Raises ValueError when memory_bytes is too little for a reader of that split."""
    manifest = Manifest.read(dataset)
    fits_whole(manifest, ShuffledOrder.of(manifest, split, seed=0, shuffle_bytes=shuffle_bytes), memory_bytes)


def fits_whole(manifest: Manifest, order: ShuffledOrder, memory_bytes: int) -> bool:
    """Whether all images may be decoded at once. Raises ValueError when not even two windows of them may."""
    whole = decoded_bytes(manifest, rows=order.count, files=1)
    if whole <= memory_bytes:
        return True
    rows = min(order.window_shards * order.shard_rows, order.count)
    needed = 2 * decoded_bytes(manifest, rows=rows, files=min(order.window_shards, order.shards))
    if needed > memory_bytes:
        raise ValueError(_too_little(min(needed, whole), memory_bytes, one_shard=order.window_shards == 1))
    return False


class StepRows:
    """Which image each example of a step is, and in which window it lies."""

    def __init__(self, order: ShuffledOrder, batch_size: int) -> None:
        self.order, self._batch_size = order, batch_size
        self._steps = max(1, min(AT_ONCE, order.count) // batch_size)
        self._block = -1
        self._windows = self._rows = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Windows and rows of the global batch (int64)."""
        block, place = divmod(step, self._steps)
        if block != self._block:
            count = self._steps * self._batch_size
            positions = torch.arange(block * count, (block + 1) * count)
            self._windows = self.order.windows(positions).reshape(self._steps, self._batch_size)
            self._rows = self.order.rows(positions).reshape(self._steps, self._batch_size)
            self._block = block
        return self._windows[place], self._rows[place]


class ResidentReader(AbstractContextManager["ResidentReader"]):
    """All images of the split, mapped into memory."""

    def __init__(self, images: Decoded, steps: StepRows) -> None:
        self._images, self._steps = images, steps

    def batch(self, step: int, share: Share) -> Batch:
        """As ImageReader says."""
        rows = self._steps.at(step)[1][share].numpy()
        images, labels = self._images.pixels.take(rows, axis=0), self._images.labels.take(rows)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels))

    def close(self) -> None:
        """As ImageReader says."""
        self._images.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


class StreamingReader(AbstractContextManager["StreamingReader"]):
    """The window that is in use and the next one, which a thread reads meanwhile; nothing beyond."""

    def __init__(self, decoded: DecodedCache, shards: Sequence[dict[str, Any]], steps: StepRows) -> None:
        self._decoded, self._shards, self._steps = decoded, shards, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._shard_threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="shard")
        self._wanted: frozenset[int] = frozenset()
        self._windows: dict[int, Future[dict[int, Decoded]]] = {}

    def batch(self, step: int, share: Share) -> Batch:
        """As ImageReader says. A window that cannot be read raises when its images are asked for."""
        windows, rows = (numbers[share].numpy() for numbers in self._steps.at(step))
        height, width, channels = self._decoded.manifest.shape
        batch = np.empty((len(rows), channels, height, width), np.uint8), np.empty(len(rows), np.int64)
        for window in np.unique(windows).tolist():
            self._copy(window, np.flatnonzero(windows == window), rows, batch)
        return Batch(*map(torch.from_numpy, batch))

    def close(self) -> None:
        """As ImageReader says; waits until the threads are through with the shards they are at."""
        self._want()
        self._thread.shutdown(cancel_futures=True)
        self._shard_threads.shutdown()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _copy(self, window: int, places: np.ndarray, rows: np.ndarray, batch: tuple[np.ndarray, np.ndarray]) -> None:
        """Fill the places of a batch whose rows lie in a window."""
        shards, within = np.divmod(rows[places], self._steps.order.shard_rows)
        for shard, held in self._window(window).items():
            here = np.flatnonzero(shards == shard)
            batch[0][places[here]] = held.pixels.take(within[here], axis=0)
            batch[1][places[here]] = held.labels.take(within[here])

    def _window(self, number: int) -> dict[int, Decoded]:
        """The shards of a window by number, waited for. The next window is on its way, and all others are given up."""
        self._want(number, number + 1)
        try:
            return self._windows[number].result()
        except Exception:
            self._windows.pop(number)  # whoever asks again has it read again
            raise

    def _want(self, *numbers: int) -> None:
        self._wanted = frozenset(numbers)
        for number in self._windows.keys() - self._wanted:
            window = self._windows.pop(number)
            if not window.cancel():
                window.add_done_callback(_give_up)
        for number in numbers:
            if number not in self._windows:
                shards = self._steps.order.shards_of(number)
                self._windows[number] = self._thread.submit(self._read, number, shards)

    def _read(self, window: int, shards: list[int]) -> dict[int, Decoded]:
        """In the thread. Stops early when the window is wanted no more, or a shard cannot be read."""
        held: dict[int, Decoded] = {}

        def hold(shard: int) -> None:
            if window in self._wanted:
                held[shard] = self._decoded.open([self._shards[shard]])

        # One is fetched while another is decoded.
        ends = [self._shard_threads.submit(hold, shard) for shard in shards]
        failed = [end for end in wait(ends, return_when=FIRST_EXCEPTION).done if end.exception()]
        if failed:
            wait([end for end in ends if not end.cancel()])
            _close(held)
            failed[0].result()
        return held


def _give_up(window: Future[dict[int, Decoded]]) -> None:
    if window.exception() is None:
        _close(window.result())


def _close(held: dict[int, Decoded]) -> None:
    while held:  # the last references: what they map is mapped no more
        held.popitem()[1].close()


def _too_little(needed: int, memory_bytes: int, *, one_shard: bool) -> str:
    half = memory_bytes // MIB // 2
    lower = "" if one_shard or half < 2 else f", or lower train.shuffle_mib below {half}"
    return (
        f"data_mib={memory_bytes // MIB}: decoded images that are shuffled among each other, and as many that come "
        f"next, take {-(-needed // MIB)} MiB of a node: raise --data-mib to that{lower}"
    )
