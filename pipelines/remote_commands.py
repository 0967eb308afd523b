"""How are data sets shared between machines? The command lines `data.py push` and `data.py attach`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tyro

from orchestrator.backend import LocalBackend
from orchestrator.errors import Interrupted, PreflightError
from orchestrator.progress import StepProgress
from orchestrator.signals import Background
from orchestrator.step import Resources
from pipelines.cli import HERE, Places, fail
from pipelines.data import dataset_step
from pipelines.located_shards import Elsewhere, where
from pipelines.named_data import check_free, checked_name, known, named, remember
from pipelines.object_storage import open_location
from pipelines.prepare_command import StoreFlag, prepare_source, show
from pipelines.remote_data import DATASET_FILE, RemoteDataset, attached_step, copy_shards, push
from pipelines.shards import Manifest

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Push:
    """Copy a prepared data set to object storage. Killed, the same command goes on: shards that are there stay.

    Credentials, endpoint and region come from the environment, as AWS's own tools take them, never from the URL.
    """

    name: tyro.conf.Positional[str]
    url: tyro.conf.Positional[str]
    """Below which it is kept: s3://BUCKET/PATH, gs://BUCKET/PATH, or a folder. Several data sets may share it."""
    reread: bool = False
    """Read the shards that are there, too, and replace those that are damaged."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Push, and say how it is attached."""
        root = open_location(self.url)
        artifacts = Places(store=self.store).artifact_store()
        manifest = Manifest.read(named(artifacts, self.name))
        step = dataset_step(known(artifacts)[self.name])
        count = _Count(len(manifest.shards))
        work = Background(lambda: push(self.name, step, artifacts, root, reread=self.reread, on_done=count.add_one))
        folder = _shown(work, "pushing", count.progress)
        print(f"{folder}\nElsewhere: python pipelines/data.py attach {folder}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Attach:
    """Make a data set on object storage known here. Its shards stay there, and are read, and verified, when needed.

    Credentials, endpoint and region come from the environment, on every machine that trains on it.
    """

    url: tyro.conf.Positional[str]
    """The data set's folder, as push says it."""
    name: str | None = None
    """What it is called here; by default what it was called where it was pushed."""
    replace: bool = False
    """Let the name stand for this data set from now on, where it has stood for another."""
    copy: bool = False
    """Bring the shards here as well."""
    store: StoreFlag = HERE.store

    def __call__(self) -> int:
        """Attach, and say how to train on it."""
        given = open_location(self.url)
        folder = given.parent if given.name == DATASET_FILE else given
        artifacts = Places(store=self.store).artifact_store()
        artifacts.check_writable()
        remote = _shown(Background(lambda: RemoteDataset.read(folder)), "looking", lambda: None)
        step, name = attached_step(remote, folder), checked_name(self.name or remote.name)
        check_free(name, step.config, artifacts, replace=self.replace)
        dataset = artifacts.path(step)
        work = Background(lambda: prepare_source(step, artifacts, backend=LocalBackend(), resources=Resources()))
        _shown(work, "attaching", lambda: None)
        elsewhere = Elsewhere.of(dataset)
        if elsewhere is not None and elsewhere.url != folder.url:
            raise PreflightError(
                f"this data set is attached here already, at {elsewhere.url}. If it is read from {folder} from now on, "
                f"remove {dataset} and attach it again"
            )
        if self.copy:
            count = _Count(len(Manifest.read(dataset).shards))
            _shown(Background(lambda: copy_shards(dataset, on_done=count.add_one)), "copying", count.progress)
        remember(name, step.config, artifacts)
        print("\n".join(artifacts.metrics(step).notes))
        print(f"{dataset}, shards {where(dataset, Manifest.read(dataset).shards)}\nTo use it: --data {name}")
        return 0


def _shown(work: Background[T], what: str, progress: Callable[[], StepProgress | None]) -> T:
    """show(), but a signal ends the process at once: on the usual way out pyarrow waits for its requests to end."""
    try:
        return show(work, what, progress)
    except Interrupted as interrupted:
        code = fail(interrupted, interrupted.exit_code)
        sys.stderr.flush()
        os._exit(code)


class _Count:
    """How many of a data set's shards are done."""

    def __init__(self, total: int) -> None:
        self._done, self._total, self._lock = 0, total, threading.Lock()

    def add_one(self) -> None:
        with self._lock:
            self._done += 1

    def progress(self) -> StepProgress:
        return StepProgress(self._done, self._total, "shard", {}, 0.0)
