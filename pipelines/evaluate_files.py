"""What do two files of images score? The published evaluator's five numbers, from files in its layout.

python pipelines/evaluate.py reference.npz samples.npz
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from diffusion.metrics.features import Extractor, Features
from diffusion.metrics.frechet import Gaussian
from diffusion.metrics.intervals import Estimate
from diffusion.precision import allow_tf32
from orchestrator.config import override, parse_settings
from orchestrator.errors import DamagedArtifact
from orchestrator.files import write_whole
from orchestrator.protocols import MEASURED_WITH, protocol_fingerprint
from pipelines.cli import Overrides, choose
from pipelines.evaluate import (
    MetricsConfig,
    Reference,
    bias_of_frechet,
    frechet_name,
    gaussian_of,
    libraries_of_metrics,
    measure,
    own_protocol,
)
from pipelines.features import (
    EfficientNetConfig,
    InceptionConfig,
    PublishedConfig,
    extractor,
    libraries_of,
    protocol_of,
)
from pipelines.images_file import ImagesFile, progressing
from pipelines.moments import PAIRS
from pipelines.weights import read_weights

NETWORKS: dict[str, PublishedConfig] = {"inception": InceptionConfig(), "efficientnet-lite0": EfficientNetConfig()}
NAMES = {
    "is": "Inception Score", "fid": "FID", "sfid": "sFID", "precision": "Precision", "recall": "Recall",
    "fid_infinity": "FID-infinity", "sfid_infinity": "sFID-infinity", "kid": "KID", "fd": "Frechet distance",
    "fd_infinity": "Frechet distance, infinitely many samples",
}  # fmt: skip
"""In the order in which they are printed: the published evaluator's first, by its names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesConfig:
    """How two files are compared: as ADM's evaluator does it, float16's distances included."""

    features: PublishedConfig
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
    device: str | None, output: Path | None, drawn: Mapping[str, Any],
) -> int:  # fmt: skip
    """Print the numbers, and by choice write them with their protocols; drawn: how the samples were, where known."""
    files = {"reference": theirs, "samples": ours}
    features = config.features
    sees, device = loaded(features, device)
    compared = _reference(theirs, sees)
    seen = _seen(sees, ours)
    found = measure(config.metrics, seen, compared, name=frechet_name(features))
    for name in (name for name in NAMES if name in found):
        print(_line(name, found[name], _notes(name, seen, theirs)))
    if output is not None:
        record = {}
        for name, estimate in found.items():
            protocol = {
                **sees.protocol,
                **own_protocol(config.metrics, name),
                **drawn,
                **_of(name, theirs, ours, device, features),
            }
            record[name] = {
                **estimate._asdict(),
                "notes": _notes(name, seen, theirs),
                "protocol": protocol,
                "fingerprint": protocol_fingerprint(protocol),
                "files": {role: f"{file.path.name}, SHA-256 {file.sha256}" for role, file in files.items()},
            }
        write_whole(output, json.dumps(record, indent=1))
    return 0


def loaded(features: PublishedConfig, device: str | None) -> tuple[Extractor, str]:
    """The network, ready, and the device it is on: by default a GPU where there is one."""
    weights = read_weights(features.weights()) if isinstance(features, InceptionConfig) else None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    allow_tf32(False)
    return extractor(features, weights, device=device), device


def check_files(config: FilesConfig, theirs: ImagesFile, ours: ImagesFile | None) -> None:
    """Raises ValueError or DamagedArtifact before the network sees anything; ours: None where they are yet to come."""
    if ours is not None and not ours.count:
        raise DamagedArtifact(ours.path, "holds no images: samples are compared image by image, by arr_0")
    if ours is not None and ours.moments:
        raise ValueError(
            f"{ours.path} holds {', '.join(ours.moments)} beside its images: samples are compared by their images, all "
            f"of which the intervals need; leave the moments out"
        )
    network = protocol_of(config.features)
    if theirs.protocol is not None and theirs.protocol["network"] != network:
        raise ValueError(
            f"{theirs.path}: its moments are of features by {theirs.protocol['network']}, and samples would be seen by "
            f"{network}: choose the same with --network and --set features.KEY=VALUE"
        )
    fewest = max(config.metrics.fewest_images, config.metrics.kid_subset_size)
    for file in (theirs,) if ours is None else (theirs, ours):
        if 0 < file.count < fewest:
            raise ValueError(
                f"{file.path} has {file.count} images, and the metrics with their intervals take {fewest}: lower "
                f"metrics.kid_subset_size={config.metrics.kid_subset_size}, down to {config.metrics.fewest_images}"
            )


def _reference(file: ImagesFile, sees: Extractor) -> Reference:
    """To compare with: by the file's own moments where it has them, else by its images'."""
    pool, spatial = (_gaussian(file, *pair, sees) for pair in PAIRS)
    features = _seen(sees, file) if file.count else None
    if features is None:
        assert pool is not None  # open() has seen to it
        return Reference(pool, spatial, None)
    if spatial is None and features.spatial is not None:
        spatial = gaussian_of(features.spatial)
    return Reference(pool or gaussian_of(features.pool), spatial, features.pool)


def _gaussian(file: ImagesFile, mean: str, cov: str, sees: Extractor) -> Gaussian | None:
    if mean not in file.moments:
        return None
    found, dimension = len(file.moments[mean]), sees.protocol["dimension"]
    if mean == "mu" and found != dimension:
        raise ValueError(f"{file.path}: its moments are of {found} features, and the network has {dimension}")
    return Gaussian.of_moments(file.moments[mean], file.moments[cov])


def _seen(sees: Extractor, file: ImagesFile) -> Features:
    return Features.together(
        [sees(block) for block in progressing(file.blocks(), name=file.path.name, count=file.count)]
    )


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
    count: int | None = theirs.count
    if PAIRS[kind == "sfid"][0] in theirs.moments:
        count = None if theirs.protocol is None else theirs.protocol["count"]
    notes = bias_of_frechet(len(features), count, features.shape[1])
    return notes if kind != name or (notes and "singular" in notes[0]) else []


def _of(name: str, theirs: ImagesFile, ours: ImagesFile, device: str, features: PublishedConfig) -> dict[str, Any]:
    """What a number is compared with, by images or by moments, and with what it is measured.

    The samples are what is measured: of them, how many there are is all that two numbers must share.
    """
    here = f"{libraries_of(features)}, on {device}"
    libraries = {"reference": here, "features": here, "metrics": libraries_of_metrics()}
    reference = {"reference": f"{theirs.count} images, SHA-256 {theirs.sha256}"}
    pair = {"fid": PAIRS[0], "fd": PAIRS[0], "sfid": PAIRS[1]}.get(name.removesuffix("_infinity"))
    if pair is not None and pair[0] in theirs.moments:
        reference = {"reference": f"{' and '.join(pair)}, SHA-256 {theirs.sha256}"}
        libraries["reference"] = "libraries that its file does not name"
        if theirs.protocol is not None:
            reference, libraries = theirs.protocol["images"], {**libraries, **theirs.protocol[MEASURED_WITH]}
    return {**reference, "samples": ours.count, MEASURED_WITH: libraries}
