"""Where can a state be kept? In a folder or a bucket, of which little is asked: files that are whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse
from urllib.request import url2pathname

from orchestrator.failpoints import failpoint


class Conflict(Exception):
    """Somebody else changed a file between its reading and its change."""


class TransientError(OSError):
    """A place does not answer, or says that it cannot now: what was asked may be asked again."""


class Blobs(Protocol):
    """Files by name, below one folder or prefix; names may have slashes.

    Every call may raise OSError, which names the file, and TransientError where asking again may help.
    """

    location: str
    """As a person names it."""

    def write(self, name: str, content: bytes) -> None:
        """Keep a file. When this returns it is there, whole, also after a power cut; before, its name holds no half."""

    def read(self, name: str) -> bytes:
        """All of it. Raises FileNotFoundError where there is none."""

    def names(self) -> list[str]:
        """Of all files, in no order."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""

    def version(self, name: str) -> tuple[str, bytes] | None:
        """What swap() takes for the file as it is now, and its content; None where there is none."""

    def swap(self, name: str, content: bytes, *, expected: str | None) -> str:
        """Replace the file if it is still of that version; returns the new one. Raises Conflict when it is not."""


def open_blobs(location: str) -> Blobs:
    """The place of a path, a file:// URL or s3://BUCKET/PREFIX. Raises ValueError for any other."""
    parsed = urlparse(location)
    if "://" not in location or parsed.scheme == "file":
        return LocalBlobs(Path(url2pathname(parsed.path)) if parsed.scheme == "file" else Path(location))
    if parsed.scheme == "s3" and parsed.netloc:
        from orchestrator.s3_blobs import S3Blobs  # half a second to import: not for a folder

        return S3Blobs(parsed.netloc, parsed.path.strip("/"))
    raise ValueError(f"checkpoints={location!r}: name a folder, a file:// URL, or s3://BUCKET/PREFIX")


class LocalBlobs:
    """In a folder, which may be shared by several machines."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.location = str(folder)

    def write(self, name: str, content: bytes) -> None:
        """See Blobs."""
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
        with _naming(file):
            try:
                with partial.open("wb", buffering=0) as stream:
                    half = len(content) // 2
                    _write_all(stream.fileno(), content[:half])
                    failpoint("checkpoint.in-data")
                    _write_all(stream.fileno(), content[half:])
                    os.fsync(stream.fileno())
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
            _sync(file.parent)

    def read(self, name: str) -> bytes:
        """See Blobs."""
        return (self._folder / name).read_bytes()

    def names(self) -> list[str]:
        """See Blobs. What a kill left half-written is listed, too, so that it can be removed."""
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return [str(path.relative_to(self._folder)) for path in files]

    def delete(self, name: str) -> None:
        """See Blobs. A folder that held it alone goes with it."""
        file = self._folder / name
        file.unlink(missing_ok=True)
        if file.parent != self._folder and file.parent.is_dir() and not any(file.parent.iterdir()):
            file.parent.rmdir()

    def version(self, name: str) -> tuple[str, bytes] | None:
        """See Blobs."""
        try:
            content = self.read(name)
        except FileNotFoundError:
            return None
        return hashlib.sha256(content).hexdigest(), content

    def swap(self, name: str, content: bytes, *, expected: str | None) -> str:
        """See Blobs. A version is the content's hash: the same content again is the same version."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{name}.gate").open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            found = self.version(name)
            if (None if found is None else found[0]) != expected:
                raise Conflict(f"{self._folder / name} was changed by somebody else")
            self.write(name, content)
        return hashlib.sha256(content).hexdigest()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """An error of a file that says which: that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
