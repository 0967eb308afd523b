"""Images that are files: in a folder, a zip or a tar archive."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from pipelines.preprocess import ImageRefused, one_line
from pipelines.sources.base import (
    FETCH_AGAIN,
    MAX_IMAGE_BYTES,
    Entry,
    Found,
    Labels,
    Member,
    Place,
    SourceRefused,
    checked_text,
    gunzip,
    is_hidden,
    one_file,
    told,
)  # fmt: skip
from pipelines.sources.kinds import IMAGE_SUFFIXES, TAR_BLOCK, of_kind


def look(path: Path) -> Place:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        fix = "name a file or a folder that you may read"
        raise SourceRefused(path, f"cannot be opened ({error.strerror})", fix) from error
    if stat.S_ISDIR(mode):
        files, hidden = _walk(path)
        return Place(path, True, files, hidden)
    if not stat.S_ISREG(mode):
        raise SourceRefused(path, "is neither a file nor a folder", "name one of these")
    return Place(path, False, (checked_text(path, path.name),), ())


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """The files below a folder, and what is hidden. Links are followed to files inside the root, and nowhere else."""
    files: list[str] = []
    hidden: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        for child in _children(root / folder):
            name = folder + child.name
            if is_hidden(child.name):
                hidden.append(name)
                continue
            if child.is_symlink():
                _check_link(root, name)
            if child.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            elif child.is_file():
                files.append(checked_text(root, name))
            else:
                raise SourceRefused(root, f"holds {name!r}, which is neither file nor folder", "remove it")
    return files, hidden


def _children(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise SourceRefused(folder, f"cannot be listed ({error.strerror})", "make it readable for you") from error


def _check_link(root: Path, name: str) -> None:
    try:
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle
        raise SourceRefused(root, f"holds the link {name!r}, which leads nowhere", "remove it") from error
    if not target.is_relative_to(root.resolve()):
        raise SourceRefused(root, f"holds the link {name!r}, which leaves the folder", "copy what it means there")
    if target.is_dir():  # its images are found where they are, under that folder's name
        raise SourceRefused(root, f"holds the link {name!r} to a folder", "remove it: that folder is read itself")


def _label(path: Path, name: str, labels: Labels) -> str | None:
    if labels == "none":
        return None
    if labels == "folder":
        return name.rpartition("/")[0] or None
    prefix, underscore, _ = name.rpartition("/")[2].partition("_")
    if not (prefix and underscore):
        raise SourceRefused(path, f"holds {name!r}, whose name has nothing before a '_'", "choose other labels=")
    return prefix


def open_folder(place: Place, labels: Labels, _: ExitStack) -> Found:
    if not place.is_folder:
        raise SourceRefused(place.path, "is a file, and format='folder' needs a folder", "name the folder it is in")
    names, ignored = of_kind(place, "folder")
    read = (partial(_read_file, place.at(name), name) for name in names)
    return Found([Entry(n, _label(place.path, n, labels), r) for n, r in zip(names, read, strict=True)], ignored)


def _read_file(file: Path, name: str) -> bytes:
    try:
        size = file.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise ImageRefused(name, f"is {size:,} bytes long: at most {MAX_IMAGE_BYTES:,} are read")
        return file.read_bytes()
    except OSError as error:
        raise ImageRefused(name, f"cannot be read ({error.strerror})") from error


def _of_archive(path: Path, members: Iterable[Member], labels: Labels) -> Found:
    entries: dict[str, Entry] = {}
    ignored = []
    for member in members:
        if not member.name.lower().endswith(IMAGE_SUFFIXES) or any(map(is_hidden, member.name.split("/"))):
            ignored.append(member.name)
            continue
        if member.name in entries:
            raise SourceRefused(path, f"holds {member.name!r} twice", "write it again with each name once")
        if member.size > MAX_IMAGE_BYTES:
            what = f"holds {member.name!r} of {member.size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read"
            raise SourceRefused(path, what, "leave it out, or save it smaller")
        entries[member.name] = Entry(member.name, _label(path, member.name, labels), member.read)
    return Found(list(entries.values()), ignored)


def _member_name(path: Path, name: str) -> str:
    """A name in an archive, without "./" and doubled slashes, or a refusal where it could mean another place."""
    parts = PurePosixPath(checked_text(path, name))
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise SourceRefused(path, f"holds {name!r}, a name that could lead out of it", "write it with plain names")
    return parts.as_posix()


def open_zip(place: Place, labels: Labels, held: ExitStack) -> Found:
    with told(one_file(place), "zip archive"):
        archive = held.enter_context(zipfile.ZipFile(place.path))
        return _of_archive(place.path, _zip_members(place.path, archive), labels)


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        name = _member_name(path, info.filename)
        if info.is_dir():
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SourceRefused(path, f"holds {name!r}, which is no plain file", "write it with plain files alone")
        if info.flag_bits & 1:
            raise SourceRefused(path, f"holds {name!r} encrypted", "write it again without a password")
        yield Member(name, info.file_size, partial(_read_zipped, archive, info, name))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    ample = copy(info)
    # zipfile stops without a word at the size that is declared: let it unpack some more, and ask for one byte of that.
    ample.file_size += 2**16
    try:
        with archive.open(ample) as stream:
            content = stream.read(info.file_size + 1)
    except Exception as error:  # as many kinds as there are ways to damage a file
        raise ImageRefused(name, f"cannot be unpacked: {one_line(error)}") from error
    if len(content) != info.file_size:
        more = "more" if len(content) > info.file_size else "fewer"
        raise ImageRefused(name, f"unpacks to {more} bytes than the {info.file_size:,} its archive declares")
    return content


def open_tar(place: Place, labels: Labels, held: ExitStack) -> Found:
    with told(one_file(place), "tar archive"):
        stream: IO[bytes] = held.enter_context(place.path.open("rb"))
        if stream.read(2) == b"\x1f\x8b":
            # Without a name, it is gone with this process, however that ends.
            stream = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            gunzip(place.path, stream)
            stream.flush()
        stream.seek(0)
        return _of_archive(place.path, _tar_members(place.path, stream), labels)


def _tar_members(path: Path, stream: IO[bytes]) -> Iterator[Member]:
    end, last = 0, "its beginning"
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all: gigabytes for a million
            name = _member_name(path, member.name)
            end, last = member.offset_data, repr(name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise SourceRefused(path, f"holds {name!r}, which is no plain file", "write it with plain files alone")
            end += -(-member.size // TAR_BLOCK) * TAR_BLOCK
            yield Member(name, member.size, partial(os.pread, stream.fileno(), member.size, member.offset_data))
    if not _only_zeros(stream, end):  # tarfile takes whatever it does not understand for the end
        raise SourceRefused(path, f"is damaged or cut: after {last} it neither goes on nor ends", FETCH_AGAIN)


def _only_zeros(stream: IO[bytes], start: int) -> bool:
    """Whether a tar archive ends there: with one block of zeros at least, and nothing else after it."""
    stream.seek(start)
    length = 0
    while block := stream.read(2**20):
        if block.count(0) != len(block):
            return False
        length += len(block)
    return length >= TAR_BLOCK
