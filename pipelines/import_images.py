"""How do anybody's images become a data set? Read in blocks by many workers, and written as shards in their order.

Each block is kept as a file of its own until the data set is whole: a preparation that is killed goes on where it was.
The bytes of the shards depend on the images alone, not on how many workers read them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from orchestrator.backend import Backend
from orchestrator.errors import PreflightError
from orchestrator.files import write_whole
from orchestrator.step import Resources, StepContext
from pipelines.blocks import Block, map_blocks
from pipelines.own_split import below_split, own_sides, own_split
from pipelines.preprocess import ImageRefused, decode, resize_center_crop
from pipelines.shards import UNLABELLED, Manifest, ShardWriter, Split, split_of
from pipelines.sources import Entry, Format, Labels, Source, content_digest, entry_digest, open_source

BLOCK = 512  # images a worker reads at a time, and what a kill loses of it; fewer where they are large
BLOCK_BYTES = 2**26
BLOCKS_FOLDER = ".blocks"  # hidden: no part of the artifact
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


@dataclass(frozen=True)
class Target:
    """What images are made into."""

    image_size: int
    channels: Literal[1, 3]
    test_percent: int | None
    """None where the split is the source's own."""
    split_folders: bool = False
    """Whether an image's class is what comes below the folder of its split."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.image_size, self.image_size, self.channels

    @property
    def block(self) -> int:
        """Images in a block."""
        return max(1, min(BLOCK, BLOCK_BYTES // int(np.prod(self.shape))))


def look_at(options: ImportOptions) -> list[Entry]:
    """The source's entries. Raises PreflightError for one whose labels make no classes, before any image is read."""
    with options.open() as source:
        entries = list(source.entries())
    class_names(options, [entry.label for entry in entries])
    return entries


