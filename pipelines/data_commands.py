"""What can be done with data sets by hand? Prepare, list, inspect, verify, export. The command line of data.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from orchestrator.backend import LocalBackend
from orchestrator.config import canonical_json, from_dict, to_dict
from orchestrator.errors import PreflightError
from orchestrator.materialize import materialize
from orchestrator.progress import StepProgress
from orchestrator.signals import Background
from orchestrator.step import Resources, write_whole
from orchestrator.store import ArtifactStore
from pipelines.cli import HERE, Places, choose
from pipelines.configs import RunConfig
from pipelines.data import BUILT_IN_SIZES, DataConfig, dataset_step
from pipelines.import_images import SKIPPED_FILE, ImportOptions, OnError, digest_of
from pipelines.sample import image_grid
from pipelines.shards import SPLITS, Manifest, Split, read_shard
from pipelines.sources import Format, Labels

NAMES_FOLDER = "datasets"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHEET_SIDE = 8
DEFAULT_TEST_PERCENT = 10
WAIT_SECONDS = 0.2

StoreFlag = Annotated[str, tyro.conf.arg(help="Folder of all artifacts.")]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn images into verified shards: a folder, zip, tar, npz, CIFAR, IDX or Parquet, or a data set that is built in.

    Killed, it goes on where it was when the same command is run again.
    """

    source: tyro.conf.Positional[str]
    """Where the images are: a path, or digits, or fashion-mnist."""
    image_size: int | None = None
    """Pixels a side; images are made smaller and cropped as in the papers. digits: 8; fashion-mnist: 28 or 32."""
    channels: Literal[1, 3] = 3
    """Of files: 3 RGB, 1 gray."""
    name: str | None = None
    """What the data set is called from now on; by default the source's own name."""
    labels: Labels = "folder"
    """Where a file's class stands: in its folder's name, before the first _ of its own name, or nowhere."""
    format: Format | Literal["auto"] = "auto"
    """What kind of source it is, where that cannot be told."""
    test_percent: int = DEFAULT_TEST_PERCENT
    """Share of the images held out, by the hash of their pixels."""
    on_error: OnError = "fail"
    """What to do about images that cannot be read: stop, or leave them out and say so."""
    processes: int = 1
    """How many read side by side."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Prepare, and say how to train on it."""
        if self.processes < 1:
            raise ValueError(f"--processes {self.processes}: must be at least 1")
        artifacts = Places(store=self.store).artifact_store()
        artifacts.check_writable()
        options = None if self.source in BUILT_IN_SIZES else self._options()
        config = self._built_in() if options is None else self._files(options)
        name = checked_name(self.name or (self.source if options is None else options.path.name.partition(".")[0]))
        step = dataset_step(config, options)
        backend = LocalBackend(processes=self.processes)
        work = Background(
            lambda: materialize([step], artifacts, backend=backend, resources=Resources(workers=self.processes))
        )
        _show(work, artifacts.path(step))
        kept = artifacts.root / NAMES_FOLDER / f"{name}.json"
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, canonical_json(to_dict(config)))
        print("\n".join(artifacts.metrics(step).notes))
        print(f"{artifacts.path(step)}\nTo use it: --data {name}")
        return 0

    def _options(self) -> ImportOptions:
        path = Path(self.source).expanduser().absolute()
        if not path.exists():
            raise PreflightError(f"{path} is not there; built in are {', '.join(BUILT_IN_SIZES)}")
        return ImportOptions(path=path, format=self.format, labels=self.labels, on_error=self.on_error)

    def _files(self, options: ImportOptions) -> DataConfig:
        if self.image_size is None:
            raise ValueError("--image-size is needed: pixels a side of the images to train on, such as 64")
        unread = DataConfig(
            source="files", content="", image_size=self.image_size, channels=self.channels,
            test_percent=self.test_percent,
        )  # fmt: skip
        return replace(unread, content=digest_of(options))

    def _built_in(self) -> DataConfig:
        size = {"digits": 8, "fashion-mnist": 32}[self.source] if self.image_size is None else self.image_size
        if self.source == "digits":
            return DataConfig(source="digits", image_size=size)
        return DataConfig(source="fashion-mnist", image_size=size, test_percent=None)


