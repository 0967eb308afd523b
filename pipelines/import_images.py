"""How do anybody's images become a data set? Read in blocks by many workers, and written as shards in their order.

Each block is kept as a file of its own until all are there: a preparation that is killed goes on where it was. The
bytes of the shards depend on the images alone, not on how many workers read them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from orchestrator.errors import PreflightError
from orchestrator.step import StepContext, write_whole
from pipelines.blocks import Block, map_blocks
from pipelines.preprocess import ImageRefused, decode, resize_center_crop
from pipelines.shards import UNLABELLED, Manifest, ShardWriter, split_of
from pipelines.sources import (
    Entry,
    Format,
    Labels,
    Source,
    combined_digest,
    content_digest,
    entry_digest,
    open_source,
)

BLOCK = 512  # images a worker reads at a time, and what a kill loses of it
BLOCKS_FOLDER = "blocks"
SKIPPED_FILE = "skipped.json"
NAMED_AT_MOST = 5

OnError = Literal["fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Where images are, and what to do about those that cannot be read. None of it is part of a data set's identity."""

    path: Path
    format: Format | Literal["auto"] = "auto"
    labels: Labels = "folder"
    on_error: OnError = "fail"

    def open(self) -> Source:
        """The source, to be read from."""
        return open_source(self.path, format=self.format, labels=self.labels)


@dataclass(frozen=True)
class BlockSaid:
    """What is known of a block besides its pixels."""

    names: list[str]
    """Of the images that were read."""
    refused: list[str]
    """Why the others were not."""
    digests: list[str]
    """Of all its entries, in hexadecimal: what tells whether the source has changed."""


def digest_of(options: ImportOptions) -> str:
    """The content of a source: what a data set made from it is known by."""
    with options.open() as source:
        return content_digest(source)


def import_images(
    options: ImportOptions, ctx: StepContext, *, content: str, image_size: int, channels: Literal[1, 3],
    test_percent: int,
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Write the source's images as shards; returns the manifest, and what the table should know.

    Raises PreflightError when the source is no longer what it was, when an image cannot be read and on_error is fail,
    and when nothing can be read.
    """
    blocks = ctx.output / BLOCKS_FOLDER
    blocks.mkdir(exist_ok=True)
    with options.open() as source:
        entries = source.entries()
        classes = class_names([entry.label for entry in entries])
        count = len(entries)
        kind = source.format
    work = partial(read_block, options, classes, image_size, channels, blocks)
    read = map_blocks(ctx, work, count, block_size=BLOCK)
    if combined_digest(kind, (bytes.fromhex(digest) for block in read for digest in block.digests)) != content:
        shutil.rmtree(blocks)
        raise PreflightError(f"{options.path} has changed while it was read: prepare it again")
    refused = [one for block in read for one in block.refused]
    if refused and options.on_error == "fail":
        raise PreflightError(f"{_listed(refused)} of {count} images. Mend them, or leave them out with --on-error skip")
    if len(refused) == count:
        raise PreflightError(f"{options.path}: none of its {count} images can be read: {_listed(refused)}")
    manifest = _write_shards(blocks, count, classes, ctx, options, (image_size, image_size, channels), test_percent)
    write_whole(ctx.output / SKIPPED_FILE, json.dumps(refused, indent=1))
    shutil.rmtree(blocks)
    return manifest, [f"left out: {_listed(refused)} of {count} images"] if refused else []


def read_block(
    options: ImportOptions, classes: Sequence[str], image_size: int, channels: Literal[1, 3], blocks: Path, block: Block
) -> BlockSaid:
    """Read the block's images into a file of its own, unless it is there."""
    file = _block_file(blocks, block[0])
    if not file.is_file():
        with options.open() as source:
            entries = source.entries()[slice(*block)]
            images, labels, names, refused = _read(entries, classes, image_size, channels)
            said = BlockSaid(names, refused, [entry_digest(entry).hex() for entry in entries])
        shape = (len(images), image_size, image_size, channels)
        partial_file = file.with_suffix(".partial.npz")
        np.savez(
            partial_file,
            images=np.array(images, dtype=np.uint8).reshape(shape),
            labels=np.array(labels, dtype=np.int64),
            said=np.array(json.dumps(asdict(said))),
        )
        partial_file.replace(file)
    with np.load(file, allow_pickle=False) as kept:
        return BlockSaid(**json.loads(str(kept["said"])))


def class_names(labels: Sequence[str | int | None]) -> list[str]:
    """The classes 0, 1, ... of a source: its labels, sorted; whole numbers stand for themselves.

    Raises PreflightError for labels that are not whole numbers from 0 without gaps, or names, or none at all.
    """
    kinds = {type(label) for label in labels}
    if kinds == {type(None)}:
        return []
    if len(kinds) > 1:
        without = sum(label is None for label in labels)
        raise PreflightError(
            f"{without} of {len(labels)} images have no label, the others have: give each one, or use --labels none"
        )
    found = sorted(set(labels))  # type: ignore[type-var]  # all of one type
    if kinds == {int} and found != list(range(len(found))):
        raise PreflightError(
            f"labels run from {found[0]} to {found[-1]} with {len(found)} different values: they must be "
            f"0, 1, ... without gaps"
        )
    return [str(label) for label in found]


def _read(
    entries: Sequence[Entry], classes: Sequence[str], image_size: int, channels: Literal[1, 3]
) -> tuple[list[np.ndarray], list[int], list[str], list[str]]:
    images, labels, names, refused = [], [], [], []
    numbers = {name: number for number, name in enumerate(classes)}
    for entry in entries:
        try:
            images.append(_pixels(entry, image_size, channels))
        except ImageRefused as error:
            refused.append(str(error))
            continue
        labels.append(UNLABELLED if entry.label is None else numbers[str(entry.label)])
        names.append(entry.name)
    return images, labels, names, refused


def _pixels(entry: Entry, image_size: int, channels: Literal[1, 3]) -> np.ndarray:
    content = entry.read()
    if isinstance(content, bytes):
        image = decode(content, name=entry.name, channels=channels)
    else:
        image = Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content)
        image = image.convert("L" if channels == 1 else "RGB")
    try:
        return resize_center_crop(image, image_size)
    except ValueError as error:
        raise ImageRefused(entry.name, str(error)) from error


def _write_shards(
    blocks: Path, count: int, classes: list[str], ctx: StepContext, options: ImportOptions,
    shape: tuple[int, int, int], test_percent: int,
) -> Manifest:  # fmt: skip
    writer = ShardWriter(ctx.output, shape=shape, num_classes=len(classes))
    for first in range(0, count, BLOCK):
        with np.load(_block_file(blocks, first), allow_pickle=False) as kept:
            images, labels, names = kept["images"], kept["labels"], json.loads(str(kept["said"]))["names"]
        for image, label, name in zip(images, labels, names, strict=True):
            writer.add(split_of(image, test_percent=test_percent), image, int(label), name)
    try:
        return writer.finish(source=options.path.name, classes=classes)
    except ValueError as error:
        raise PreflightError(f"{options.path}: {error}; with few images, hold out more of them") from error


def _block_file(blocks: Path, first: int) -> Path:
    return blocks / f"{first:012d}.npz"


def _listed(refused: Sequence[str]) -> str:
    more = f" and {len(refused) - NAMED_AT_MOST} more" if len(refused) > NAMED_AT_MOST else ""
    return f"{'; '.join(refused[:NAMED_AT_MOST])}{more}: {len(refused)}"
