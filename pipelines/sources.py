"""Where do a data set's images come from? A folder, an archive or a data set's own files, opened without a guess.

    with open_source(Path("images.zip"), labels="prefix") as source:
        for entry in source.entries():
            image = decode(entry.read(), name=entry.name, channels=3)

What is wrong with the source is found when it is opened (SourceRefused); what is wrong with one image when that is
read (ImageRefused). Nothing is unpacked, and nothing in a file is executed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import PreflightError
from pipelines.data import read_idx
from pipelines.preprocess import ImageRefused, one_line

Format = Literal["folder", "zip", "tar", "npz", "cifar-binary", "cifar-pickle", "idx", "parquet"]
Labels = Literal["folder", "prefix", "none"]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
MAX_IMAGE_BYTES = 256 * 2**20
"""The longest image file that is read, from a folder or out of an archive."""
GUNZIP_FREE_BYTES = 2**30
GUNZIP_MAX_RATIO = 100
"""What gzip may unpack to: 1 GiB, or 100 times its own length if that is more."""
TAR_BLOCK = 512
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_COARSE_CLASSES = 20
IDX_AXES = {"images-idx3": 3, "labels-idx1": 1}
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
    place = _look(path)
    chosen = _detect(place) if format == "auto" else format
    if labels == "prefix" and chosen not in ("folder", "zip", "tar"):
        raise ValueError(f"labels='prefix': {chosen} has labels of its own; set labels to 'folder' (these) or 'none'")
    with ExitStack() as held:
        found = READERS[chosen](place, labels, held)
        if not found.entries:
            ignored = f" ({len(found.ignored)} other files, such as {found.ignored[0]!r})" if found.ignored else ""
            raise SourceRefused(path, f"holds no images{ignored}", "name a place that does, or another format=")
        return Source(path, chosen, found.entries, found.ignored, held.pop_all())


def content_digest(source: Source) -> str:
    """SHA-256 of what a source holds: its format, and the name, label and content of every entry, in order.

    The same for a copy elsewhere; another one as soon as one bit, name or label differs. Reads every image.
    """
    digest = hashlib.sha256()

    def add(content: bytes) -> None:  # with its length, so that no two lists of parts look the same
        digest.update(len(content).to_bytes(8, "big") + content)

    add(source.format.encode())
    for entry in source.entries():
        content = entry.read()
        add(entry.name.encode())
        add(f"{type(entry.label).__name__} {entry.label}".encode())  # class 7 is not the class named "7"
        add(b"file" if isinstance(content, bytes) else f"pixels {content.shape}".encode())
        add(hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Place:
    """What is found at a path: the names of a folder's files, or of the one file."""

    path: Path
    is_folder: bool
    files: Sequence[str]
    hidden: Sequence[str]

    def at(self, name: str) -> Path:
        return self.path / name if self.is_folder else self.path

    def of_kind(self, kind: Format) -> tuple[list[str], list[str]]:
        """The files that belong to a format, and the others."""
        chosen = [name for name in self.files if _kind(self, name) == kind]
        return chosen, [*self.hidden, *sorted(set(self.files) - set(chosen))]


@dataclass(frozen=True)
class _Found:
    entries: list[Entry]
    ignored: Sequence[str]


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    name: str
    size: int
    read: Callable[[], bytes]


@contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Whatever a parser raises becomes a refusal of the file: hostile bytes make it raise nearly anything."""
    try:
        yield
    except SourceRefused:
        raise
    except Exception as error:
        raise SourceRefused(path, f"is no whole {kind} ({one_line(error)})", FETCH_AGAIN) from error


# ---- What is there


def _look(path: Path) -> _Place:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        fix = "name a file or a folder that you may read"
        raise SourceRefused(path, f"cannot be opened ({error.strerror})", fix) from error
    if stat.S_ISDIR(mode):
        files, hidden = _walk(path)
        return _Place(path, True, files, hidden)
    if not stat.S_ISREG(mode):
        raise SourceRefused(path, "is neither a file nor a folder", "name one of these")
    return _Place(path, False, (_checked_text(path, path.name),), ())


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """The files below a folder, and what is hidden. Links are followed to files inside the root, and nowhere else."""
    files: list[str] = []
    hidden: list[str] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        for child in _children(root / folder):
            name = folder + child.name
            if _is_hidden(child.name):
                hidden.append(name)
                continue
            if child.is_symlink():
                _check_link(root, name)
            if child.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            elif child.is_file():
                files.append(_checked_text(root, name))
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


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _checked_text(path: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceRefused(path, f"holds {name!r}, a name that is not UTF-8", "rename it") from error
    return name


# ---- Which format it is


def _kind(place: _Place, name: str) -> Format | None:
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
    if name.endswith(".bin") and _cifar_classes(name.removesuffix(".bin")):
        return "cifar-binary"
    return "cifar-pickle" if _cifar_classes(name) and _begins(place.at(name)) == "cifar-pickle" else None


def _begins(file: Path) -> Format | None:
    """The format that a file's first bytes tell; npz files are zip archives."""
    with _told(file, "file"), file.open("rb") as stream:
        head = stream.read(TAR_BLOCK)
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "tar"
    magic: dict[bytes, Format] = {b"PK": "zip", b"PAR1": "parquet", b"\x80": "cifar-pickle"}
    return next((kind for start, kind in magic.items() if head.startswith(start)), None)


def _detect(place: _Place) -> Format:
    if not place.is_folder:
        return _detect_file(place)
    counts = Counter(kind for name in place.files if (kind := _kind(place, name)))
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


def _detect_file(place: _Place) -> Format:
    named, begins = _kind(place, place.files[0]), _begins(place.path)
    if named in ("folder", "idx"):
        raise SourceRefused(place.path, "is one file of many", "name the folder that holds it")
    if named == "cifar-binary" or (named and begins == ("zip" if named == "npz" else named)):
        return named
    told = f"named as {named or 'nothing that is known'}, and begins as {begins or 'nothing that is known'}"
    raise SourceRefused(place.path, f"is {told}", f"say what it is with format= ({', '.join(READERS)})")


# ---- Files: a folder, zip, tar


def _label(path: Path, name: str, labels: Labels) -> str | None:
    if labels == "none":
        return None
    if labels == "folder":
        return name.rpartition("/")[0] or None
    prefix, underscore, _ = name.rpartition("/")[2].partition("_")
    if not (prefix and underscore):
        raise SourceRefused(path, f"holds {name!r}, whose name has nothing before a '_'", "choose other labels=")
    return prefix


def _open_folder(place: _Place, labels: Labels, _: ExitStack) -> _Found:
    if not place.is_folder:
        raise SourceRefused(place.path, "is a file, and format='folder' needs a folder", "name the folder it is in")
    names, ignored = place.of_kind("folder")
    read = (partial(_read_file, place.at(name), name) for name in names)
    return _Found([Entry(n, _label(place.path, n, labels), r) for n, r in zip(names, read, strict=True)], ignored)


def _read_file(file: Path, name: str) -> bytes:
    try:
        size = file.stat().st_size
        if size > MAX_IMAGE_BYTES:
            raise ImageRefused(name, f"is {size:,} bytes long: at most {MAX_IMAGE_BYTES:,} are read")
        return file.read_bytes()
    except OSError as error:
        raise ImageRefused(name, f"cannot be read ({error.strerror})") from error


def _of_archive(path: Path, members: Iterable[_Member], labels: Labels) -> _Found:
    entries: dict[str, Entry] = {}
    ignored = []
    for member in members:
        if not member.name.lower().endswith(IMAGE_SUFFIXES) or any(map(_is_hidden, member.name.split("/"))):
            ignored.append(member.name)
            continue
        if member.name in entries:
            raise SourceRefused(path, f"holds {member.name!r} twice", "write it again with each name once")
        if member.size > MAX_IMAGE_BYTES:
            what = f"holds {member.name!r} of {member.size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read"
            raise SourceRefused(path, what, "leave it out, or save it smaller")
        entries[member.name] = Entry(member.name, _label(path, member.name, labels), member.read)
    return _Found(list(entries.values()), ignored)


def _member_name(path: Path, name: str) -> str:
    """A name in an archive, without "./" and doubled slashes, or a refusal where it could mean another place."""
    parts = PurePosixPath(_checked_text(path, name))
    if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise SourceRefused(path, f"holds {name!r}, a name that could lead out of it", "write it with plain names")
    return parts.as_posix()