@dataclass(frozen=True, kw_only=True)
class List:
    """Show the data sets that have been prepared in this store."""

    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """A line each."""
        artifacts = Places(store=self.store).artifact_store()
        for name in sorted(known(artifacts)):
            manifest = Manifest.read(named(artifacts, name))
            height, width, channels = manifest.shape
            counts = ", ".join(f"{count:,} {split}" for split, count in manifest.images.items())
            print(f"{name:<24} {height}x{width}x{channels}  {counts}  {len(manifest.classes)} classes")
        return 0


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Look at a data set: its classes, statistics and what was left out, and a picture of its first images."""

    name: tyro.conf.Positional[str]
    output: Path = Path("contact-sheet.png")
    """Where the picture goes."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Print, and write the picture."""
        dataset = named(Places(store=self.store).artifact_store(), self.name)
        manifest = Manifest.read(dataset)
        counts = ", ".join(f"{count:,} {split}" for split, count in manifest.images.items())
        print(f"{manifest.source}: {'x'.join(map(str, manifest.shape))}, {counts}")
        print(f"mean {_rounded(manifest.mean)}, standard deviation {_rounded(manifest.std)} of 255")
        longest = max((max(counts) for counts in manifest.images_per_class.values() if counts), default=0)
        for number, label in enumerate(manifest.classes):
            train, test = (manifest.images_per_class[split][number] for split in SPLITS)
            print(f"{label[:24]:<24} {train:>8,} {test:>8,}  {'#' * round(40 * train / longest)}")
        skipped = dataset / SKIPPED_FILE
        if skipped.is_file() and (left_out := json.loads(skipped.read_text())):
            print(f"left out, {len(left_out)}:\n" + "\n".join(left_out))
        images = [image for image, _, _ in _first(images_of(dataset, "train"), SHEET_SIDE**2)]
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
        dataset = named(Places(store=self.store).artifact_store(), self.name)
        manifest = Manifest.read(dataset)
        for shard in manifest.shards:
            read_shard(dataset, shard)
        print(f"{len(manifest.shards)} shards, {sum(manifest.images.values()):,} images: as they were written")
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
        manifest = Manifest.read(dataset)
        if self.output.suffix == ".npz":
            images, labels, _ = zip(*images_of(dataset, self.split), strict=True)
            np.savez(self.output, arr_0=np.stack(images), arr_1=np.array(labels, dtype=np.int64))
        else:
            for number, (image, label, _) in enumerate(images_of(dataset, self.split)):
                folder = self.output / (f"{label:04d}" if manifest.classes else "images")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{number:08d}.png")
        print(self.output)
        return 0


def main(
    command: Annotated[
        Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Prepare data sets, and look at those that are there."""
    return command()


def with_data(base: RunConfig, name: str | None, store: ArtifactStore) -> RunConfig:
    """A set-up whose images are those of a prepared data set; as it is for no name.

    The network's image size and channels follow. Raises PreflightError for a name that is not in the store.
    """
    if name is None:
        return base
    named(store, name)  # raises where it is not whole
    data = known(store)[name]
    return replace(base, data=data, model=replace(base.model, image_size=data.image_size, channels=data.channels))


def known(store: ArtifactStore) -> dict[str, DataConfig]:
    """The prepared data sets by name."""
    files = sorted((store.root / NAMES_FOLDER).glob("*.json"))
    return {file.stem: from_dict(DataConfig, json.loads(file.read_text())) for file in files}


def named(store: ArtifactStore, name: str) -> Path:
    """Where a data set is. Raises PreflightError for one that is not there, or is not whole."""
    try:
        step = dataset_step(choose("data set", name, known(store)))
    except ValueError as error:
        raise PreflightError(f"{error or 'none'}; python pipelines/data.py prepare makes one") from error
    if not store.is_done(step):
        raise PreflightError(f"data set {name!r} is not whole in {store.root}: prepare it again")
    return store.path(step)


def images_of(dataset: Path, split: Split) -> Iterator[tuple[np.ndarray, int, str]]:
    """Image, label and name, shard by shard."""
    manifest = Manifest.read(dataset)
    for shard in manifest.of_split(split):
        table = read_shard(dataset, shard)
        for pixels, label, name in zip(*(table[column].to_pylist() for column in table.column_names), strict=True):
            yield np.frombuffer(pixels, dtype=np.uint8).reshape(manifest.shape), label, name


def checked_name(name: str) -> str:
    """The name itself. Raises ValueError for one that could not be a file's."""
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: letters, digits, dots, _ and -, at most 64; name it with --name")
    return name


def _show(work: Background[None], directory: Path) -> None:
    """Wait for the work and say meanwhile how far it is; raises what it raises."""
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)
        while not work.wait(WAIT_SECONDS):
            said = StepProgress.read(directory)
            if said is not None and said.total:
                bar.update(task, completed=said.done, total=said.total)
    work.value()


def _first(images: Iterator[tuple[np.ndarray, int, str]], count: int) -> Iterator[tuple[np.ndarray, int, str]]:
    for _, image in zip(range(count), images, strict=False):
        yield image


def _rounded(values: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)
