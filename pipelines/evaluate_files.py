"""What do two files of images score? The published evaluator's five numbers, from files in its layout.

python pipelines/evaluate.py reference.npz samples.npz
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from diffusion.metrics.features import Extractor, Features, check_images
from diffusion.metrics.frechet import Gaussian
from diffusion.metrics.intervals import Estimate
from diffusion.precision import allow_tf32
from orchestrator.config import override, parse_settings
from orchestrator.display import duration
from orchestrator.errors import DamagedArtifact
from orchestrator.files import write_whole
from pipelines.blocks import UNREADABLE
from pipelines.cli import Overrides, choose
from pipelines.evaluate import (
    MetricsConfig,
    Reference,
    bias_of_frechet,
    frechet_name,
    gaussian_of,
    measure,
    own_protocol,
)
from pipelines.features import EfficientNetConfig, FeaturesConfig, InceptionConfig, extractor
from pipelines.weights import read_weights

BLOCK = 256
SAY_SECONDS = 10.0
PAIRS = (("mu", "sigma"), ("mu_s", "sigma_s"))
"""Moments of pooled and of spatial features."""
NETWORKS: dict[str, FeaturesConfig] = {"inception": InceptionConfig(), "efficientnet-lite0": EfficientNetConfig()}
NAMES = {
    "is": "Inception Score", "fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall",
    "fid_infinity": "FID-infinity", "sfid_infinity": "sFID-infinity", "kid": "KID", "fd": "Frechet distance",
    "fd_infinity": "Frechet distance, infinitely many samples",
}  # fmt: skip
"""In the order in which they are printed: the published evaluator's first, by its names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesConfig:
    """How two files are compared: as ADM's evaluator does it, float16's distances included."""

    features: FeaturesConfig
    metrics: MetricsConfig = field(default_factory=lambda: MetricsConfig(distances="published"))


def compare_files(
    reference: Annotated[Path, tyro.conf.Positional],
    samples: Annotated[Path, tyro.conf.Positional],
    /,
    network: str = "inception",
    set: Overrides = (),
    device: str | None = None,
    output: Path | None = None,
) -> int:
    """Compare samples with reference images, both in npz files of the published evaluator's layout.

    Args:
        reference: An npz with arr_0 (uint8, NHWC), or mu, sigma, mu_s and sigma_s of all images, or both.
        samples: An npz with arr_0.
        network: What sees the images: inception, whose weights PAPERTABLE_WEIGHTS names, or efficientnet-lite0, a
            distance over which is no FID.
        set: Settings changed, such as features.mode=clean, metrics.neighbours=5, metrics.distances=exact.
        device: cuda, cuda:1 or cpu; by default a GPU where there is one.
        output: A JSON file for all numbers, with their intervals and how they were measured.
    """
    base = FilesConfig(features=choose("network", network, dict(NETWORKS)))
    config = override(base, parse_settings(base, set))
    theirs, ours = ImagesFile.open(reference), ImagesFile.open(samples)
    check_files(config, theirs, ours)
    return compare(config, theirs, ours, device=device, output=output, drawn={})


def compare(
    config: FilesConfig, theirs: ImagesFile, ours: ImagesFile, *,
    device: str | None, output: Path | None, drawn: Mapping[str, str | int],
) -> int:  # fmt: skip
    """Print the numbers, and by choice write them with their protocols; drawn: how the samples were, where known."""
    features = config.features
    weights = read_weights(features.weights()) if isinstance(features, InceptionConfig) else None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    allow_tf32(False)
    sees = extractor(features, weights, device=device)
    compared = theirs.reference(sees)
    seen = _seen(sees, ours)
    found = measure(config.metrics, seen, compared, name=frechet_name(features))
    for name in (name for name in NAMES if name in found):
        print(_line(name, found[name], _notes(name, seen, theirs)))
    if output is not None:
        record = {
            name: {
                **estimate._asdict(),
                "notes": _notes(name, seen, theirs),
                "protocol": {
                    **sees.protocol,
                    "device": device,
                    **own_protocol(config.metrics, name),
                    **drawn,
                    **_of(name, theirs, ours),
                },
            }
            for name, estimate in found.items()
        }
        write_whole(output, json.dumps(record, indent=1))
    return 0