def _open_zip(place: _Place, labels: Labels, held: ExitStack) -> _Found:
    with _told(_one_file(place), "zip archive"):
        archive = held.enter_context(zipfile.ZipFile(place.path))
        return _of_archive(place.path, _zip_members(place.path, archive), labels)


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        name = _member_name(path, info.filename)
        if info.is_dir():
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise SourceRefused(path, f"holds {name!r}, which is no plain file", "write it with plain files alone")
        if info.flag_bits & 1:
            raise SourceRefused(path, f"holds {name!r} encrypted", "write it again without a password")
        yield _Member(name, info.file_size, partial(_read_zipped, archive, info, name))


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


def _open_tar(place: _Place, labels: Labels, held: ExitStack) -> _Found:
    with _told(_one_file(place), "tar archive"):
        stream: IO[bytes] = held.enter_context(place.path.open("rb"))
        if stream.read(2) == b"\x1f\x8b":
            # Without a name, it is gone with this process, however that ends.
            stream = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            _gunzip(place.path, stream)
            stream.flush()
        stream.seek(0)
        return _of_archive(place.path, _tar_members(place.path, stream), labels)


def _tar_members(path: Path, stream: IO[bytes]) -> Iterator[_Member]:
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
            yield _Member(name, member.size, partial(os.pread, stream.fileno(), member.size, member.offset_data))
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


def _gunzip(file: Path, into: IO[bytes]) -> None:
    allowed = max(GUNZIP_FREE_BYTES, GUNZIP_MAX_RATIO * file.stat().st_size)
    with gzip.open(file, "rb") as stream:
        while block := stream.read(2**20):
            if into.tell() + len(block) > allowed:
                what = f"unpacks to more than {allowed:,} bytes, as no images would"
                raise SourceRefused(file, what, "if it is sound, unpack it yourself")
            into.write(block)


def _one_file(place: _Place) -> Path:
    if place.is_folder:
        raise SourceRefused(place.path, "is a folder, and this format= needs a file", "name the file")
    return place.path


# ---- Pixels: npz, CIFAR, IDX


def _of_array(images: np.ndarray, labels: Sequence[int] | np.ndarray | None, *, of: str) -> list[Entry]:
    known = [None] * len(images) if labels is None else [int(label) for label in labels]
    return [Entry(f"{of}/{index:09d}", label, partial(_pixels, images, index)) for index, label in enumerate(known)]


def _pixels(images: np.ndarray, index: int) -> np.ndarray:
    return np.array(images[index], order="C")  # a copy: not a view into a file, and nobody else's


def _open_npz(place: _Place, labels: Labels, _: ExitStack) -> _Found:
    """The layout of the published evaluator. Held in memory."""
    if _begins(_one_file(place)) != "zip":  # which numpy would read as something else, if it could
        raise SourceRefused(place.path, "is no npz file (these are zip archives)", FETCH_AGAIN)
    with _told(place.path, "npz file"), np.load(place.path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        if "arr_0" not in names:
            raise SourceRefused(place.path, f"holds {names}, not arr_0", "save the images as its first, unnamed array")
        images, classes = arrays["arr_0"], arrays.get("arr_1")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        what = f"has arr_0 of {images.dtype} {images.shape}, not uint8 (count, height, width, 1 or 3)"
        raise SourceRefused(place.path, what, "convert the images first")
    if classes is not None and (classes.dtype.kind not in "iu" or classes.shape != (len(images),)):
        what = f"has arr_1 of {classes.dtype} {classes.shape}, not one integer for each of {len(images)} images"
        raise SourceRefused(place.path, what, "save one label for every image, or none")
    ignored = [name for name in names if name not in ("arr_0", "arr_1")]
    return _Found(_of_array(images, None if labels == "none" else classes, of="arr_0"), ignored)


def _cifar_classes(stem: str) -> int | None:
    """10 or 100, by the names of the published files; None for any other name."""
    if re.fullmatch(r"data_batch_[0-9]+|test_batch", stem):
        return 10
    return 100 if stem in ("train", "test") else None


def _open_cifar(
    place: _Place,
    labels: Labels,
    _: ExitStack,
    *,
    kind: Format,
    read: Callable[[Path, int], tuple[np.ndarray, list[int]]],
) -> _Found:
    names, ignored = place.of_kind(kind)
    if len({_cifar_classes(name.removesuffix(".bin")) for name in names}) > 1:
        raise SourceRefused(place.path, "mixes files of CIFAR-10 and of CIFAR-100", "put each in a folder of its own")
    entries: list[Entry] = []
    for name in names:
        classes = _cifar_classes(name.removesuffix(".bin"))
        assert classes is not None
        images, given = read(place.at(name), classes)
        _check_labels(place.at(name), given, classes)
        pictures = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        entries += _of_array(pictures, None if labels == "none" else given, of=name)
    return _Found(entries, ignored)


def _check_labels(file: Path, labels: list[int], classes: int) -> None:
    for index, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            what = f"gives image {index} the label {label!r}, which is none of 0..{classes - 1}"
            raise SourceRefused(file, what, FETCH_AGAIN)


def _read_cifar_binary(file: Path, classes: int) -> tuple[np.ndarray, list[int]]:
    leading = 1 if classes == 10 else 2  # CIFAR-100 puts the coarse label before the fine one
    record = leading + CIFAR_PIXELS
    with _told(file, "CIFAR file"):
        size = file.stat().st_size
        if size == 0 or size % record:
            what = f"is {size:,} bytes long, not a multiple of CIFAR-{classes}'s {record}"
            raise SourceRefused(file, what, FETCH_AGAIN)
        records = np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record)
    if leading == 2:
        _check_labels(file, records[:, 0].tolist(), CIFAR_COARSE_CLASSES)
    return records[:, leading:], records[:, leading - 1].tolist()


