"""When does a data set exist on object storage? From the moment of its dataset.json, which is written last.

ROOT/shards/SHA256.parquet              named by their content; data sets below one root may share them
ROOT/FINGERPRINT/manifest.json          as it is here
ROOT/FINGERPRINT/dataset.json           the identity, the manifest's hash, the sizes, what the step said of itself

Attaching makes a step's artifact of it that has location.json in the place of the shards: the same fingerprint, since
that comes from the identity alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.config import from_dict, to_dict
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.files import write_whole
from orchestrator.signals import Background
from orchestrator.step import METRICS_FILE, Step, StepContext
from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.import_images import BLOCKS_FOLDER, SKIPPED_FILE
from pipelines.located_shards import Elsewhere, shard_bytes, shard_location
from pipelines.object_storage import Location
from pipelines.shards import MANIFEST_FILE, Manifest, sha256_of

T = TypeVar("T")

DATASET_FILE = "dataset.json"
SIDE_BY_SIDE = 4
"""Shards on the way at a time; each is held in memory whole."""
LOOKS_SIDE_BY_SIDE = 16
SHARD_FILE = re.compile(r"(train|test)-\d{5,}\.parquet")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class RemoteDataset:
    """What dataset.json says: the commit of a data set on object storage."""

    name: str
    """What it was called where it was pushed."""
    identity: dict[str, Any]
    """Of the dataset step; its hash is the folder's name."""
    manifest_sha256: str
    sizes: dict[str, int]
    """Bytes of each shard, by the manifest's name of it."""
    files: dict[str, Any]
    """What the step left besides: metrics.json, and skipped.json where there is one."""

    @classmethod
    def read(cls, folder: Location) -> RemoteDataset:
        """Raises PreflightError where there is no data set, DamagedArtifact for a dataset.json that is none."""
        file = folder / DATASET_FILE
        folder.check_bucket()
        if file.size() is None:
            raise PreflightError(f"{folder} is no data set, or not yet a whole one: {DATASET_FILE} is not there. "
                                 f"python pipelines/data.py push says the URL when it is done")  # fmt: skip
        try:
            return from_dict(cls, json.loads(file.read(is_whole=_is_json)))
        except ValueError as error:
            raise DamagedArtifact(file.url, f"no data set ({error}); push it again") from error

    def step(self, folder: Location) -> Step:
        """The step whose artifact it is. Raises PreflightError when it is not the folder's, or not this code's."""
        try:
            step = dataset_step(from_dict(DataConfig, self.identity["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PreflightError(f"{folder}: a data set that this code does not know ({error})") from error
        if step.identity() != self.identity:
            raise PreflightError(
                f"{folder}: made by version {self.identity.get('version')} of the dataset step, here it is version "
                f"{step.version}: prepare the data set with this code, and push that"
            )
        if step.fingerprint != folder.name:
            raise PreflightError(
                f"{folder}: what it says of itself makes {step.fingerprint}, not {folder.name}: it was renamed, or is "
                f"not what was pushed"
            )
        return step


def push(
    name: str, step: Step, store: ArtifactStore, root: Location, *, reread: bool, on_done: Callable[[], None]
) -> Location:
    """Copy a prepared data set below the root, shards that are there already excepted; returns its folder there.

    With reread, what is there is believed only after it was read. Raises PreflightError when the same identity is there
    in other bytes.
    """
    dataset, folder = store.path(step), root / step.fingerprint
    manifest = Manifest.read(dataset)
    remote = _described(name, step, dataset, manifest)
    root.check_bucket()
    _check_same(remote, folder)

    def push_shard(shard: dict[str, Any]) -> None:
        where = shard_location(root, shard)
        if where.size() != remote.sizes[shard["file"]] or (reread and not _is_right(where, shard)):
            where.write(shard_bytes(dataset, shard))
        on_done()

    side_by_side(push_shard, manifest.shards, threads=SIDE_BY_SIDE)
    (folder / MANIFEST_FILE).write((dataset / MANIFEST_FILE).read_bytes())
    (folder / DATASET_FILE).write(json.dumps(to_dict(remote), indent=1).encode())
    return folder


def attached_step(remote: RemoteDataset, folder: Location) -> Step:
    """The dataset step, done by looking where it is in the place of making it."""
    return replace(remote.step(folder), run=partial(_attach, remote=remote, folder=folder))


def copy_shards(dataset: Path, *, on_done: Callable[[], None]) -> None:
    """Bring the shards of an attached data set here, those that are here already excepted."""

    def copy(shard: dict[str, Any]) -> None:
        file = dataset / shard["file"]
        if not file.is_file():
            partial_file = file.with_name(f".{file.name}.{os.getpid()}")
            partial_file.write_bytes(shard_bytes(dataset, shard))
            partial_file.replace(file)
        on_done()

    side_by_side(copy, Manifest.read(dataset).shards, threads=SIDE_BY_SIDE)


def side_by_side(work: Callable[[T], None], items: Iterable[T], *, threads: int) -> None:
    """work(item) for all, in threads that do not outlive the process. Raises what the first to fail raised."""
    waiting = deque(items)

    def serve() -> None:
        try:
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                work(item)
        except BaseException:
            waiting.clear()
            raise

    for thread in [Background(serve) for _ in range(threads)]:
        thread.value()


def _check_same(ours: RemoteDataset, folder: Location) -> None:
    if (folder / DATASET_FILE).size() is None:
        return
    try:
        there = RemoteDataset.read(folder)
    except DamagedArtifact:
        return  # it is written anew
    if there.manifest_sha256 != ours.manifest_sha256:
        raise PreflightError(
            f"{folder} holds this data set in other bytes, as another version of pyarrow writes them: attach that one, "
            f"or push to another place"
        )


def _described(name: str, step: Step, dataset: Path, manifest: Manifest) -> RemoteDataset:
    if (elsewhere := Elsewhere.of(dataset)) is not None:
        sizes = dict(elsewhere.sizes)
    else:
        sizes = {shard["file"]: (dataset / shard["file"]).stat().st_size for shard in manifest.shards}
    kept = {name: dataset / name for name in (METRICS_FILE, SKIPPED_FILE)}
    return RemoteDataset(
        name=name,
        identity=step.identity(),
        manifest_sha256=sha256_of(dataset / MANIFEST_FILE),
        sizes=sizes,
        files={name: json.loads(file.read_text()) for name, file in kept.items() if file.is_file()},
    )


def _attach(config: DataConfig, ctx: StepContext, *, remote: RemoteDataset, folder: Location) -> None:
    """Write all of a data set but its shards, once each was seen there in its size."""
    where = folder / MANIFEST_FILE
    content = where.read(is_whole=lambda content: hashlib.sha256(content).hexdigest() == remote.manifest_sha256)
    manifest = _checked(Manifest.parse(content, where.url), where, remote.sizes)
    elsewhere = Elsewhere(url=folder.url, sizes=remote.sizes)

    def look(shard: dict[str, Any]) -> None:
        where, expected = elsewhere.shard(shard), remote.sizes[shard["file"]]
        if (size := where.size()) != expected:
            found = "is not there" if size is None else f"has {size} bytes instead of {expected}"
            raise DamagedArtifact(where.url, f"{found}; push the data set again")

    side_by_side(look, manifest.shards, threads=LOOKS_SIDE_BY_SIDE)
    shutil.rmtree(ctx.output / BLOCKS_FOLDER, ignore_errors=True)
    for left in ctx.output.glob("*.parquet"):  # of a preparation that was killed
        left.unlink()
    (ctx.output / MANIFEST_FILE).write_bytes(content)  # these very bytes: protocols name their hash
    files = dict(remote.files)
    if "dataset" in files.get(METRICS_FILE, {}):
        said = files[METRICS_FILE]
        files[METRICS_FILE] = {**said, "dataset": {**said["dataset"], "uri": folder.url}}
    for name in {METRICS_FILE, SKIPPED_FILE} & set(files):
        write_whole(ctx.output / name, json.dumps(files[name], indent=1))
    elsewhere.write(ctx.output)


def _checked(manifest: Manifest, where: Location, sizes: Mapping[str, int]) -> Manifest:
    """Raises PreflightError for names that would lead out of the data set's folder."""
    for shard in manifest.shards:
        safe = SHARD_FILE.fullmatch(str(shard.get("file"))) and SHA256.fullmatch(str(shard.get("sha256")))
        if not safe or shard["file"] not in sizes:
            raise PreflightError(f"{where}: {shard.get('file')!r} is no shard of a data set that this code writes")
    return manifest


def _is_right(where: Location, shard: Mapping[str, Any]) -> bool:
    try:
        where.read(is_whole=lambda content: hashlib.sha256(content).hexdigest() == shard["sha256"])
    except DamagedArtifact:
        return False
    return True


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
