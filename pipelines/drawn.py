"""What do steps leave that draw images? The images in blocks and whole, a picture of the first, and their protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from orchestrator.step import Resources, StepContext
from pipelines.blocks import Block, Kept, map_blocks
from pipelines.shards import UNLABELLED, decoded_images, encoded_images

BLOCK = 128  # images, or --batch if that is more: the unit of progress, and what a lost worker loses
GRID_SIDE = 8
SAMPLES_FILE = "samples.npz"
GRID_FILE, STRIP_FILE = "grid.png", "first.png"
STRIP = 24  # images that stand for a row of a table
PROTOCOL_FILE = "protocol.json"
BLOCKS = "blocks"
LINE = 96  # its grey level
ZOOMED_TO = 512  # pixels a side, at least: small images are looked at enlarged

Drawn = tuple[np.ndarray, np.ndarray]
"""Images as uint8 (n, h, w, c), and their classes (n,), UNLABELLED where there are none."""


def draw_all(
    ctx: StepContext, work: Callable[[Block], Drawn], count: int, *, version: int, protocol: Mapping[str, str | int]
) -> None:
    """Have blocks of images drawn, and leave them.

    blocks/*.parquet (pixels, label), samples.npz (arr_0, uint8 NHWC, and of classes arr_1: the published evaluator's
    layout), grid.png, first.png and protocol.json.
    """
    kept = Kept(ctx.output / BLOCKS, version, ".parquet", encoded_images, decoded_images)
    blocks = map_blocks(ctx, work, count, block_size=max(BLOCK, ctx.resources.batch or 0), kept=kept)
    images, labels = (np.concatenate(column) for column in zip(*blocks, strict=True))
    arrays = {"arr_0": images} if (labels == UNLABELLED).all() else {"arr_0": images, "arr_1": labels}
    np.savez_compressed(ctx.output / SAMPLES_FILE, **arrays)  # type: ignore[arg-type]  # its stub's allow_pickle
    (ctx.output / PROTOCOL_FILE).write_text(json.dumps(dict(protocol)))
    image_grid(images[: GRID_SIDE**2]).save(ctx.output / GRID_FILE)
    image_grid(images[:STRIP], columns=min(STRIP, len(images))).save(ctx.output / STRIP_FILE)
    ctx.write_metrics({"samples": float(len(images))})


def drawn(samples: Path, block: Block) -> Drawn:
    """Some of the images such a step left, and their classes: what is stored of others is not read."""
    first, stop = block
    images, labels = [], []
    for file in sorted((samples / BLOCKS).glob("[0-9]*.parquet")):
        begin, end = map(int, file.stem.split("-"))
        if begin < stop and first < end:
            here = slice(max(first - begin, 0), stop - begin)
            stored = decoded_images(file.read_bytes())
            images.append(stored[0][here])
            labels.append(stored[1][here])
    return np.concatenate(images), np.concatenate(labels)


def batches(block: Block, resources: Resources, *, device: str) -> Iterator[Tensor]:
    """The indices of a block's images, as many at a time as the network shall see."""
    yield from torch.arange(*block, device=device).split(resources.batch or max(BLOCK, block[1] - block[0]))


def labels_of(y: Tensor | None, count: int) -> np.ndarray:
    """Classes as they are stored."""
    return np.full(count, UNLABELLED) if y is None else y.cpu().numpy()


def image_grid(images: np.ndarray, *, columns: int | None = None) -> Image.Image:
    """A contact sheet of uint8 NHWC images, row by row, a grey line between them; square unless columns are given."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), LINE, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    zoom = -(-ZOOMED_TO // picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
