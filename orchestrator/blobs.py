"""Where can a state be kept? In a folder or a bucket, of which little is asked: files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse
from urllib.request import url2pathname

from orchestrator.failpoints import failpoint
from orchestrator.files import gate, gate_file, write_durably


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
        """Remove a file, which nobody swaps any more; nothing where there is none."""

    def version(self, name: str) -> tuple[str, bytes] | None:
        """What swap() takes for the file as it is now, and its content; None where there is none."""

    def swap(self, name: str, content: bytes, *, expected: str | None) -> str:
        """Replace the file if it is still of that version; returns the new one. Raises Conflict when it is not."""


def open_blobs(location: str) -> Blobs:
    """The place of a path, a file:// URL or s3://BUCKET/PREFIX. Raises ValueError for any other."""
    parsed = urlparse(location)
    if "://" not in location or (parsed.scheme == "file" and not parsed.netloc):
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
        self._write(name, content, None)

    def _write(self, name: str, content: bytes, turn: AbstractContextManager[object] | None) -> None:
        write_durably(self._folder / name, content, halfway=lambda: failpoint("checkpoint.in-data"), turn=turn)

    def read(self, name: str) -> bytes:
        """See Blobs."""
        return (self._folder / name).read_bytes()

    def names(self) -> list[str]:
        """See Blobs. What a kill left half-written is listed, too, so that it can be removed."""
        # os.walk passes over folders that somebody else removes meanwhile.
        files = (Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names)
        return [str(path.relative_to(self._folder)) for path in files]

    def delete(self, name: str) -> None:
        """See Blobs. A folder that held it alone goes with it."""
        file = self._folder / name
        file.unlink(missing_ok=True)
        gate_file(file).unlink(missing_ok=True)
        if file.parent != self._folder:
            with suppress(OSError):  # it holds others, or somebody else removed it
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
        self._write(name, content, self._while_it_is(name, expected))
        return hashlib.sha256(content).hexdigest()

    @contextmanager
    def _while_it_is(self, name: str, expected: str | None) -> Iterator[None]:
        with gate(self._folder / name):
            found = self.version(name)
            if (None if found is None else found[0]) != expected:
                raise Conflict(f"{self._folder / name} was changed by somebody else")
            yield
