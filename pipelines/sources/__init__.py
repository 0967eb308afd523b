"""Where do a data set's images come from? A folder, an archive or a data set's own files, opened without a guess.

    with open_source(Path("images.zip"), labels="prefix") as source:
        for entry in source.entries():
            image = decode(entry.read(), name=entry.name, channels=3)

What is wrong with the source is found when it is opened (SourceRefused); what is wrong with one image when that is
read (ImageRefused). Nothing is unpacked, and nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

import numpy as np

from pipelines.preprocess import ImageRefused
from pipelines.sources.arrays import open_cifar, open_idx, open_npz, read_cifar_binary, read_cifar_pickle
from pipelines.sources.base import Entry, Format, Found, Ignored, Labels, Place, SourceRefused
from pipelines.sources.files import look, open_folder, open_tar, open_zip
from pipelines.sources.kinds import detect
from pipelines.sources.parquet import open_parquet

__all__ = [
    "Entry", "Format", "Ignored", "Labels", "Source", "SourceRefused", "content_digest",
    "entry_digest", "open_source",
]  # fmt: skip


class Source:
    """The images of one place, in the order of their names' bytes. Its files are open until it is closed."""

    def __init__(self, path: Path, format: Format, entries: Iterable[Entry], ignored: Sequence[str], held: ExitStack):
        self.path = path
        self.format = format
        self.ignored = Ignored(len(ignored), tuple(sorted(ignored)[:5]))
        self._entries = sorted(entries, key=lambda entry: entry.name.encode())
        self._held = held

    def entries(self) -> Sequence[Entry]:
        """Every image, whoever asks and whatever the file system's own order is."""
        return self._entries

    def close(self) -> None:
        """Close the files; entries can be read no longer."""
        self._held.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_source(path: Path, *, format: Format | Literal["auto"] = "auto", labels: Labels = "folder") -> Source:
    """The images at a path, found but not read.

    labels: `folder`, the path of the folder an image is in (none for the topmost); `prefix`, its file's name up to the
    first "_", as in the papers' code; `none`. Formats with labels of their own keep these, or drop them for `none`.
    Raises SourceRefused for what is not wholly one of the formats, and ValueError for a choice that is none.
    """
    if format not in ("auto", *READERS) or labels not in get_args(Labels):
        raise ValueError(
            f"format={format!r}, labels={labels!r}: format is auto, {', '.join(READERS)}; "
            f"labels is {', '.join(get_args(Labels))}"
        )
    place = look(path)
    chosen = detect(place) if format == "auto" else format
    if labels == "prefix" and chosen not in ("folder", "zip", "tar"):
        raise ValueError(f"labels='prefix': {chosen} has labels of its own; set labels to 'folder' (these) or 'none'")
    with ExitStack() as held:
        found = READERS[chosen](place, labels, held)
        if not found.entries:
            ignored = f" ({len(found.ignored)} other files, such as {found.ignored[0]!r})" if found.ignored else ""
            fix = "name a place that does, or another format=; archives of CIFAR's or MNIST's files are to be unpacked"
            raise SourceRefused(path, f"holds no images{ignored}", fix)
        return Source(path, chosen, found.entries, found.ignored, held.pop_all())


def content_digest(format: Format, digests: Iterable[bytes]) -> str:
    """SHA-256 of what a source holds, from its format and the entry_digest of every entry, in order.

    The same for a copy elsewhere; another one as soon as one bit, name or label differs.
    """
    digest = hashlib.sha256(format.encode())
    for one in digests:
        digest.update(one)
    return digest.hexdigest()


def entry_digest(entry: Entry, content: bytes | np.ndarray | ImageRefused) -> bytes:
    """SHA-256 of an entry's name, label and content, as it was read; or that it cannot be."""
    digest = hashlib.sha256()

    def add(content: bytes) -> None:  # with its length, so that no two lists of parts look the same
        digest.update(len(content).to_bytes(8, "big") + content)

    add(entry.name.encode())
    add(f"{type(entry.label).__name__} {entry.label}".encode())  # class 7 is not the class named "7"
    if isinstance(content, ImageRefused):
        add(b"refused")
        return digest.digest()
    add(b"file" if isinstance(content, bytes) else f"pixels {content.shape}".encode())
    add(content if isinstance(content, bytes) else content.tobytes())
    return digest.digest()


READERS: dict[Format, Callable[[Place, Labels, ExitStack], Found]] = {
    "folder": open_folder,
    "zip": open_zip,
    "tar": open_tar,
    "npz": open_npz,
    "cifar-binary": partial(open_cifar, kind="cifar-binary", read=read_cifar_binary),
    "cifar-pickle": partial(open_cifar, kind="cifar-pickle", read=read_cifar_pickle),
    "idx": open_idx,
    "parquet": open_parquet,
}
