"""Images that are pixels already: npz, CIFAR's files and IDX."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np

from pipelines.builtin_data import read_idx
from pipelines.sources.base import (
    FETCH_AGAIN,
    Entry,
    Format,
    Found,
    Labels,
    Place,
    SourceRefused,
    check_unpacked,
    gunzip,
    one_file,
    told,
)
from pipelines.sources.kinds import IDX_NAME, begins, cifar_classes, of_kind

CIFAR_PIXELS = 3 * 32 * 32
CIFAR_COARSE_CLASSES = 20
IDX_AXES = {"images-idx3": 3, "labels-idx1": 1}


def _of_array(images: np.ndarray, labels: Sequence[int] | np.ndarray | None, *, of: str) -> list[Entry]:
    known = [None] * len(images) if labels is None else [int(label) for label in labels]
    return [Entry(f"{of}/{index:09d}", label, partial(_pixels, images, index)) for index, label in enumerate(known)]


def _pixels(images: np.ndarray, index: int) -> np.ndarray:
    return np.array(images[index], order="C")  # a copy: not a view into a file, and nobody else's


def open_npz(place: Place, labels: Labels, _: ExitStack) -> Found:
    """The layout of the published evaluator. Held in memory."""
    if begins(one_file(place)) != "zip":  # which numpy would read as something else, if it could
        raise SourceRefused(place.path, "is no npz file (these are zip archives)", FETCH_AGAIN)
    with told(place.path, "npz file"), ZipFile(place.path) as archive:
        check_unpacked(place.path, sum(member.file_size for member in archive.infolist()))
    with told(place.path, "npz file"), np.load(place.path, allow_pickle=False) as arrays:
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
    return Found(_of_array(images, None if labels == "none" else classes, of="arr_0"), ignored)


def open_cifar(
    place: Place,
    labels: Labels,
    _: ExitStack,
    *,
    kind: Format,
    read: Callable[[Path, int], tuple[np.ndarray, list[int]]],
) -> Found:
    names, ignored = of_kind(place, kind)
    if len({cifar_classes(name.removesuffix(".bin")) for name in names}) > 1:
        raise SourceRefused(place.path, "mixes files of CIFAR-10 and of CIFAR-100", "put each in a folder of its own")
    entries: list[Entry] = []
    for name in names:
        classes = cifar_classes(name.removesuffix(".bin"))
        assert classes is not None
        images, given = read(place.at(name), classes)
        _check_labels(place.at(name), given, classes)
        pictures = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        entries += _of_array(pictures, None if labels == "none" else given, of=name)
    return Found(entries, ignored)


def _check_labels(file: Path, labels: list[int], classes: int) -> None:
    for index, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            what = f"gives image {index} the label {label!r}, which is none of 0..{classes - 1}"
            raise SourceRefused(file, what, FETCH_AGAIN)


def read_cifar_binary(file: Path, classes: int) -> tuple[np.ndarray, list[int]]:
    leading = 1 if classes == 10 else 2  # CIFAR-100 puts the coarse label before the fine one
    record = leading + CIFAR_PIXELS
    with told(file, "CIFAR file"):
        size = file.stat().st_size
        if size == 0 or size % record:
            what = f"is {size:,} bytes long, not a multiple of CIFAR-{classes}'s {record}"
            raise SourceRefused(file, what, FETCH_AGAIN)
        records = np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record)
    if leading == 2:
        _check_labels(file, records[:, 0].tolist(), CIFAR_COARSE_CLASSES)
    return records[:, leading:], records[:, leading - 1].tolist()


def read_cifar_pickle(file: Path, classes: int) -> tuple[np.ndarray, list[int]]:
    with told(file, "pickle of CIFAR's"), file.open("rb") as stream:
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


def open_idx(place: Place, labels: Labels, _: ExitStack) -> Found:
    if not place.is_folder:
        raise SourceRefused(place.path, "is a file, and idx is a pair of them", "name the folder they are in")
    names, ignored = of_kind(place, "idx")
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
    return Found(entries, ignored)


def _read_idx(file: Path, *, axes: int) -> np.ndarray:
    content = io.BytesIO()
    with told(file, "IDX file"):
        gunzip(file, content) if file.suffix == ".gz" else content.write(file.read_bytes())
        array = read_idx(content.getvalue())
    if array.ndim != axes:
        raise SourceRefused(file, f"has {array.ndim} axes, not {axes}", FETCH_AGAIN)
    return array
