"""Which kind of source is this? Told by the names of files, and by how they begin; never by trying until one fits."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import get_args

from pipelines.sources.base import Format, Place, SourceRefused, told

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
TAR_BLOCK = 512
BY_SUFFIX: dict[str, Format] = {
    ".zip": "zip", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".npz": "npz", ".parquet": "parquet",
}  # fmt: skip
IDX_NAME = re.compile(r"(?P<of>.*)-(?P<what>images-idx3|labels-idx1)-ubyte(\.gz)?")


def of_kind(place: Place, kind: Format) -> tuple[list[str], list[str]]:
    """The files that belong to a format, and the others."""
    chosen = [name for name in place.files if kind_of(place, name) == kind]
    return chosen, [*place.hidden, *sorted(set(place.files) - set(chosen))]


def cifar_classes(stem: str) -> int | None:
    """10 or 100, by the names of the published files; None for any other name."""
    if re.fullmatch(r"data_batch_[0-9]+|test_batch", stem):
        return 10
    return 100 if stem in ("train", "test") else None


def kind_of(place: Place, name: str) -> Format | None:
    """The format that a file of this name belongs to, in a folder or by itself. (CIFAR's and IDX's lie at the top.)"""
    lower = name.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return "folder"
    for suffix, kind in BY_SUFFIX.items():
        if lower.endswith(suffix):
            return kind
    if "/" in name:
        return None
    if IDX_NAME.fullmatch(name):
        return "idx"
    if name.endswith(".bin") and cifar_classes(name.removesuffix(".bin")):
        return "cifar-binary"
    return "cifar-pickle" if cifar_classes(name) and begins(place.at(name)) == "cifar-pickle" else None


def begins(file: Path) -> Format | None:
    """The format that a file's first bytes tell; npz files are zip archives."""
    with told(file, "file"), file.open("rb") as stream:
        head = stream.read(TAR_BLOCK)
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "tar"
    magic: dict[bytes, Format] = {b"PK": "zip", b"PAR1": "parquet", b"\x80": "cifar-pickle"}
    return next((kind for start, kind in magic.items() if head.startswith(start)), None)


def detect(place: Place) -> Format:
    if not place.is_folder:
        return _detect_file(place)
    counts = Counter(kind for name in place.files if (kind := kind_of(place, name)))
    archives = sum(counts.pop(kind, 0) for kind in ("zip", "tar", "npz"))
    if len(counts) > 1:
        found = " and ".join(f"{count} for format={kind!r}" for kind, count in sorted(counts.items()))
        raise SourceRefused(place.path, f"is ambiguous: it holds files, {found}", "say which of these is meant")
    if counts:
        return next(iter(counts))
    if archives:
        raise SourceRefused(place.path, f"holds {archives} archives, no images", "name one archive itself")
    others = (
        f"{len(place.files)} files, none of them known, such as {min(place.files)!r}" if place.files else "no files"
    )
    fix = f"name a folder of images ({', '.join(IMAGE_SUFFIXES)}), or another format's files"
    raise SourceRefused(place.path, f"holds {others}", fix)


def _detect_file(place: Place) -> Format:
    named, start = kind_of(place, place.files[0]), begins(place.path)
    if named in ("folder", "idx"):
        raise SourceRefused(place.path, "is one file of many", "name the folder that holds it")
    if named == "cifar-binary" or (named and start == ("zip" if named == "npz" else named)):
        return named
    told = f"named as {named or 'nothing that is known'}, and begins as {start or 'nothing that is known'}"
    raise SourceRefused(place.path, f"is {told}", f"say what it is with format= ({', '.join(get_args(Format))})")