@dataclass(frozen=True)
class ImagesFile:
    """What an npz of the published layout holds. Its images are read block by block."""

    path: Path
    sha256: str
    count: int
    """Images in arr_0; 0 where there is none."""
    moments: Mapping[str, NDArray[np.float64]]
    """mu, sigma, mu_s, sigma_s: those that are there."""

    @classmethod
    def open(cls, path: Path) -> ImagesFile:
        """Raises DamagedArtifact for a file that is none, or holds something else."""
        with _told(path), zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            moments = {name: arrays[name].astype(np.float64) for pair in PAIRS for name in pair if name in arrays.files}
            found = ", ".join(arrays.files)
        shape = _shape_of_images(path)
        if shape is None and not {"mu", "sigma"} <= moments.keys():
            raise DamagedArtifact(path, f"holds {found or 'nothing'}; needs arr_0 (uint8, NHWC), or mu and sigma")
        for pair in PAIRS:
            _check_moments(path, moments, *pair)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(path, sha256, 0 if shape is None else shape[0], moments)

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

    def reference(self, sees: Extractor) -> Reference:
        """To compare with: by the file's own moments where it has them, else by its images'."""
        own = {pair: self._gaussian(*pair, sees) for pair in PAIRS}
        features = _seen(sees, self) if self.count else None
        pool, spatial = own[PAIRS[0]], own[PAIRS[1]]
        if features is None:
            assert pool is not None  # open() has seen to it
            return Reference(pool, spatial, None)
        if spatial is None and features.spatial is not None:
            spatial = gaussian_of(features.spatial)
        return Reference(pool or gaussian_of(features.pool), spatial, features.pool)

    def _gaussian(self, mean: str, cov: str, sees: Extractor) -> Gaussian | None:
        if mean not in self.moments:
            return None
        found, dimension = len(self.moments[mean]), sees.protocol["dimension"]
        if mean == "mu" and found != dimension:
            raise ValueError(f"{self.path}: its moments are of {found} features, and the network has {dimension}")
        return Gaussian.of_moments(self.moments[mean], self.moments[cov])


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, *UNREADABLE) as error:
        raise DamagedArtifact(path, f"no npz file that can be read ({error})") from error


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


def check_files(config: FilesConfig, theirs: ImagesFile, ours: ImagesFile | None) -> None:
    """Raises ValueError or DamagedArtifact before the network sees anything; ours: None where they are yet to come."""
    if ours is not None and not ours.count:
        raise DamagedArtifact(ours.path, "holds no images: samples are compared image by image, by arr_0")
    if ours is not None and ours.moments:
        raise ValueError(
            f"{ours.path} holds {', '.join(ours.moments)} beside its images: samples are compared by their images, all "
            f"of which the intervals need; leave the moments out"
        )
    fewest = max(config.metrics.fewest_images, config.metrics.kid_subset_size)
    for file in (theirs,) if ours is None else (theirs, ours):
        if 0 < file.count < fewest:
            raise ValueError(
                f"{file.path} has {file.count} images, and the metrics with their intervals take {fewest}: lower "
                f"metrics.kid_subset_size={config.metrics.kid_subset_size}, down to {config.metrics.fewest_images}"
            )


def _seen(sees: Extractor, file: ImagesFile) -> Features:
    """Features of a file's images, with progress on stderr."""
    began = told = time.monotonic()
    parts: list[Features] = []
    done = 0
    for block in file.blocks():
        parts.append(sees(block))
        done, now = done + len(block), time.monotonic()
        if now - told >= SAY_SECONDS:
            told, speed = now, done / (now - began)
            left = duration((file.count - done) / speed)
            print(f"{file.path.name}: {done} of {file.count} images, {speed:.1f} img/s, ETA {left}", file=sys.stderr)
    return Features.together(parts)


def _line(name: str, estimate: Estimate, notes: list[str]) -> str:
    line = f"{NAMES[name]}: {estimate.value:.6g} ({estimate.low:.6g} to {estimate.high:.6g})"
    return "; ".join([line, *notes])


def _notes(name: str, drawn: Features, theirs: ImagesFile) -> list[str]:
    """What must stand beside a Frechet distance over few images."""
    kind = name.removesuffix("_infinity")
    if kind not in ("fid", "sfid", "fd"):
        return []
    features = drawn.spatial if kind == "sfid" else drawn.pool
    assert features is not None
    by_moments = PAIRS[kind == "sfid"][0] in theirs.moments
    notes = bias_of_frechet(len(features), None if by_moments else theirs.count, features.shape[1])
    return notes if kind != name or (notes and "singular" in notes[0]) else []


def _of(name: str, theirs: ImagesFile, ours: ImagesFile) -> dict[str, str]:
    """Of which files a number is, and whether of the reference's images or its moments."""
    pair = {"fid": PAIRS[0], "fd": PAIRS[0], "sfid": PAIRS[1]}.get(name.removesuffix("_infinity"))
    by = f"{pair[0]} and {pair[1]}" if pair is not None and pair[0] in theirs.moments else f"{theirs.count} images"
    return {
        "reference": f"{by} of {theirs.path.name}, SHA-256 {theirs.sha256}",
        "samples": f"{ours.count} images of {ours.path.name}, SHA-256 {ours.sha256}",
    }
