"""What the tests of object storage do over and over: push, attach, look into the bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyarrow import fs

from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.named_data import named
from pipelines.remote_commands import Attach, Push
from pipelines.shards import SPLITS, read_split

CONFIG = DataConfig()
FOLDER = dataset_step(CONFIG).fingerprint


@dataclass(frozen=True)
class Bucket:
    """A folder of a test's own in a bucket, and its objects as the administrator sees them."""

    name: str
    files: fs.S3FileSystem

    @property
    def url(self) -> str:
        return f"s3://{self.name}/sets"

    def objects(self) -> list[str]:
        infos = self.files.get_file_info(fs.FileSelector(self.name, recursive=True))
        return sorted(info.path for info in infos if info.type == fs.FileType.File)

    def shards(self) -> list[str]:
        return [path for path in self.objects() if path.endswith(".parquet")]

    def get(self, path: str) -> bytes:
        with self.files.open_input_file(path) as stream:
            return stream.read()

    def put(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(path) as stream:
            stream.write(content)


def push(store: Path, url: str, **options: bool) -> str:
    Push(name="digits", url=url, store=str(store), **options)()
    return f"{url}/{FOLDER}"


def attach(url: str, store: Path, **options: object) -> Path:
    Attach(url=url, store=str(store), **options)()  # type: ignore[arg-type]
    return named(ArtifactStore(str(store)), str(options.get("name") or "digits"))


def assert_same_images(one: Path, other: Path) -> None:
    for split in SPLITS:
        a, b = read_split(one, split), read_split(other, split)
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
