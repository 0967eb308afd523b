"""Where do decoded images lie on a node? In files that all its workers map, made once and removed when they are many.

A file appears whole, under the SHA-256 of the shards it was made from; flock says who makes it and who uses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from orchestrator.errors import PreflightError
from pipelines.shards import ImageSet, Manifest, Split, read_images

FOLDER_VARIABLE = "PAPERTABLE_CACHE"
MIB = 2**20
HEADER_BYTES = 128  # of a .npy file
LABEL = np.dtype(np.int64)
_OURS = re.compile(r"([0-9a-f]{64})-(pixels|labels)\.npy(\..*\.partial)?")


def cache_folder() -> Path:
    """$PAPERTABLE_CACHE, or a folder of the user's own among the temporary files; made when it is not there.

    Raises PreflightError unless it is a folder that belongs to the user and that nobody else may write to.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(tempfile.gettempdir()) / f"papertable-{os.getuid()}"
    if named:
        folder = Path(named).expanduser().resolve()
    with _naming(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PreflightError(
            f"{folder}, for decoded images, is a link, belongs to another user or may be written to by others: make "
            f"it yours alone (chmod 700), or name another folder with {FOLDER_VARIABLE}"
        )
    return folder


def decoded_bytes(manifest: Manifest, *, rows: int, files: int) -> int:
    """How much so many images take when they are decoded into so many shards."""
    return rows * (math.prod(manifest.shape) + LABEL.itemsize) + files * 2 * HEADER_BYTES


@dataclass(frozen=True)
class Decoded:
    """Images in memory that is mapped from files: they stay while this is open."""

    pixels: np.ndarray
    """uint8 (n, channels, height, width)."""
    labels: np.ndarray
    """int64; UNLABELLED where there are none."""
    in_use: IO[bytes]
    """A shared lock."""

    def close(self) -> None:
        """Give the files up for removal."""
        self.in_use.close()


@dataclass(frozen=True)
class DecodedCache:
    """The decoded shards of one data set, in a folder that may hold those of others."""

    folder: Path
    limit: int
    """Bytes of the whole folder, beyond which files that nobody uses are removed before others are made."""
    dataset: Path
    manifest: Manifest
    writing: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """One file is written at a time, so that the room of another is not given away."""

    def open(self, shards: Sequence[dict[str, Any]]) -> Decoded:
        """The images of these shards, one after the other in one file, decoded now unless they are here already.

        Raises DamagedArtifact for a shard that is not what was written, and PreflightError when the folder is full.
        """
        key = _key(shards)
        rows = sum(shard["rows"] for shard in shards)
        in_use = self._lock(f"{key}.used", fcntl.LOCK_SH)
        try:
            found = self._find(key, rows)
            if found is None:
                with self._lock(f"{key}.made", fcntl.LOCK_EX):
                    found = self._find(key, rows) or self._decode(key, shards, rows)
            with suppress(OSError):
                os.utime(self.folder / f"{key}-pixels.npy")  # used last
        except BaseException:
            in_use.close()
            raise
        return Decoded(*found, in_use)

    def _find(self, key: str, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
        height, width, channels = self.manifest.shape
        pixels = _mapped(self.folder / f"{key}-pixels.npy", np.dtype(np.uint8), (rows, channels, height, width))
        labels = _mapped(self.folder / f"{key}-labels.npy", LABEL, (rows,))
        return None if pixels is None or labels is None else (pixels, labels)

    def _decode(self, key: str, shards: Sequence[dict[str, Any]], rows: int) -> tuple[np.ndarray, np.ndarray]:
        images = (read_images(self.dataset, shard, self.manifest) for shard in shards)
        first = next(images)  # fetched while another is written
        with self.writing:
            self._make_room(decoded_bytes(self.manifest, rows=rows, files=1))
            self._write(key, chain([first], images), rows)
        found = self._find(key, rows)
        assert found is not None
        return found

    def _write(self, key: str, decoded: Iterable[ImageSet], rows: int) -> None:
        height, width, channels = self.manifest.shape
        labels: list[np.ndarray] = []
        with _new_file(self.folder, f"{key}-pixels.npy", np.dtype(np.uint8), (rows, channels, height, width)) as write:
            for images in decoded:
                # As training wants them: moved once here, and not at every step.
                write(np.ascontiguousarray(images.images.transpose(0, 3, 1, 2)))
                labels.append(images.labels)
        with _new_file(self.folder, f"{key}-labels.npy", LABEL, (rows,)) as write:
            write(np.concatenate(labels))

    def _make_room(self, needed: int) -> None:
        """Remove what nobody uses, what was used longest ago first, until there is room or no more of it."""
        sizes, used = dict[str, int](), dict[str, float]()
        for file in self.folder.iterdir():
            ours = _OURS.fullmatch(file.name)
            with suppress(FileNotFoundError):
                if ours:
                    key, found = ours[1], file.stat()
                    sizes[key] = sizes.get(key, 0) + found.st_size
                    used[key] = max(used.get(key, 0.0), found.st_mtime)
        excess = sum(sizes.values()) + needed - self.limit
        for key in sorted(used, key=lambda key: used[key]):
            if excess > 0 and self._remove(key):
                excess -= sizes[key]

    def _remove(self, key: str) -> bool:
        try:
            with self._lock(f"{key}.used", fcntl.LOCK_EX | fcntl.LOCK_NB):
                for file in self.folder.glob(f"{key}-*"):
                    file.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return True

    def _lock(self, name: str, how: int) -> IO[bytes]:
        """An open file that holds a lock until it is closed, or its process ends."""
        with _naming(self.folder):
            file = (self.folder / name).open("ab")
            try:
                fcntl.flock(file, how)
            except BaseException:
                file.close()
                raise
        return file


def decoded_split(dataset: Path, split: Split, *, memory_bytes: int) -> Decoded:
    """All images of a split, from this node's folder."""
    manifest = Manifest.read(dataset)
    return DecodedCache(cache_folder(), memory_bytes, dataset, manifest).open(list(manifest.of_split(split)))


@contextmanager
def _new_file(
    folder: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray], None]]:
    """What writes an array's next values to a file that is there under its name when all have been, not before."""
    with _naming(folder):
        # Unbuffered: nothing is left to be written, and to fail, when it is closed.
        stream = tempfile.NamedTemporaryFile(  # noqa: SIM115
            dir=folder, prefix=f"{name}.", suffix=".partial", delete=False, buffering=0
        )

    def write(values: np.ndarray) -> None:
        left = values.data.cast("B")
        with _naming(folder):
            while left:
                left = left[stream.write(left) :]

    partial = Path(stream.name)
    try:
        with stream:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with _naming(folder):
                np.lib.format.write_array_header_1_0(stream, header)
            yield write
            with _naming(folder):
                os.fsync(stream.fileno())
                partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:  # a lock that somebody else holds
        raise
    except OSError as error:
        raise PreflightError(
            f"decoded images cannot be kept in {folder} ({error.strerror or error}): make room there, or name another "
            f"folder with {FOLDER_VARIABLE}"
        ) from error


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a file, or None unless it is there as it should be: a short file is as good as none."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError):
        return None
    return np.asarray(array) if array.dtype == dtype and array.shape == shape else None


def _key(shards: Sequence[dict[str, Any]]) -> str:
    if len(shards) == 1:
        return str(shards[0]["sha256"])
    return hashlib.sha256("\n".join(shard["sha256"] for shard in shards).encode()).hexdigest()