def _read_cifar_pickle(file: Path, classes: int) -> tuple[np.ndarray, list[int]]:
    with _told(file, "pickle of CIFAR's"), file.open("rb") as stream:
        batch = _ArraysAlone(stream, encoding="bytes").load()
        parts = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images = parts["data"].array
        labels = parts["labels" if classes == 10 else "fine_labels"]
        if images.shape != (len(labels), CIFAR_PIXELS):
            what = f"has data of shape {images.shape} for {len(labels)} labels, not ({len(labels)}, {CIFAR_PIXELS})"
            raise SourceRefused(file, what, FETCH_AGAIN)
    return images, labels


class _PickledDtype:
    """Stands for numpy.dtype in a pickle: says which it is, and lets nothing be done to it."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"holds an array of {kind!r}, and only uint8 is read")

    def __setstate__(self, state: object) -> None:
        """The order of single bytes means nothing."""


class _PickledArray:
    """Stands for an array in a pickle: numpy's own way to fill one trusts what it is told."""

    def __init__(self, *_: object) -> None:
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[object, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = _PickledBuffer(content, dtype, shape, "F" if is_fortran else "C").array


class _PickledBuffer(_PickledArray):
    """The same, as newer pickles say it. A class, for a function has attributes that a pickle could set."""

    def __init__(self, content: bytes, dtype: object, shape: tuple[int, ...], order: Literal["C", "F"]) -> None:
        if not isinstance(dtype, _PickledDtype) or not isinstance(content, bytes | bytearray):
            raise pickle.UnpicklingError("holds an array whose content is not plain bytes of uint8")
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _ArraysAlone(pickle.Unpickler):
    """Admits numbers, strings, lists, dictionaries and arrays of bytes; any other name is refused, never looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"asks for {module!r}.{name!r}, which is code and is not run")
        return PICKLED[module, name]


PICKLED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _PickledDtype,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy.core.numeric", "_frombuffer"): _PickledBuffer,
    ("numpy._core.numeric", "_frombuffer"): _PickledBuffer,
}


def _open_idx(place: _Place, labels: Labels, _: ExitStack) -> _Found:
    if not place.is_folder:
        raise SourceRefused(place.path, "is a file, and idx is a pair of them", "name the folder they are in")
    names, ignored = place.of_kind("idx")
    pairs: dict[str, dict[str, str]] = {}
    for name in names:
        matched = IDX_NAME.fullmatch(name)
        assert matched is not None
        of, what = matched["of"], matched["what"]
        if what in pairs.setdefault(of, {}):
            raise SourceRefused(place.path, f"holds {name!r} twice, packed and unpacked", "remove one of them")
        pairs[of][what] = name
    entries: list[Entry] = []
    for of, pair in pairs.items():
        if len(pair) != 2:
            raise SourceRefused(place.path, f"holds {min(pair.values())!r} alone", "add its other half")
        images, given = (_read_idx(place.at(pair[what]), axes=axes) for what, axes in IDX_AXES.items())
        if len(images) != len(given):
            what = f"has {len(images)} images but {len(given)} labels in {of!r}"
            raise SourceRefused(place.path, what, FETCH_AGAIN)
        entries += _of_array(images[..., None], None if labels == "none" else given, of=pair["images-idx3"])
    return _Found(entries, ignored)


def _read_idx(file: Path, *, axes: int) -> np.ndarray:
    content = io.BytesIO()
    with _told(file, "IDX file"):
        _gunzip(file, content) if file.suffix == ".gz" else content.write(file.read_bytes())
        array = read_idx(content.getvalue())
    if array.ndim != axes:
        raise SourceRefused(file, f"has {array.ndim} axes, not {axes}", FETCH_AGAIN)
    return array


# ---- Parquet, as Hugging Face's datasets write it


def _open_parquet(place: _Place, labels: Labels, _: ExitStack) -> _Found:
    names, ignored = place.of_kind("parquet") if place.is_folder else (list(place.files), [])
    read_group = lru_cache(maxsize=1)(_read_group)  # rows are asked for in order: one row group in memory
    entries: list[Entry] = []
    for name in names:
        file = place.at(name)
        with _told(file, "Parquet file"), pq.ParquetFile(file) as parquet:
            column = _image_column(file, parquet.schema_arrow)
            lengths = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            given = None if labels == "none" else _parquet_labels(file, parquet)
        places = ((group, row) for group, length in enumerate(lengths) for row in range(length))
        for index, (group, row) in enumerate(places):
            title = f"{name}/{index:09d}"
            read = partial(_read_row, partial(read_group, file, group, column), row, title)
            entries.append(Entry(title, None if given is None else given[index], read))
    return _Found(entries, ignored)


def _image_column(file: Path, schema: pa.Schema) -> str:
    """The leaf that holds the bytes: `image.bytes`, or `image` itself."""
    kind = schema.field("image").type if "image" in schema.names else pa.null()
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if is_struct else kind
    if pa.types.is_binary(content) or pa.types.is_large_binary(content):
        return "image.bytes" if is_struct else "image"
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    what = f"has no column 'image' of struct<bytes: binary, path: string> or of binary, but {found!r}"
    raise SourceRefused(file, what, "rename or convert it")


def _parquet_labels(file: Path, parquet: pq.ParquetFile) -> list[int] | None:
    if "label" not in parquet.schema_arrow.names:
        return None
    kind = parquet.schema_arrow.field("label").type
    if not pa.types.is_integer(kind):
        what = f"has a column 'label' of {str(kind)!r}, not of integers"
        raise SourceRefused(file, what, "convert it, or set labels='none'")
    column = parquet.read(columns=["label"])["label"]
    if column.null_count:
        what = f"has {column.null_count} rows whose label is null"
        raise SourceRefused(file, what, "fill them, or set labels='none'")
    return column.to_pylist()


def _read_group(file: Path, group: int, column: str) -> pa.ChunkedArray:
    with _told(file, "Parquet file"), pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column])["image"]


def _read_row(read_group: Callable[[], pa.ChunkedArray], row: int, name: str) -> bytes:
    value = read_group()[row].as_py()
    content = value["bytes"] if isinstance(value, dict) else value
    if content is None:
        raise ImageRefused(name, "has no bytes (null): the images are to be inside the Parquet file")
    return content


BY_SUFFIX: dict[str, Format] = {
    ".zip": "zip", ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar", ".npz": "npz", ".parquet": "parquet",
}  # fmt: skip
IDX_NAME = re.compile(r"(?P<of>.*)-(?P<what>images-idx3|labels-idx1)-ubyte(\.gz)?")
READERS: dict[Format, Callable[[_Place, Labels, ExitStack], _Found]] = {
    "folder": _open_folder,
    "zip": _open_zip,
    "tar": _open_tar,
    "npz": _open_npz,
    "cifar-binary": partial(_open_cifar, kind="cifar-binary", read=_read_cifar_binary),
    "cifar-pickle": partial(_open_cifar, kind="cifar-pickle", read=_read_cifar_pickle),
    "idx": _open_idx,
    "parquet": _open_parquet,
}
