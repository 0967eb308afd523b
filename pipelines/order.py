"""Which image stands at position p of training? A function of (seed, p) and of how the images lie in shards.

Every epoch shuffles the shards, cuts them into windows, and shuffles the images of each window among themselves: a
window is what a reader must hold, and holds all images of a data set that is smaller. No list of them is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.permutation import KeyedPermutation, keyed_permutation
from diffusion.randomness import DATA_ORDER, SHARD_ORDER
from pipelines.shards import Manifest, Split


@dataclass(frozen=True, kw_only=True)
class ShuffledOrder:
    """The order of training. Images are numbered 0..count-1 as the manifest has them, positions from 0 without end.

    Windows are numbered from 0 without end, too, every epoch having as many. One window an epoch is a uniform shuffle.
    """

    seed: int
    count: int
    shard_rows: int
    """Images in every shard but the last, which may have fewer."""
    window_shards: int

    @classmethod
    def of(cls, manifest: Manifest, split: Split, *, seed: int, shuffle_bytes: int) -> ShuffledOrder:
        """With windows of at most shuffle_bytes of pixels, and at least a shard.

        Raises ValueError for shards of which one beside the last has another number of images than the first.
        """
        rows = [int(shard["rows"]) for shard in manifest.of_split(split)]
        if not rows or set(rows[:-1]) - {rows[0]} or not 0 < rows[-1] <= rows[0]:
            raise ValueError(
                f"shards of {split} hold {rows} images: all must hold the same number, but for a shorter last one; "
                f"prepare the data set again"
            )
        height, width, channels = manifest.shape
        window_shards = max(1, shuffle_bytes // (rows[0] * height * width * channels))
        return cls(seed=seed, count=sum(rows), shard_rows=rows[0], window_shards=window_shards)

    @property
    def shards(self) -> int:
        """How many shards hold the images."""
        return -(-self.count // self.shard_rows)

    @property
    def windows_per_epoch(self) -> int:
        """The last of an epoch may hold fewer shards."""
        return -(-self.shards // self.window_shards)

    def rows(self, positions: Tensor) -> Tensor:
        """The image at each position (int64)."""
        windows, rows = self.windows(positions), torch.empty_like(positions)
        for window in _few(windows).tolist():
            here = windows == window
            rows[here] = self._rows_in(window, positions[here])
        return rows

    def windows(self, positions: Tensor) -> Tensor:
        """The window each position lies in (int64)."""
        if self.windows_per_epoch == 1:
            return positions // self.count
        epochs = positions // self.count
        asked = _few(epochs)
        slots = torch.tensor([self._short_slot(epoch) for epoch in asked.tolist()])
        short = slots.index_select(0, torch.searchsorted(asked, epochs))
        ends = self._images_before((short // self.window_shards + 1) * self.window_shards, short)
        place = positions % self.count
        # Behind the window with the short shard, a position is where it would be if that shard were full.
        place = torch.where(place < ends, place, place + self._missing)
        return epochs * self.windows_per_epoch + place // (self.window_shards * self.shard_rows)

    def shards_of(self, window: int) -> list[int]:
        """The shards a window holds, in the order of the epoch."""
        epoch, number = divmod(window, self.windows_per_epoch)
        first = number * self.window_shards
        return self._shard_order(epoch).at(torch.arange(first, min(first + self.window_shards, self.shards))).tolist()

    @property
    def _missing(self) -> int:
        return self.shards * self.shard_rows - self.count

    def _rows_in(self, window: int, positions: Tensor) -> Tensor:
        epoch, number = divmod(window, self.windows_per_epoch)
        first, short = number * self.window_shards, torch.tensor(self._short_slot(epoch))
        edges = torch.tensor([first, first + self.window_shards])
        start, end = self._images_before(edges, short).tolist()
        shuffle = keyed_permutation(end - start, seed=self.seed, stream=DATA_ORDER, step=window)
        shuffled = shuffle.at(positions - epoch * self.count - start)
        if self.windows_per_epoch == 1:
            return shuffled
        place = start + shuffled
        place = torch.where(place < self._images_before(short + 1, short), place, place + self._missing)
        shards = torch.tensor(self.shards_of(window)).index_select(0, place // self.shard_rows - first)
        return shards * self.shard_rows + place % self.shard_rows

    def _images_before(self, slots: Tensor, short: Tensor) -> Tensor:
        """How many images of the epoch come before a slot, when the last shard stands in the slot `short`."""
        return slots.clamp(max=self.shards) * self.shard_rows - (slots > short) * self._missing

    def _short_slot(self, epoch: int) -> int:
        return int(self._shard_order(epoch).position_of(torch.tensor([self.shards - 1])))

    def _shard_order(self, epoch: int) -> KeyedPermutation:
        return keyed_permutation(self.shards, seed=self.seed, stream=SHARD_ORDER, step=epoch)


def _few(numbers: Tensor) -> Tensor:
    """Those there are, in order: quick where equal ones stand together."""
    return numbers.unique_consecutive().unique()
