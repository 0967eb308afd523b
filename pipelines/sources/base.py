"""What is a source of images, to those who read the different kinds? Its parts, its places, and its refusals."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from orchestrator.errors import PreflightError
from pipelines.preprocess import one_line

Format = Literal["folder", "zip", "tar", "npz", "cifar-binary", "cifar-pickle", "idx", "parquet"]
Labels = Literal["folder", "prefix", "none"]

MAX_IMAGE_BYTES = 256 * 2**20
"""The longest image file that is read, from a folder or out of an archive."""
UNPACKED_FREE_BYTES = 2**30
UNPACKED_MAX_RATIO = 100
"""What a file may unpack to: 1 GiB, or 100 times its own length if that is more."""
FETCH_AGAIN = "fetch or write it again"


class SourceRefused(PreflightError):
    """A source that cannot be used as a whole: which, what is wrong with it, and what to do."""

    def __init__(self, path: Path, what: str, fix: str) -> None:
        super().__init__(f"{str(path)!r} {what}: {fix}")
        self.path = path
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type[SourceRefused], tuple[Path, str, str]]:
        return type(self), (self.path, self.what, self.fix)


@dataclass(frozen=True)
class Entry:
    """One image of a source, not read yet."""

    name: str
    """Its path inside the source, with forward slashes: `cat/1.png`, or `train.bin/000000017` for the 18th record."""
    label: str | int | None
    """The class as the source names it; None where it names none."""
    read: Callable[[], bytes | np.ndarray]
    """The file's content, or where a source holds pixels: those, uint8 (height, width, channels)."""


@dataclass(frozen=True)
class Ignored:
    """The files of a source that are no images of it. A hidden folder counts as one."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """What is found at a path: the names of a folder's files, or of the one file."""

    path: Path
    is_folder: bool
    files: Sequence[str]
    hidden: Sequence[str]

    def at(self, name: str) -> Path:
        return self.path / name if self.is_folder else self.path


@dataclass(frozen=True)
class Found:
    entries: list[Entry]
    ignored: Sequence[str]


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int
    read: Callable[[], bytes]


@contextmanager
def told(path: Path, kind: str) -> Iterator[None]:
    """Whatever a parser raises becomes a refusal of the file: hostile bytes make it raise nearly anything."""
    try:
        yield
    except SourceRefused:
        raise
    except Exception as error:
        raise SourceRefused(path, f"is no whole {kind} ({one_line(error)})", FETCH_AGAIN) from error


def is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def checked_text(path: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceRefused(path, f"holds {name!r}, a name that is not UTF-8", "rename it") from error
    return name


def one_file(place: Place) -> Path:
    if place.is_folder:
        raise SourceRefused(place.path, "is a folder, and this format= needs a file", "name the file")
    return place.path


def gunzip(file: Path, into: IO[bytes]) -> None:
    with gzip.open(file, "rb") as stream:
        while block := stream.read(2**20):
            check_unpacked(file, into.tell() + len(block))
            into.write(block)


def check_unpacked(file: Path, unpacked: int) -> None:
    """Raises SourceRefused for so many bytes out of that file: a bomb."""
    allowed = max(UNPACKED_FREE_BYTES, UNPACKED_MAX_RATIO * file.stat().st_size)
    if unpacked > allowed:
        what = f"unpacks to more than {allowed:,} bytes, as no images would"
        raise SourceRefused(file, what, "if it is sound, unpack it yourself")
