"""A prepared data set of few images in small shards, every training image labelled with its row."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np

from pipelines import shards
from pipelines.shards import Manifest, ShardWriter


def gray(count: int, *, size: int = 8) -> np.ndarray:
    """Images of one gray each, by their row."""
    return np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) + np.zeros((1, size, size, 1), dtype=np.uint8)


def noise(count: int, *, shape: tuple[int, int, int] = (4, 4, 3)) -> np.ndarray:
    """Images no two of which are equal."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_data_set(folder: Path, images: np.ndarray, *, shard_rows: int) -> Manifest:
    """Write them as the training split, beside one test image."""
    folder.mkdir(parents=True)
    with patch.object(shards, "MOST_SHARD_ROWS", shard_rows):
        writer = ShardWriter(folder, shape=images.shape[1:], num_classes=len(images))
        for row, image in enumerate(images):
            writer.add("train", image, row, f"{row}")
        writer.add("test", images[0], 0, "test")
        return writer.finish(source="small", classes=[f"{row}" for row in range(len(images))])
