"""How is a data set prepared by hand? The command line `data.py prepare`."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from orchestrator.backend import Backend, LocalBackend
from orchestrator.errors import PreflightError, StepFailed
from orchestrator.materialize import materialize
from orchestrator.progress import StepProgress
from orchestrator.signals import Background
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines.cli import HERE, Places
from pipelines.data import BUILT_IN_SIZES, DataConfig, dataset_step
from pipelines.import_images import BLOCK, ImportOptions, OnError, digest_of, look_at, looking_folder
from pipelines.named_data import check_free, checked_name, remember, skipped
from pipelines.on_ray import cluster_cpus, on_ray
from pipelines.own_split import own_sides
from pipelines.sources import Entry, Format, Labels

T = TypeVar("T")

DEFAULT_TEST_PERCENT = 10
DIGITS_TEST_PERCENT = 20
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
    channels: Literal[1, 3] | None = None
    """Of files: 3 RGB (the default), 1 gray."""
    name: str | None = None
    """What the data set is called from now on; by default the source's own name."""
    replace: bool = False
    """Let the name stand for this data set from now on, where it has stood for another."""
    labels: Labels | None = None
    """Of files: their class is the path of their folder (folder, the default), what stands before the first _ of their
    name (prefix), or there is none."""
    format: Format | None = None
    """Of files: what kind of source it is, where that cannot be told."""
    test_percent: int | Literal["own"] | None = None
    """Share of the images held out, by the hash of their pixels: 10 by default; own: as the source itself is split, by
    folders or files that are called train, test or val; the default of files of records, such as CIFAR's."""
    on_error: OnError = "fail"
    """What to do about images that cannot be read: stop, or leave them out and say so."""
    processes: int | None = None
    """How many read side by side: processes of this machine, by default one a CPU, or workers of a cluster, by default
    one each of its CPUs."""
    address: str | None = HERE.address
    """A running Ray cluster whose workers read, all of whose nodes see the source and the store; by default the one
    RAY_ADDRESS names."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Prepare, and say how to train on it."""
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"--processes {self.processes}: must be at least 1")
        artifacts = Places(store=self.store).artifact_store()
        artifacts.check_writable()
        options = None if self.source in BUILT_IN_SIZES else self._options()
        name = checked_name(self.name or (self.source if options is None else options.path.name.partition(".")[0]))
        with _told():
            if options is None:
                config = self._prepare_built_in(name, artifacts)
            else:
                config = self._prepare(options, name, artifacts)
            remember(name, config, artifacts)
        step = dataset_step(config)
        print("\n".join(artifacts.metrics(step).notes))
        print(f"{artifacts.path(step)}\nTo use it: --data {name}")
        return 0

    def _prepare_built_in(self, name: str, artifacts: ArtifactStore) -> DataConfig:
        config = self._built_in()
        check_free(name, config, artifacts, replace=self.replace)
        prepare_source(dataset_step(config), artifacts, backend=LocalBackend(), resources=Resources())
        return config

    def _prepare(self, options: ImportOptions, name: str, artifacts: ArtifactStore) -> DataConfig:
        entries = look_at(options)
        config, kept = self._config(entries), looking_folder(artifacts.root, options, len(entries))
        with self._pool(artifacts, len(entries)) as (backend, resources):
            content = self._content(options, len(entries), kept, backend, resources)
            config = dataclasses.replace(config, content=content)
            check_free(name, config, artifacts, replace=self.replace)
            step = dataset_step(config, options)
            work = Background(lambda: prepare_source(step, artifacts, backend=backend, resources=resources))
            try:
                show(work, "preparing", lambda: StepProgress.read(artifacts.path(step)))
            except PreflightError:
                shutil.rmtree(kept, ignore_errors=True)  # what was known of the images may have been wrong
                raise
        shutil.rmtree(kept, ignore_errors=True)
        if self.on_error == "fail" and (left_out := skipped(artifacts.path(step))):
            raise PreflightError(
                f"this data set is here already, without {len(left_out)} images that were left out by --on-error skip: "
                f"{left_out[0]}. Say --on-error skip again, or mend them"
            )
        return config

    @contextmanager
    def _pool(self, store: ArtifactStore, count: int) -> Iterator[tuple[Backend, Resources]]:
        """Who reads: workers of a cluster, or processes here; no more than there is work for."""
        most = max(1, -(-count // BLOCK))
        if self.address is not None:
            asked = Resources(workers=self.processes or 1)
            with on_ray(store, address=self.address, resources=asked) as backend:
                yield backend, Resources(workers=self.processes or min(most, cluster_cpus()))
            return
        processes = self.processes or min(most, len(os.sched_getaffinity(0)))
        local = LocalBackend(processes=processes)
        try:
            yield local, Resources(workers=processes)
        except BaseException:
            local.stop()
            raise

    def _options(self) -> ImportOptions:
        path = Path(self.source).expanduser().absolute()
        try:
            there = path.exists()
        except OSError as error:
            raise PreflightError(
                f"{path} cannot be looked at ({error.strerror}): name a path that you may read"
            ) from error
        if not there:
            raise PreflightError(f"{path} is not there; built in are {', '.join(BUILT_IN_SIZES)}")
        return ImportOptions(
            path=path, format=self.format or "auto", labels=self.labels or "folder", on_error=self.on_error
        )

    def _config(self, entries: Sequence[Entry]) -> DataConfig:
        if self.image_size is None:
            raise ValueError("--image-size is needed: pixels a side of the images to train on, such as 64")
        percent = self._percent(entries)
        return DataConfig(
            source="files", content="", image_size=self.image_size, channels=self.channels or 3, test_percent=percent
        )

    def _content(self, options: ImportOptions, count: int, kept: Path, backend: Backend, resources: Resources) -> str:
        done = 0

        def on_done(stop: int) -> None:
            nonlocal done
            done = max(done, stop)

        work = Background(
            lambda: digest_of(options, count, kept=kept, backend=backend, resources=resources, on_done=on_done)
        )
        return show(work, "looking", lambda: StepProgress(done, count, "img", {}, 0.0))

    def _percent(self, entries: Sequence[Entry]) -> int | None:
        sides = own_sides(entry.name for entry in entries)
        if isinstance(self.test_percent, int):
            return self.test_percent
        if len(sides) > 2:
            raise ValueError(
                f"{self.source} is split into {', '.join(sorted(sides))}, and a data set here into two: name a share "
                f"of all that is held out with --test-percent, or prepare a folder with train and the one you mean"
            )
        if self.test_percent == "own" and not sides:
            raise ValueError(
                "--test-percent own: not every image is in a folder or file that is called train, test or val, or all "
                "are in the same; name a share"
            )
        if self.test_percent is None and sides and isinstance(entries[0].label, str):
            raise ValueError(
                f"{self.source} is split into {' and '.join(sorted(sides))} already: say --test-percent own to keep "
                f"that, or a share, such as {DEFAULT_TEST_PERCENT}, to mix them and split anew"
            )
        return None if sides else DEFAULT_TEST_PERCENT

    def _built_in(self) -> DataConfig:
        given = {
            "channels": self.channels, "labels": self.labels, "format": self.format, "processes": self.processes,
            "on-error": None if self.on_error == "fail" else self.on_error,
        }  # fmt: skip
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"--{option} {value}: {self.source} has its own; leave it out")
        size = {"digits": 8, "fashion-mnist": 32}[self.source] if self.image_size is None else self.image_size
        if self.source == "digits":
            if self.test_percent == "own":
                raise ValueError("--test-percent own: digits bring no split; name a share")
            percent = DIGITS_TEST_PERCENT if self.test_percent is None else self.test_percent
            return DataConfig(source="digits", image_size=size, test_percent=percent)
        if self.test_percent not in (None, "own"):
            raise ValueError(f"--test-percent {self.test_percent}: fashion-mnist brings its own split; leave it out")
        return DataConfig(source="fashion-mnist", image_size=size, test_percent=None)


@contextmanager
def _told() -> Iterator[None]:
    """A full disk, or a process that ended, in words of one line."""
    try:
        yield
    except (OSError, BrokenExecutor) as error:
        raise PreflightError(
            f"the data cannot be prepared: {type(error).__name__}: {error}. The same command goes on where it was"
        ) from error


def prepare_source(step: Step, store: ArtifactStore, *, backend: Backend, resources: Resources) -> None:
    """Run the step. Raises PreflightError for whatever goes wrong: data that cannot be used, a disk that is full."""
    try:
        materialize([step], store, backend=backend, resources=resources)
    except StepFailed as error:
        raise PreflightError(f"the data cannot be prepared: {error.reason} ({error.step_key})") from error


def show(work: Background[T], what: str, progress: Callable[[], StepProgress | None]) -> T:
    """What the work returns; how far it is, is said meanwhile. Raises what it raises."""
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        while not work.wait(WAIT_SECONDS):
            said = progress()
            if said is not None and said.total:
                bar.update(task, completed=said.done, total=said.total)
    return work.value()
