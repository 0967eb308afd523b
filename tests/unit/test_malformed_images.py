"""What bad input gets: a table of images and sources that cannot be used, and the one line that each is told."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import socket
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.preprocess import ImageRefused, decode
from pipelines.sources import SourceRefused, open_source

RGB = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(array) for array in (RGB, RGB[::-1], RGB[:, ::-1])]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, and which holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


FORMATS = "no whole image in a format that is read (JPEG, PNG, GIF, BMP, WEBP, PPM, TIFF); it begins with"

# What an image file holds, and how the reason begins that it is refused for.
IMAGES: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "the file is empty (zero bytes)"),
    "text named .png": (b"hello, world\n", f"{FORMATS} 68 65 6c 6c 6f 2c 20 77"),
    "a page of HTML, as a failed download leaves": (b"<html>404</html>", f"{FORMATS} 3c 68 74 6d 6c 3e 34 30"),
    "zeros, as a full disk leaves": (bytes(4096), f"{FORMATS} 00 00 00 00 00 00 00 00"),
    "a PDF": (b"%PDF-1.7\n" + bytes(99), f"{FORMATS} 25 50 44 46 2d 31 2e 37"),
    "an icon, a format that is not read": (encoded(RGB, "ICO"), f"{FORMATS} 00 00 01 00"),
    "a PNG cut in half": (PNG[: len(PNG) // 2], "damaged or cut short: OSError: image file is truncated"),
    "a PNG cut in its header": (PNG[:20], "damaged or cut short: OSError: Truncated File Read"),
    "a PNG with a flipped bit in its header": (flipped(PNG, 18), f"{FORMATS} 89 50 4e 47"),
    "a PNG with a flipped bit in its pixels": (flipped(PNG, len(PNG) // 2), "damaged or cut short: "),
    "a JPEG cut in half": (JPEG[: len(JPEG) // 2], "damaged or cut short: OSError: image file is truncated"),
    "a JPEG without its end": (JPEG[:-40], "damaged or cut short: OSError: image file is truncated"),
    "a JPEG whose tables are overwritten": (JPEG[:24] + bytes(200) + JPEG[224:], FORMATS),
    "a JPEG whose first byte is lost": (JPEG[1:], f"{FORMATS} d8 ff"),
    "a BMP cut short": (encoded(RGB, "BMP")[:-9], "damaged or cut short: OSError: image file is truncated"),
    "a WEBP cut short": (encoded(RGB, "WEBP")[:-9], "damaged or cut short: OSError: "),
    "a PPM without pixels": (b"P6\n8 8\n255\n", "damaged or cut short: OSError: image file is truncated"),
    "a PPM without a width": (b"P6\n0 8\n255\n" + bytes(99), FORMATS),
    "an animated GIF": (animated("GIF"), "holds 3 frames: one image is needed"),
    "an animated PNG": (animated("PNG"), "holds 3 frames: one image is needed"),
    "an animated WEBP": (animated("WEBP"), "holds 3 frames: one image is needed"),
    "a TIFF of several pages": (animated("TIFF"), "holds 3 frames: one image is needed"),
    "a TIFF of floating point": (encoded(RGB[..., 0].astype(np.float32), "TIFF"), "holds floating point values"),
    "a PFM of floating point": (b"Pf\n2 2\n-1.0\n" + bytes(16), "holds floating point values"),
    "a TIFF of 32 bits": (
        encoded(np.array([[0, 65536]], np.int32), "TIFF"),
        "gray values are 0..65536, outside the 0..65535 of 16 bits",
    ),
    "a TIFF with values below 0": (encoded(np.array([[-1, 7]], np.int32), "TIFF"), "gray values are -1..7, outside"),
    "a bomb, by its header": (
        png_of(60_000, 60_000),
        "too large to be decoded: Image size (3600000000 pixels) exceeds",
    ),
    "a bomb that Pillow would let pass": (
        png_of(12_000, 12_000),
        "12000x12000 are 144,000,000 pixels, more than max_pixels=134,217,728",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("title", IMAGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_malformed_image_is_refused_with_its_name_and_the_reason(title: str, channels: Any) -> None:
    content, reason = IMAGES[title]
    with pytest.raises(ImageRefused) as refused:
        decode(content, name="a/b.png", channels=channels)
    assert str(refused.value).startswith(f"'a/b.png': {reason}")
    assert len(str(refused.value).splitlines()) == 1


def test_the_limit_of_pixels_is_the_callers() -> None:
    assert decode(PNG, name="x", channels=3, max_pixels=1600).size == (40, 40)
    with pytest.raises(ImageRefused, match=r"'x': 40x40 are 1,600 pixels, more than max_pixels=1,599"):
        decode(PNG, name="x", channels=3, max_pixels=1599)


@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_name_where_warnings_are_errors() -> None:
    with pytest.raises(ImageRefused, match="'x': too large to be decoded"):
        decode(png_of(12_000, 12_000), name="x", channels=3)


@pytest.mark.parametrize("name", ["a\nERROR: b.png", "a\r\x1b[2J.png", "../../etc/passwd", "a\u2028b.png", ""])
def test_no_name_can_forge_a_line(name: str) -> None:
    with pytest.raises(ImageRefused) as refused:
        decode(b"", name=name, channels=3)
    assert str(refused.value) == f"{name!r}: the file is empty (zero bytes)"
    assert len(str(refused.value).splitlines()) == 1
    assert refused.value.name == name


# ---- Sources. A case writes what is wrong below a folder, and says what to open.


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def files_in(files: dict[str, bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    return write


def linked(name: str, target: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "inside").mkdir()
        (folder / "outside.png").write_bytes(PNG)
        (folder / "images").mkdir()
        (folder / "images/sub").mkdir()
        (folder / "images" / name).symlink_to(target)
        return folder / "images"

    return write


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.png")
    return folder


def listening(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(folder, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/x.png")  # the whole path may be too long for a socket's name
        os.close(here)
    return folder


def unlistable(folder: Path) -> Path:
    (folder / "secret").mkdir(mode=0)
    return folder


def zipped(*names: str, change: Callable[[zipfile.ZipInfo], Any] | None = None) -> Callable[[Path], Path]:
    """A zip archive of one PNG under each name; change has its way with what the table of contents says of the last."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, PNG)
            if change is not None:
                change(archive.infolist()[-1])
        return folder / "x.zip"

    return write


