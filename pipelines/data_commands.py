"""What can be done with data sets by hand? The command line of data.py.

Prepare, list, inspect, verify and export them; push them to object storage, and attach those that are there.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from orchestrator.errors import DamagedArtifact, PreflightError
from pipelines.cli import HERE, Places
from pipelines.data import dataset_step
from pipelines.drawn import image_grid
from pipelines.located_shards import where
from pipelines.named_data import known, named, skipped
from pipelines.prepare_command import Prepare, StoreFlag
from pipelines.remote_commands import Attach, Push
from pipelines.shards import SPLITS, Manifest, Split, read_images, read_split

SHEET_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the data sets that are known in this store, and where each one's shards are."""

    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """A line each."""
        artifacts = Places(store=self.store).artifact_store()
        for name in sorted(known(artifacts)):
            try:
                dataset = named(artifacts, name)
                manifest = Manifest.read(dataset)
                place = where(dataset, manifest.shards)
            except (PreflightError, DamagedArtifact) as error:
                print(f"{name:<24} {error}")
                continue
            height, width, channels = manifest.shape
            counts = ", ".join(f"{count:,} {split}" for split, count in manifest.images.items())
            print(f"{name:<24} {height}x{width}x{channels}  {counts}  {len(manifest.classes)} classes  {place}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Look at a data set: its classes, statistics and what was left out, and a picture of images from all over it."""

    name: tyro.conf.Positional[str]
    output: Path = Path("contact-sheet.png")
    """Where the picture goes."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Print, and write the picture."""
        dataset = named(Places(store=self.store).artifact_store(), self.name)
        manifest = Manifest.read(dataset)
        counts = ", ".join(f"{count:,} {split}" for split, count in manifest.images.items())
        print(f"{manifest.source}: {'x'.join(map(str, manifest.shape))}, {counts}, {where(dataset, manifest.shards)}")
        print(f"mean {_rounded(manifest.mean)}, standard deviation {_rounded(manifest.std)} of 255")
        longest = max((max(counts) for counts in manifest.images_per_class.values() if counts), default=0)
        for number, label in enumerate(manifest.classes):
            train, test = (manifest.images_per_class[split][number] for split in SPLITS)
            print(f"{label!r:.24}".ljust(24), f"{train:>8,} {test:>8,}  {'#' * round(40 * train / longest)}")
        if left_out := skipped(dataset):
            print(f"left out, {len(left_out)}:\n" + "\n".join(left_out))
        images = list(_from_all_over(dataset))
        _check_parent(self.output)
        image_grid(np.stack(images)).save(self.output)
        print(self.output)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every shard of a data set again and hold it against the manifest and the record."""

    name: tyro.conf.Positional[str]
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Raises DamagedArtifact for the first that differs."""
        store = Places(store=self.store).artifact_store()
        dataset = named(store, self.name)
        store.verify(dataset_step(known(store)[self.name]))
        manifest = Manifest.read(dataset)
        for shard in manifest.shards:
            read_images(dataset, shard, manifest)
        place = where(dataset, manifest.shards)
        print(f"{len(manifest.shards)} shards, {sum(manifest.images.values()):,} images: as they were written, {place}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a split as a folder of PNGs by class, or as an .npz in the published evaluator's layout."""

    name: tyro.conf.Positional[str]
    output: tyro.conf.Positional[Path]
    """A folder that is not there yet, or a file ending in .npz."""
    split: Split = "train"
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Write, and say where."""
        dataset = named(Places(store=self.store).artifact_store(), self.name)
        if self.output.exists():
            raise ValueError(f"{self.output} is there already: name another place")
        _check_parent(self.output)
        manifest = Manifest.read(dataset)
        partial = self.output.with_name(f".{self.output.name}.{uuid.uuid4().hex}{self.output.suffix}")
        try:
            if self.output.suffix == ".npz":
                found = read_split(dataset, self.split)
                labels = {"arr_1": found.labels} if manifest.classes else {}
                np.savez(partial, arr_0=found.images, **labels)  # type: ignore[arg-type]  # see nll.py
            else:
                self._write_folder(dataset, manifest, partial)
            partial.rename(self.output)  # whole or not there
        finally:
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
        print(self.output)
        return 0

    def _write_folder(self, dataset: Path, manifest: Manifest, output: Path) -> None:
        parts = (read_images(dataset, shard, manifest) for shard in manifest.of_split(self.split))
        pairs = (pair for part in parts for pair in zip(part.images, part.labels, strict=True))
        for number, (image, label) in enumerate(pairs):
            # By number: a class's name may hold what no folder's name can.
            folder = output / (f"{label:04d}" if manifest.classes else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{number:08d}.png")


def main(
    command: Annotated[
        Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Push, tyro.conf.subcommand("push")]
        | Annotated[Attach, tyro.conf.subcommand("attach")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Prepare data sets, look at those that are there, and share them over object storage."""
    return command()


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: its folder is not there; make it first")


def _from_all_over(dataset: Path) -> Iterator[np.ndarray]:
    """Training images at equal distances, for they lie as their names sort, by class; out of a few shards alone."""
    manifest = Manifest.read(dataset)
    shards = list(manifest.of_split("train"))
    chosen = [shards[number] for number in _evenly(len(shards), SHEET_SIDE)]
    for shard in chosen:
        images = read_images(dataset, shard, manifest).images
        yield from images[_evenly(len(images), SHEET_SIDE**2 // len(chosen))]


def _evenly(count: int, most: int) -> list[int]:
    """So many of 0..count-1, or all."""
    return sorted({number * count // most for number in range(most)})


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
