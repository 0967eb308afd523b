"""What do two files of images score? The published evaluator's five numbers, from files in its layout.

python pipelines/evaluate.py reference.npz samples.npz
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from diffusion.metrics.features import Extractor, Features, check_images
from diffusion.metrics.frechet import Gaussian
from diffusion.metrics.intervals import Estimate
from orchestrator.config import override, parse_settings
from orchestrator.display import duration
from orchestrator.errors import DamagedArtifact
from orchestrator.files import write_whole
from pipelines.cli import Overrides, choose
from pipelines.evaluate import MetricsConfig, Reference, frechet_name, measure, own_protocol
from pipelines.features import EfficientNetConfig, FeaturesConfig, InceptionConfig, extractor
from pipelines.weights import read_weights

BLOCK = 256
SAY_SECONDS = 10.0
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
    theirs, ours = ImagesFile.read(reference), ImagesFile.read(samples)
    _check(config, theirs, ours)
    features = config.features
    weights = read_weights(features.weights()) if isinstance(features, InceptionConfig) else None
    sees = extractor(features, weights, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    compared = theirs.reference(sees)
    drawn = _seen(sees, ours)
    found = measure(config.metrics, drawn, compared, name=frechet_name(features))
    for name in (name for name in NAMES if name in found):
        print(_line(name, found[name], samples=len(drawn.pool), dimensions=drawn.pool.shape[1]))
    if output is not None:
        write_whole(output, json.dumps(_record(config, sees, theirs, ours, found), indent=1))
    return 0


@dataclass(frozen=True)
class ImagesFile:
    """What an npz of the published layout holds."""

    path: Path
    sha256: str
    images: NDArray[np.uint8] | None
    moments: Mapping[str, NDArray[np.float64]]
    """mu, sigma, mu_s, sigma_s: those that are there."""

    @classmethod
    def read(cls, path: Path) -> ImagesFile:
        """Raises DamagedArtifact for a file that is none, or holds something else."""
        try:
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
                names = ("mu", "sigma", "mu_s", "sigma_s")
                moments = {name: arrays[name].astype(np.float64) for name in names if name in arrays.files}
                images = arrays["arr_0"] if "arr_0" in arrays.files else None
                found = ", ".join(arrays.files)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise DamagedArtifact(path, f"no npz file that can be read ({error})") from error
        if images is None and not {"mu", "sigma"} <= moments.keys():
            raise DamagedArtifact(path, f"holds {found or 'nothing'}; needs arr_0 (uint8, NHWC), or mu and sigma")
        if images is not None:
            try:
                check_images(images)
            except ValueError as error:
                raise DamagedArtifact(path, f"arr_0: {error}") from error
        with path.open("rb") as stream:
            return cls(path, hashlib.file_digest(stream, "sha256").hexdigest(), images, moments)

    def reference(self, sees: Extractor) -> Reference:
        """To compare with: by the file's own moments where it has them, else by its images'."""
        features = None if self.images is None else _seen(sees, self)
        own = None if features is None else Reference.of(features)
        pool, spatial = self._gaussian("mu", "sigma", sees), self._gaussian("mu_s", "sigma_s", sees)
        if own is None:
            assert pool is not None  # read() has seen to it
            return Reference(pool, spatial, None)
        return Reference(pool or own.pool, spatial or own.spatial, own.features)

    def _gaussian(self, mean: str, cov: str, sees: Extractor) -> Gaussian | None:
        if mean not in self.moments or cov not in self.moments:
            return None
        found, dimension = self.moments[mean], sees.protocol["dimension"]
        if found.ndim != 1 or self.moments[cov].shape != (len(found), len(found)):
            shapes = f"{found.shape} and {self.moments[cov].shape}"
            raise DamagedArtifact(self.path, f"{mean} and {cov} of shapes {shapes}: needs (d,) and (d, d)")
        if mean == "mu" and len(found) != dimension:
            raise ValueError(f"{self.path}: its moments are of {len(found)} features, and the network has {dimension}")
        return Gaussian.of_moments(found, self.moments[cov])


def _check(config: FilesConfig, theirs: ImagesFile, ours: ImagesFile) -> None:
    """Raises ValueError or DamagedArtifact before the network sees anything."""
    if ours.images is None:
        raise DamagedArtifact(ours.path, "holds no images: samples are compared image by image, by arr_0")
    fewest = max(config.metrics.fewest_images, config.metrics.kid_subset_size)
    for file in (theirs, ours):
        if file.images is not None and len(file.images) < fewest:
            raise ValueError(
                f"{file.path} has {len(file.images)} images, and the metrics with their intervals take {fewest}: lower "
                f"metrics.kid_subset_size={config.metrics.kid_subset_size}, down to {config.metrics.fewest_images}"
            )


def _seen(sees: Extractor, file: ImagesFile) -> Features:
    """Features of a file's images, with progress on stderr."""
    assert file.images is not None
    began = told = time.monotonic()
    parts, total = [], len(file.images)
    for first in range(0, total, BLOCK):
        parts.append(sees(file.images[first : first + BLOCK]))
        now, done = time.monotonic(), min(first + BLOCK, total)
        if now - told >= SAY_SECONDS:
            told, speed = now, done / (now - began)
            left = duration((total - done) / speed)
            print(f"{file.path.name}: {done} of {total} images, {speed:.1f} img/s, ETA {left}", file=sys.stderr)
    return Features.together(parts)


def _line(name: str, estimate: Estimate, *, samples: int, dimensions: int) -> str:
    line = f"{NAMES[name]}: {estimate.value:.6g} ({estimate.low:.6g} to {estimate.high:.6g})"
    if name in ("fid", "fd") and samples <= dimensions:
        line += f"; strongly biased upwards: {samples} samples in {dimensions} dimensions"
    return line


def _record(
    config: FilesConfig, sees: Extractor, theirs: ImagesFile, ours: ImagesFile, found: Mapping[str, Estimate]
) -> dict[str, Any]:
    files = {
        role: f"{file.path.name}, SHA-256 {file.sha256}"
        for role, file in {"reference": theirs, "samples": ours}.items()
    }
    return {
        name: {**estimate._asdict(), "protocol": {**sees.protocol, **own_protocol(config.metrics, name), **files}}
        for name, estimate in found.items()
    }