def setting(field: str, value: Any) -> Callable[[Any], None]:
    return lambda member: setattr(member, field, value)


def tar_bytes(*names: str, **fields: Any) -> bytes:
    """A tar archive of one PNG under each name; fields change the last one's header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(PNG)
            if name == names[-1]:
                for field, value in fields.items():
                    setattr(member, field, value)
            archive.addfile(member, io.BytesIO(PNG) if member.isreg() and member.size == len(PNG) else None)
    return stream.getvalue()


def tarred(*names: str, **fields: Any) -> Callable[[Path], Path]:
    return written("x.tar", tar_bytes(*names, **fields))


def npz(*arrays: Any, **named: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "x.npz", *arrays, **named)
        return folder / "x.npz"

    return write


IMAGES_NPZ = np.zeros((2, 4, 4, 3), np.uint8)
RECORD = bytes(3073)


class Code:
    """What a hostile pickle calls when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def batch(**changes: Any) -> dict[bytes, Any]:
    whole = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]} | changes
    return {name.encode(): value for name, value in whole.items()}


def pickled(value: Any) -> Callable[[Path], Path]:
    return written("data_batch_1", pickle.dumps(value, protocol=4))


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


IDX_IMAGES, IDX_LABELS = idx(np.zeros((2, 3, 3), np.uint8)), idx(np.zeros(2, np.uint8))


def idx_pair(images: bytes, labels: bytes, suffix: str = "") -> Callable[[Path], Path]:
    return files_in({f"t-images-idx3-ubyte{suffix}": images, f"t-labels-idx1-ubyte{suffix}": labels})


def parquet(**columns: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "x.parquet")
        return folder / "x.parquet"

    return write


def parquet_bytes() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [PNG] * 3}), stream)
    return stream.getvalue()


HF = pa.struct({"bytes": pa.binary(), "path": pa.string()})
EMPTY_ARRAY = np.zeros(0, np.uint8).__reduce__()[0], np.ndarray, (0,), b"b"
FUNCTION_CHANGED = b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(N}U\x0c__defaults__)stb."

Case = tuple[Callable[[Path], Path], str]

