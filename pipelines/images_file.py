"""What is in an npz of the published evaluator's layout? Images, which are read in blocks, moments, or both."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.features import check_images
from orchestrator.display import duration
from orchestrator.errors import DamagedArtifact
from orchestrator.protocols import MEASURED_WITH
from pipelines.blocks import UNREADABLE
from pipelines.moments import PAIRS, PROTOCOL

BLOCK = 256
SAY_SECONDS = 10.0


@dataclass(frozen=True)
class ImagesFile:
    """What an npz of the published layout holds. Its images are read block by block."""

    path: Path
    sha256: str
    count: int
    """Images in arr_0; 0 where there is none."""
    moments: Mapping[str, NDArray[np.float64]]
    """mu, sigma, mu_s, sigma_s: those that are there."""
    protocol: Mapping[str, Any] | None = None
    """What the moments are of, and by what libraries; None where nobody says."""

    @classmethod
    def open(cls, path: Path) -> ImagesFile:
        """Raises DamagedArtifact for a file that is none, or holds something else."""
        with _told(path), zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            moments = {name: arrays[name].astype(np.float64) for pair in PAIRS for name in pair if name in arrays.files}
            protocol = _protocol(arrays[PROTOCOL]) if PROTOCOL in arrays.files else None
            found = ", ".join(arrays.files)
        shape = _shape_of_images(path)
        if shape is None and not {"mu", "sigma"} <= moments.keys():
            raise DamagedArtifact(path, f"holds {found or 'nothing'}; needs arr_0 (uint8, NHWC), or mu and sigma")
        for pair in PAIRS:
            _check_moments(path, moments, *pair)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path, sha256, 0 if shape is None else shape[0], moments, protocol)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """The images (n, h, w, c), BLOCK at a time. Raises DamagedArtifact where the file is not whole."""
        with _told(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
            shape, _ = _header(stream)
            size = int(np.prod(shape[1:]))
            for first in range(0, shape[0], BLOCK):
                count = min(BLOCK, shape[0] - first)
                content = stream.read(count * size)
                if len(content) < count * size:
                    raise DamagedArtifact(self.path, f"arr_0 ends after {first} of {shape[0]} images")
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:]).copy()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, *UNREADABLE) as error:
        raise DamagedArtifact(path, f"no npz file that can be read ({error})") from error


def _protocol(stored: NDArray[Any]) -> Mapping[str, Any]:
    """Raises ValueError for what Moments.save() has not written."""
    said = json.loads(str(stored))
    if not isinstance(said, dict) or not {"network", "images", "count", MEASURED_WITH} <= said.keys():
        raise ValueError(f"{PROTOCOL} {stored} does not say of what: make the file again with reference.py")
    return said


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in C order; the stream is then at its values. Raises ValueError for another."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy format {version}")
    shape, is_fortran, dtype = read[version](stream)
    if is_fortran and len(shape) > 1:
        raise ValueError("in Fortran's order: save numpy.ascontiguousarray of it")
    return shape, dtype


def _shape_of_images(path: Path) -> tuple[int, ...] | None:
    """Of arr_0, from its header alone; None where there is none."""
    with _told(path), zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            return None
        with archive.open("arr_0.npy") as stream:
            shape, dtype = _header(stream)
    try:
        check_images(np.broadcast_to(np.zeros((), dtype), shape))
    except ValueError as error:
        raise DamagedArtifact(path, f"arr_0: {error}") from error
    return shape


def _check_moments(path: Path, moments: Mapping[str, NDArray[np.float64]], mean: str, cov: str) -> None:
    if mean not in moments and cov not in moments:
        return
    if mean not in moments or cov not in moments:
        raise DamagedArtifact(path, f"holds one of {mean} and {cov}, and needs both")
    m, s = moments[mean], moments[cov]
    if m.ndim != 1 or s.shape != (len(m), len(m)):
        raise DamagedArtifact(path, f"{mean} and {cov} of shapes {m.shape} and {s.shape}: needs (d,) and (d, d)")
    if not (np.isfinite(m).all() and np.isfinite(s).all() and np.allclose(s, s.T, rtol=1e-5, atol=1e-8)):
        raise DamagedArtifact(path, f"{mean} and {cov} are not finite, or {cov} is not symmetric: no moments")


def progressing(blocks: Iterable[NDArray[np.uint8]], *, name: str, count: int) -> Iterator[NDArray[np.uint8]]:
    """The blocks of so many images; on stderr, how far their user is."""
    began = told = time.monotonic()
    done = 0
    for block in blocks:
        yield block
        done, now = done + len(block), time.monotonic()
        if now - told >= SAY_SECONDS:
            told, speed = now, done / (now - began)
            left = duration((count - done) / speed)
            print(f"{name}: {done} of {count} images, {speed:.1f} img/s, ETA {left}", file=sys.stderr)