def digest_of(
    options: ImportOptions, count: int, *, kept: Path, backend: Backend, resources: Resources,
    on_done: Callable[[int], None],
) -> str:  # fmt: skip
    """The content of a source of `count` entries: what a data set made from it is known by. Reads every image.

    What is known lies in the folder `kept` meanwhile, for a call that comes after a killed one; the caller removes it.
    A source that changed in between is noticed later: the data set is made from what is read then, and held against it.
    """
    token = uuid.uuid4().hex
    kept.mkdir(parents=True, exist_ok=True)
    blocks = [(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
    work = partial(digest_block, options, token, kept)
    digests = backend.map(work, blocks, resources=resources, on_result=lambda index, _: on_done(blocks[index][1]))
    with options.open() as source:
        return content_digest(source.format, (digest for block in digests for digest in block))


def looking_folder(store: Path, options: ImportOptions, count: int) -> Path:
    """Where digest_of may keep what it knows of this source."""
    source = f"{options.path}\0{options.format}\0{options.labels}\0{count}"
    return store / ".looking" / hashlib.sha256(source.encode()).hexdigest()[:16]


def digest_block(options: ImportOptions, token: str, kept: Path, block: Block) -> list[bytes]:
    """entry_digest of the block's entries, unless they are known."""
    file, length = kept / f"{block[0]:012d}.txt", block[1] - block[0]
    with suppress(OSError, ValueError):
        known = [bytes.fromhex(line) for line in file.read_text().split()]
        if len(known) == length and all(len(digest) == hashlib.sha256().digest_size for digest in known):
            return known
    entries = _opened(options, token).entries()[slice(*block)]
    digests = [entry_digest(entry, content_of(entry)) for entry in entries]
    with suppress(FileNotFoundError):  # another preparation of the same source is done, and has removed the folder
        write_whole(file, "\n".join(digest.hex() for digest in digests))
    return digests


def import_images(
    options: ImportOptions, ctx: StepContext, *, content: str, target: Target
) -> tuple[Manifest, list[str]]:
    """Write the source's images as shards; returns the manifest, and what the table should know.

    Raises PreflightError when the source is no longer what it was, when an image cannot be read and on_error is fail,
    and when nothing can be read.
    """
    blocks = ctx.output / BLOCKS_FOLDER
    blocks.mkdir(exist_ok=True)
    with options.open() as source:
        entries, kind, ignored = source.entries(), source.format, source.ignored
        sides = own_sides(entry.name for entry in entries)
        target = dataclasses.replace(target, split_folders=bool(sides) and options.labels == "folder")
        classes = class_names(options, [_label(entry, target) for entry in entries])
        count = len(entries)
    work = partial(read_block, options, uuid.uuid4().hex, classes, target, blocks)
    read = map_blocks(ctx, work, count, block_size=target.block)
    if content_digest(kind, (bytes.fromhex(digest) for block in read for digest in block.digests)) != content:
        shutil.rmtree(blocks)
        raise PreflightError(f"{options.path} has changed while it was read: prepare it again")
    refused = [one for block in read for one in block.refused]
    if refused and options.on_error == "fail":
        for number, block in enumerate(read):
            if block.refused:  # what is mended outside, such as a codec, is tried again
                _block_file(blocks, number * target.block).unlink()
        raise PreflightError(f"{_listed(refused)} of {count} images. Mend them, or leave them out with --on-error skip")
    if len(refused) == count:
        raise PreflightError(f"{options.path}: none of its {count} images can be read: {_listed(refused)}")
    manifest = _write_shards(blocks, count, classes, ctx, f"files {content[:12]}", target, options, len(refused))
    shutil.rmtree(blocks)
    write_whole(ctx.output / SKIPPED_FILE, json.dumps(refused, indent=1))
    notes = [f"files from {options.path.name!r}"]
    if sides:
        how = "kept" if target.test_percent is None else f"mixed, and {target.test_percent} % of all held out by hash"
        notes.append(f"the source's own split into {', '.join(sorted(sides))} was {how}")
    if ignored.count:
        notes.append(f"{ignored.count} other files were ignored, such as {', '.join(map(repr, ignored.first))}")
    return manifest, [*notes, f"left out: {_listed(refused)} of {count} images"] if refused else notes


def read_block(
    options: ImportOptions, token: str, classes: Sequence[str], target: Target, blocks: Path, block: Block
) -> BlockSaid:
    """Read the block's images into a file of its own, unless it is there and whole."""
    file = _block_file(blocks, block[0])
    kept = _said(file)
    if kept is not None:
        return kept
    images, labels, said = _read(_opened(options, token).entries()[slice(*block)], classes, target)
    partial_file = file.with_suffix(f".{uuid.uuid4().hex}.npz")
    np.savez(
        partial_file,
        images=np.array(images, dtype=np.uint8).reshape(len(images), *target.shape),
        labels=np.array(labels, dtype=np.int64),
        said=np.array(json.dumps(asdict(said))),
    )
    partial_file.replace(file)
    return said


def class_names(options: ImportOptions, labels: Sequence[str | int | None]) -> list[str]:
    """The classes 0, 1, ... of a source: its labels, sorted; whole numbers stand for themselves.

    Raises PreflightError for labels that are not whole numbers from 0 without gaps, or names, or none at all.
    """
    kinds = {type(label) for label in labels}
    if kinds == {type(None)}:
        return []
    if len(kinds) > 1:
        without = sum(label is None for label in labels)
        raise PreflightError(
            f"{options.path}: {without} of {len(labels)} images have no label, the others have. Give each one, or use "
            f"--labels none"
        )
    found = sorted(set(labels))  # type: ignore[type-var]  # all of one type
    if kinds == {int} and found != list(range(len(found))):
        raise PreflightError(
            f"{options.path}: labels run from {found[0]} to {found[-1]} with {len(found)} different values. Number "
            f"them 0, 1, ... without gaps, or use --labels none"
        )
    return [str(label) for label in found]


def content_of(entry: Entry) -> bytes | np.ndarray | ImageRefused:
    """What an entry holds, or why that cannot be read."""
    try:
        return entry.read()
    except ImageRefused as refusal:
        return refusal


@lru_cache(maxsize=1)
def _opened(options: ImportOptions, token: str) -> Source:
    """The source, opened once in a process for all blocks of a preparation, which the token names."""
    return options.open()


def _read(
    entries: Sequence[Entry], classes: Sequence[str], target: Target
) -> tuple[list[np.ndarray], list[int], BlockSaid]:
    images, labels, said = [], [], BlockSaid([], [], [])
    numbers = {name: number for number, name in enumerate(classes)}
    for entry in entries:
        content = content_of(entry)
        said.digests.append(entry_digest(entry, content).hex())
        try:
            if isinstance(content, ImageRefused):
                raise content
            images.append(_pixels(entry.name, content, target))
        except ImageRefused as error:
            said.refused.append(str(error))
            continue
        label = _label(entry, target)
        labels.append(UNLABELLED if label is None else numbers[str(label)])
        said.names.append(entry.name)
    return images, labels, said


def _pixels(name: str, content: bytes | np.ndarray, target: Target) -> np.ndarray:
    if isinstance(content, bytes):
        image = decode(content, name=name, channels=target.channels)
    else:
        image = Image.fromarray(content.squeeze(-1) if content.shape[-1] == 1 else content)
        image = image.convert("L" if target.channels == 1 else "RGB")
    try:
        return resize_center_crop(image, target.image_size)
    except ValueError as error:
        raise ImageRefused(name, str(error)) from error


def _label(entry: Entry, target: Target) -> str | int | None:
    return below_split(entry.label) if target.split_folders and isinstance(entry.label, str) else entry.label


def _write_shards(
    blocks: Path, count: int, classes: list[str], ctx: StepContext, source: str, target: Target, options: ImportOptions,
    left_out: int,
) -> Manifest:  # fmt: skip
    writer = ShardWriter(ctx.output, shape=target.shape, num_classes=len(classes))
    for first in range(0, count, target.block):
        with np.load(_block_file(blocks, first), allow_pickle=False) as kept:
            images, labels, names = kept["images"], kept["labels"], json.loads(str(kept["said"]))["names"]
        for image, label, name in zip(images, labels, names, strict=True):
            writer.add(_side(name, image, target), image, int(label), name)
    try:
        return writer.finish(source=source, classes=classes, left_out=left_out)
    except ValueError as error:
        raise PreflightError(
            f"{options.path}: {error}. With few images, choose another --test-percent; now {target.test_percent}"
        ) from error


def _side(name: str, image: np.ndarray, target: Target) -> Split:
    if target.test_percent is not None:
        return split_of(image, test_percent=target.test_percent)
    side = own_split(name)
    if side is None:
        raise PreflightError(f"{name!r} tells no side of the split: name a share that is held out with --test-percent")
    return side


def _said(file: Path) -> BlockSaid | None:
    """Of a block that is there; None for one that is not, or not whole."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if not {"images", "labels", "said"} <= set(kept.files):
                return None
            return BlockSaid(**json.loads(str(kept["said"])))
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
        return None


def _block_file(blocks: Path, first: int) -> Path:
    return blocks / f"{first:012d}.npz"


def _listed(refused: Sequence[str]) -> str:
    more = f" and {len(refused) - NAMED_AT_MOST} more" if len(refused) > NAMED_AT_MOST else ""
    return f"{'; '.join(refused[:NAMED_AT_MOST])}{more}: {len(refused)}"