PLACES: dict[str, Case] = {
    "nothing there": (lambda folder: folder / "gone", "cannot be opened (No such file or directory): name a file or a"),
    "an empty folder": (lambda folder: folder, "holds no files: name a folder of images (.jpg, .jpeg"),
    "a folder of empty folders": (
        lambda folder: (folder / "a/b").mkdir(parents=True) or folder,
        "holds no files: name",
    ),
    "a folder of other files": (
        files_in({"b.txt": b"", "a.csv": b""}),
        "holds 2 files, none of them known, such as 'a.csv': name a folder of images",
    ),
    "a folder of hidden images": (files_in({".x.png": PNG, "__MACOSX/x.png": PNG}), "holds no files: name a folder"),
    "a folder of archives": (
        files_in({"a.zip": b"", "b.tar.gz": b""}),
        "holds 2 archives, no images: name one archive",
    ),
    "a folder of images and Parquet": (
        files_in({"x.parquet": b"", "x.png": PNG, "y.png": PNG}),
        "is ambiguous: it holds files, 2 for format='folder' and 1 for format='parquet': say which of these is meant",
    ),
    "a folder of CIFAR and IDX": (
        files_in({"test_batch.bin": RECORD, "t-images-idx3-ubyte": b""}),
        "is ambiguous: it holds files, 1 for format='cifar-binary' and 1 for format='idx': say which",
    ),
    "a link that leaves the folder": (
        linked("a\n.png", "../outside.png"),
        r"holds the link 'a\n.png', which leaves the",
    ),
    "a link to a folder outside": (linked("more", "/"), "holds the link 'more', which leaves the folder: copy what it"),
    "a link to a folder inside": (linked("more", "sub"), "holds the link 'more' to a folder: remove it"),
    "a link to nowhere": (linked("x.png", "gone.png"), "holds the link 'x.png', which leads nowhere: remove it"),
    "a link in a circle": (linked("x.png", "x.png"), "holds the link 'x.png', which leads nowhere: remove it"),
    "a pipe named .png": (fifo, "holds 'x.png', which is neither file nor folder: remove it"),
    "a socket named .png": (listening, "holds 'x.png', which is neither file nor folder: remove it"),
    "a device": (lambda _: Path(os.devnull), "is neither a file nor a folder: name one of these"),
    "a name that is not UTF-8": (
        files_in({"\udcff.png": PNG}),
        r"holds '\udcff.png', a name that is not UTF-8: rename",
    ),
    "one image": (written("x.png", PNG), "is one file of many: name the folder that holds it"),
    "one IDX file": (written("t-images-idx3-ubyte", IDX_IMAGES), "is one file of many: name the folder that holds it"),
    "an unknown suffix": (
        written("x.rar", b"Rar!"),
        "is named as nothing that is known, and begins as nothing that is known: say what it is",
    ),
    "an archive without its suffix": (
        written("download", b"PK\3\4"),
        "is named as nothing that is known, and begins as zip: say what it is with format=",
    ),
    "a suffix that does not fit": (
        written("x.zip", gzip.compress(b"")),
        "is named as zip, and begins as tar: say what",
    ),
    "text named .parquet": (written("x.parquet", b"a,b\n"), "is named as parquet, and begins as nothing that is known"),
    "a page of HTML named .npz": (written("x.npz", b"<html>"), "is named as npz, and begins as nothing that is known"),
}

ARCHIVES: dict[str, Case] = {
    "a zip cut short": (
        written("x.zip", b"PK\3\4" + bytes(99)),
        "is no whole zip archive (BadZipFile: File is not a zip",
    ),
    "a zip of no images": (zipped("a.txt", "b.md"), "holds no images (2 other files, such as 'a.txt'): name a place"),
    "a zip that climbs out": (
        zipped("a/../../x.png"),
        "holds 'a/../../x.png', a name that could lead out of it: write",
    ),
    "a zip that climbs out with what is no image": (
        zipped("x.png", "../.bashrc"),
        "holds '../.bashrc', a name that could",
    ),
    "a zip with an absolute name": (zipped("/etc/x.png"), "holds '/etc/x.png', a name that could lead out of it"),
    "a zip with backslashes": (zipped("..\\x.png"), r"holds '..\\x.png', a name that could lead out of it"),
    "a zip with a file without a name": (
        zipped("x", change=setting("filename", "")),
        "holds '', a name that could lead out of it: write it",
    ),
    "a zip with a link": (
        zipped("x.png", change=setting("external_attr", (stat.S_IFLNK | 0o777) << 16)),
        "holds 'x.png', which is no plain file: write it with plain files alone",
    ),
    "a zip with a device": (
        zipped("x.png", change=setting("external_attr", stat.S_IFCHR << 16)),
        "holds 'x.png', which is no plain file: write it with plain files alone",
    ),
    "an encrypted zip": (zipped("x.png", change=setting("flag_bits", 1)), "holds 'x.png' encrypted: write it again"),
    "a zip with a name twice": (
        zipped("a/x.png", "a//./x.png"),
        "holds 'a/x.png' twice: write it again with each name",
    ),
    "a zip with an image too long": (
        zipped("x.png", change=setting("file_size", 2**28 + 1)),
        "holds 'x.png' of 268,435,457 bytes, more than the 268,435,456 that are read: leave it out",
    ),
    "a tar of nothing": (written("x.tar", b""), "is named as tar, and begins as nothing that is known"),
    "a tar that climbs out": (tarred("x.png", "../y.png"), "holds '../y.png', a name that could lead out of it"),
    "a tar with an absolute name": (tarred("/x.png"), "holds '/x.png', a name that could lead out of it"),
    "a tar with backslashes": (tarred("a\\x.png"), r"holds 'a\\x.png', a name that could lead out of it"),
    "a tar with a symbolic link": (
        tarred("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "holds 'x.png', which is no",
    ),
    "a tar with a hard link": (
        tarred("y.png", "x.png", type=tarfile.LNKTYPE, linkname="y.png"),
        "holds 'x.png', which is no",
    ),
    "a tar with a device": (tarred("x.png", type=tarfile.BLKTYPE), "holds 'x.png', which is no plain file: write it"),
    "a tar with a pipe": (tarred("x.png", type=tarfile.FIFOTYPE), "holds 'x.png', which is no plain file: write it"),
    "a tar with holes in a file": (
        tarred("x.png", type=tarfile.GNUTYPE_SPARSE),
        "holds 'x.png', which is no plain file",
    ),
    "a tar with a name twice": (tarred("x.png", "y.png", "./x.png"), "holds 'x.png' twice: write it again with each"),
    "a tar with an image too long": (tarred("x.png", size=2**28 + 1), "holds 'x.png' of 268,435,457 bytes, more than"),
    "a tar with a name that is not UTF-8": (tarred("\udcff.png"), r"holds '\udcff.png', a name that is not UTF-8"),
    "a tar cut in a file": (
        written("x.tar", tar_bytes("x.png", "y.png")[:7000]),
        "is no whole tar archive (ReadError: ",
    ),
    "a tar cut between files": (
        written("x.tar", tar_bytes("x.png", "y.png")[: 512 + -(-len(PNG) // 512) * 512]),
        "is damaged or cut: after 'x.png' it neither goes on nor ends: fetch or write it again",
    ),
    "a tar with a damaged header": (
        written("x.tar", flipped(tar_bytes("x.png", "y.png"), 512 + -(-len(PNG) // 512) * 512)),
        "is damaged or cut: after 'x.png' it neither goes on nor ends: fetch or write it again",
    ),
    "two tars in one file": (
        written("x.tar", tar_bytes("x.png") + tar_bytes("y.png")),
        "is damaged or cut: after 'x.png'",
    ),
    "a tar.gz cut short": (
        written("x.tar.gz", gzip.compress(tar_bytes("x.png"))[:-9]),
        "is no whole tar archive (EOFError: Compressed file ended before the end-of-stream marker",
    ),
    "a gz of what is no tar": (written("x.tgz", gzip.compress(b"-" * 999)), "is no whole tar archive (ReadError: "),
}

ARRAYS: dict[str, Case] = {
    "an npz without arr_0": (
        npz(images=IMAGES_NPZ),
        "holds ['images'], not arr_0: save the images as its first, unnamed",
    ),
    "an npz of objects": (
        npz(np.array([None, {}], object)),
        "is no whole npz file (ValueError: Object arrays cannot be",
    ),
    "an npz of objects as labels": (
        npz(IMAGES_NPZ, np.array([None, 1], object)),
        "is no whole npz file (ValueError: Obj",
    ),
    "an npz of floats": (
        npz(IMAGES_NPZ.astype(np.float32)),
        "has arr_0 of float32 (2, 4, 4, 3), not uint8 (count, height",
    ),
    "an npz without channels": (
        npz(IMAGES_NPZ[..., 0]),
        "has arr_0 of uint8 (2, 4, 4), not uint8 (count, height, width,",
    ),
    "an npz of channels first": (npz(IMAGES_NPZ.transpose(0, 3, 1, 2)), "has arr_0 of uint8 (2, 3, 4, 4), not uint8"),
    "an npz of no images": (npz(IMAGES_NPZ[:0]), "holds no images: name a place that does"),
    "an npz with too few labels": (
        npz(IMAGES_NPZ, np.array([1])),
        "has arr_1 of int64 (1,), not one integer for each of 2 images: save one label for every image, or none",
    ),
    "an npz with labels of floats": (
        npz(IMAGES_NPZ, np.zeros(2)),
        "has arr_1 of float64 (2,), not one integer for each",
    ),
    "an npz cut short": (written("x.npz", b"PK\3\4" + bytes(99)), "is no whole npz file (BadZipFile: "),
    "CIFAR-10 of a wrong length": (
        written("test_batch.bin", RECORD + b"\0"),
        "is 3,074 bytes long, not a multiple of CIFAR-10's 3073: fetch or write it again",
    ),
    "CIFAR-100 of a wrong length": (
        written("train.bin", RECORD),
        "is 3,073 bytes long, not a multiple of CIFAR-100's 3074",
    ),
    "CIFAR of no bytes": (written("test.bin", b""), "is 0 bytes long, not a multiple of CIFAR-100's 3074"),
    "CIFAR-10 with a label out of range": (
        written("data_batch_3.bin", RECORD + b"\x0a" + bytes(3072)),
        "gives image 1 the label 10, which is none of 0..9: fetch or write it again",
    ),
    "CIFAR-100 with a label out of range": (
        written("train.bin", b"\0\x64" + bytes(3072)),
        "gives image 0 the label 100,",
    ),
    "CIFAR-100 with a coarse label out of range": (
        written("train.bin", b"\x14\0" + bytes(3072)),
        "gives image 0 the label 20, which is none of 0..19",
    ),
    "CIFAR-10 and CIFAR-100 together": (
        files_in({"test_batch.bin": RECORD, "test.bin": RECORD + b"\0"}),
        "mixes files of CIFAR-10 and of CIFAR-100: put each in a folder of its own",
    ),
    "IDX images without labels": (files_in({"t-images-idx3-ubyte": IDX_IMAGES}), "holds 't-images-idx3-"),
    "IDX labels without images": (
        files_in({"t-labels-idx1-ubyte": IDX_LABELS}),
        "holds 't-labels-idx1-ubyte' alone: add",
    ),
    "IDX twice, packed and not": (
        files_in({"t-images-idx3-ubyte": IDX_IMAGES, "t-images-idx3-ubyte.gz": gzip.compress(IDX_IMAGES)}),
        "twice, packed and unpacked: remove one of them",
    ),
    "IDX with a wrong magic number": (
        idx_pair(b"\0\0\x0d\3" + IDX_IMAGES[4:], IDX_LABELS),
        "is no whole IDX file (ValueError: not an IDX file of unsigned bytes: it begins with 00000d03, not 000008)",
    ),
    "IDX cut short": (
        idx_pair(IDX_IMAGES[:-1], IDX_LABELS),
        "is no whole IDX file (ValueError: IDX header says (2, 3, 3), but 17 bytes follow it: the file is cut)",
    ),
    "IDX of no bytes": (idx_pair(b"", IDX_LABELS), "is no whole IDX file (ValueError: not an IDX file"),
    "IDX whose counts differ": (
        idx_pair(IDX_IMAGES, idx(np.zeros(3, np.uint8))),
        "has 2 images but 3 labels in 't': fetch",
    ),
    "IDX labels where images belong": (idx_pair(IDX_LABELS, IDX_LABELS), "has 1 axes, not 3: fetch or write it again"),
    "IDX with a damaged gzip": (
        idx_pair(gzip.compress(IDX_IMAGES)[:-5], gzip.compress(IDX_LABELS), ".gz"),
        "is no whole IDX file (EOFError: Compressed file ended before",
    ),
    "IDX that is no gzip": (
        idx_pair(IDX_IMAGES, IDX_LABELS, ".gz"),
        "is no whole IDX file (BadGzipFile: Not a gzipped",
    ),
}

PICKLES: dict[str, Case] = {
    "a pickle that runs a command": (
        pickled(batch(data=Code(os.system, "touch ran"))),
        "is no whole pickle of CIFAR's (UnpicklingError: asks for 'posix'.'system', which is code and is not run)",
    ),
    "a pickle that evaluates": (pickled(batch(labels=Code(eval, "1"))), "asks for 'builtins'.'eval', which is code"),
    "a pickle that imports": (
        pickled(Code(__import__, "antigravity")),
        "asks for 'builtins'.'__import__', which is code",
    ),
    "a pickle that opens a file": (
        pickled(Code(open, "ran", "w")),
        "asks for 'io'.'open', which is code and is not run",
    ),
    "a pickle that reaches into numpy": (pickled(Code(np.load, "x")), "asks for 'numpy'.'load', which is code"),
    "a pickle of a class": (pickled(Path("x")), "asks for 'pathlib'.'PosixPath', which is code and is not run"),
    "a pickle of objects": (
        pickled(batch(data=np.array([None, None], object))),
        "is no whole pickle of CIFAR's (UnpicklingError: holds an array of 'O8', and only uint8 is read)",
    ),
    "a pickle of floats": (pickled(batch(data=np.zeros((2, 3072)))), "holds an array of 'f8', and only uint8 is read"),
    "a pickle of an array without a type": (
        pickled(batch(data=Code(*EMPTY_ARRAY, state=(1, (2, 3072), "u1", False, bytes(6144))))),
        "holds an array whose content is not plain bytes of uint8",
    ),
    "a pickle of an array of a list": (
        pickled(batch(data=Code(*EMPTY_ARRAY, state=(1, (2, 3072), np.dtype("u1"), False, [0] * 6144)))),
        "holds an array whose content is not plain bytes of uint8",
    ),
    "a pickle of an array larger than its bytes": (
        pickled(batch(data=Code(*EMPTY_ARRAY, state=(1, (2, 3072), np.dtype("u1"), False, b"")))),
        "is no whole pickle of CIFAR's (ValueError: cannot reshape array of size 0 into shape (2,3072))",
    ),
    "a pickle that changes what it is read with": (
        written("data_batch_1", FUNCTION_CHANGED),
        "is no whole pickle of CIFAR's (TypeError: ",
    ),
    "a pickle of a list": (pickled([1, 2]), "is no whole pickle of CIFAR's (AttributeError: 'list' object"),
    "a pickle without labels": (
        pickled({b"data": np.zeros((2, 3072), np.uint8)}),
        "is no whole pickle of CIFAR's (KeyErr",
    ),
    "a pickle with too few labels": (
        pickled(batch(labels=[0])),
        "has data of shape (2, 3072) for 1 labels, not (1, 3072): fetch or write it again",
    ),
    "a pickle of images of another size": (
        pickled(batch(data=np.zeros((2, 784), np.uint8))),
        "has data of shape (2, 784) for 2 labels, not (2, 3072)",
    ),
    "a pickle with a label out of range": (
        pickled(batch(labels=[0, -1])),
        "gives image 1 the label -1, which is none of",
    ),
    "a pickle with a label that is no number": (
        pickled(batch(labels=[b"cat", 1])),
        "gives image 0 the label b'cat', which",
    ),
    "a pickle cut short": (
        written("data_batch_1", pickle.dumps(batch(), 4)[:900]),
        "is no whole pickle of CIFAR's (UnpicklingError: pickle data was truncated)",
    ),
}

TABLES: dict[str, Case] = {
    "Parquet without images": (
        parquet(img=[PNG], label=[0]),
        "has no column 'image' of struct<bytes: binary, path: string> or of binary, but 'img: binary, label: int64'",
    ),
    "Parquet of text": (parquet(image=["x.png"]), "has no column 'image' of struct<bytes: binary, path: string> or of"),
    "Parquet of paths alone": (
        parquet(image=pa.array([{"path": "x.png"}])),
        "but 'image: struct<path: string>': rename",
    ),
    "Parquet with names as labels": (
        parquet(image=[PNG], label=["cat"]),
        "has a column 'label' of 'string', not of integers: convert it, or set labels='none'",
    ),
    "Parquet with a label missing": (parquet(image=[PNG] * 2, label=[1, None]), "has 1 rows whose label is null: fill"),
    "Parquet of no rows": (parquet(image=pa.array([], pa.binary())), "holds no images: name a place that does"),
    "Parquet cut short": (written("x.parquet", parquet_bytes()[:-9]), "is no whole Parquet file (ArrowInvalid: "),
    "Parquet with damaged pages": (
        written("x.parquet", parquet_bytes()[:4] + b"\xff" * 64 + parquet_bytes()[68:]),
        "is no whole Parquet file (",
    ),
}

SOURCES = PLACES | ARCHIVES | ARRAYS | PICKLES | TABLES


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def read_all(path: Path, **choices: Any) -> None:
    with open_source(path, **choices) as source:
        for entry in source.entries():
            entry.read()


@pytest.mark.parametrize("title", SOURCES)
def test_a_malformed_source_is_refused_with_its_path_what_is_wrong_and_the_fix(tmp_path: Path, title: str) -> None:
    write, message = SOURCES[title]
    (tmp_path / "case").mkdir()
    path = write(tmp_path / "case")
    with pytest.raises(SourceRefused) as refused:
        read_all(path)
    told = str(refused.value)
    assert re.match(rf"'{re.escape(str(path))}(/[^']*)?' ", told)
    assert message in told
    assert told.endswith(f": {refused.value.fix}")
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


# ---- One image of a source that is sound otherwise.

MEMBERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a zip with a damaged member": (
        zipped("x.png", change=setting("CRC", 7)),
        "'x.png': cannot be unpacked: BadZipFile: Bad CRC-32 for file 'x.png'",
    ),
    "a zip bomb": (
        zipped("x.png", change=setting("file_size", 100)),
        "'x.png': unpacks to more bytes than the 100 its archive declares",
    ),
    "a zip with less than it declares": (
        zipped("x.png", change=setting("file_size", 2**20)),
        "'x.png': unpacks to fewer bytes than the 1,048,576 its archive declares",
    ),
    "a zip packed in a way that is not known": (
        zipped("x.png", change=setting("compress_type", 97)),
        "'x.png': cannot be unpacked: NotImplementedError: That compression method is not supported",
    ),
    "Parquet with null bytes": (
        parquet(image=pa.array([{"bytes": PNG, "path": "a"}, {"bytes": None, "path": "b.png"}], HF)),
        "'x.parquet/000000001': has no bytes (null): the images are to be inside the Parquet file",
    ),
    "Parquet with a null image": (parquet(image=pa.array([None], HF)), "'x.parquet/000000000': has no bytes (null)"),
    "Parquet with a null image of bytes": (
        parquet(image=pa.array([None], pa.binary())),
        "'x.parquet/000000000': has no",
    ),
}


@pytest.mark.parametrize("title", MEMBERS)
def test_one_malformed_image_is_refused_by_its_name_when_it_is_read(tmp_path: Path, title: str) -> None:
    write, message = MEMBERS[title]
    with pytest.raises(ImageRefused) as refused:
        read_all(write(tmp_path))
    assert str(refused.value).startswith(message)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a\nok: b.png", "\x1b[2J.png"])
def test_a_name_inside_a_source_cannot_forge_a_line_either(tmp_path: Path, name: str) -> None:
    for path in (
        files_in({f"images/{name}": b""})(tmp_path) / "images",
        zipped(name)(tmp_path),
        tarred(name)(tmp_path),
    ):
        with open_source(path) as source, pytest.raises(ImageRefused) as refused:
            decode(b"", name=source.entries()[0].name, channels=3)
        assert str(refused.value) == f"{name!r}: the file is empty (zero bytes)"
        with pytest.raises(SourceRefused) as of_all:
            open_source(path, labels="prefix")
        assert f"holds {name!r}, whose name has nothing before a '_'" in str(of_all.value)


@pytest.mark.parametrize(
    ("choice", "write", "message"),
    [
        ("folder", written("x.zip", b""), "is a file, and format='folder' needs a folder: name the folder it is in"),
        (
            "idx",
            written("t-images-idx3-ubyte", b""),
            "is a file, and idx is a pair of them: name the folder they are in",
        ),
        ("zip", files_in({"x.png": PNG}), "is a folder, and this format= needs a file: name the file"),
        ("tar", files_in({"x.png": PNG}), "is a folder, and this format= needs a file: name the file"),
        ("npz", files_in({"x.png": PNG}), "is a folder, and this format= needs a file: name the file"),
        ("zip", tarred("x.png"), "is no whole zip archive (BadZipFile: File is not a zip file)"),
        ("tar", zipped("x.png"), "is no whole tar archive (ReadError: "),
        ("tar", written("x", b""), "is no whole tar archive (ReadError: empty file)"),
        ("npz", written("x", pickle.dumps([1])), "is no npz file (these are zip archives)"),
        ("parquet", zipped("x.png"), "is no whole Parquet file (ArrowInvalid: "),
        (
            "parquet",
            files_in({"x.png": PNG}),
            "holds no images (1 other files, such as 'x.png'): name a place that does",
        ),
        ("cifar-binary", written("mine.bin", RECORD), "holds no images (1 other files, such as 'mine.bin')"),
        ("cifar-pickle", written("test_batch", b"text"), "holds no images (1 other files, such as 'test_batch')"),
    ],
)
def test_a_format_that_is_named_is_not_taken_for_another(tmp_path: Path, choice: Any, write: Any, message: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        read_all(write(tmp_path), format=choice)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", ["cat.png", "_1.png"])
def test_a_name_without_a_prefix_is_refused_where_prefixes_are_the_labels(tmp_path: Path, name: str) -> None:
    files_in({"a/cat_1.png": PNG, f"a/{name}": PNG})(tmp_path)
    with pytest.raises(
        SourceRefused, match=rf"holds 'a/{name}', whose name has nothing before a '_': choose other labels="
    ):
        open_source(tmp_path, labels="prefix")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_and_a_file_that_may_not_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        SourceRefused, match=r"secret' cannot be listed \(Permission denied\): make it readable for you"
    ):
        open_source(unlistable(tmp_path))
    (tmp_path / "secret").rmdir()
    (tmp_path / "x.png").touch(mode=0)
    with (
        open_source(tmp_path) as source,
        pytest.raises(ImageRefused, match=r"'x\.png': cannot be read \(Permission den"),
    ):
        source.entries()[0].read()


@pytest.mark.parametrize("name", ["x.tar.gz", "t-images-idx3-ubyte.gz"])
def test_a_gzip_bomb_is_stopped_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("pipelines.sources.base.UNPACKED_FREE_BYTES", 2**20)
    (tmp_path / name).write_bytes(gzip.compress(bytes(2**23)))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(IDX_LABELS)
    with pytest.raises(
        SourceRefused, match=r"unpacks to more than 1,048,576 bytes, as no images would: if it is sound"
    ):
        open_source(tmp_path / name if name.startswith("x") else tmp_path)


def test_an_npz_bomb_and_a_parquet_bomb_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.base.UNPACKED_FREE_BYTES", 2**16)
    np.savez_compressed(tmp_path / "x.npz", np.zeros((300, 64, 64, 3), np.uint8))
    pq.write_table(pa.table({"image": [bytes(2**20)] * 9}), tmp_path / "x.parquet", compression="zstd")
    for name in ("x.npz", "x.parquet"):
        with pytest.raises(SourceRefused, match=r"unpacks to more than [0-9,]+ bytes, as no images would"):
            open_source(tmp_path / name)


def test_an_image_in_parquet_too_long_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.parquet.MAX_IMAGE_BYTES", 999)
    pq.write_table(pa.table({"image": [bytes(1000)]}), tmp_path / "x.parquet")
    with pytest.raises(ImageRefused, match=r"is 1,000 bytes long: at most 999 are read"):
        read_all(tmp_path / "x.parquet")


def test_an_image_file_too_long_to_be_one_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as stream:
        stream.truncate(2**28 + 1)  # a hole: it takes no room
    with pytest.raises(ImageRefused, match=r"'x\.png': is 268,435,457 bytes long: at most 268,435,456 are read"):
        read_all(tmp_path)


SOUND: dict[str, Callable[[Path], Path]] = {
    "zip": zipped("a.png", "b.png"),
    "tar": tarred("a.png", "b.png"),
    "tar.gz": written("x.tar.gz", gzip.compress(tar_bytes("a.png"))),
    "npz": npz(IMAGES_NPZ, np.arange(2)),
    "pickle": pickled(batch()),
    "parquet": written("x.parquet", parquet_bytes()),
}


@pytest.mark.parametrize("kind", SOUND)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else_comes_out(
    tmp_path_factory: Any, kind: str, data: Any
) -> None:
    path = SOUND[kind](tmp_path_factory.mktemp("damaged"))
    content = bytearray(path.read_bytes())
    near_an_end = st.integers(-200, 199)  # where headers and tables of contents are
    for position in data.draw(st.lists(near_an_end | st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    with suppress(SourceRefused, ImageRefused):
        read_all(path)


@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF"]), data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_image_is_decoded_or_refused_and_nothing_else_comes_out(kind: str, data: Any) -> None:
    content = bytearray(encoded(RGB, kind))
    for position in data.draw(st.lists(st.integers(0, 99) | st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    with suppress(ImageRefused):
        assert decode(bytes(content), name="x", channels=3).mode == "RGB"
