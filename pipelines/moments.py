"""What is kept of a reference? Moments of its features and some of its images, in the published evaluator's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.metrics.features import FeatureProtocol, Features
from diffusion.metrics.stats import GaussianStats
from orchestrator.protocols import MEASURED_WITH

STATISTICS_FILE = "statistics.npz"
PAIRS = (("mu", "sigma"), ("mu_s", "sigma_s"))
"""Moments of pooled and of spatial features."""
PROTOCOL = "protocol"
"""Beside them, as JSON: of which network's features, of which images, of how many, by what libraries. Published
files have none."""
MOST_IMAGES = 10_000
"""As many as a published file of ImageNet has; precision, recall and KID are over these."""


@dataclass(frozen=True)
class Moments:
    """Of a network's features of all images."""

    pool: GaussianStats
    spatial: GaussianStats | None

    @classmethod
    def of(cls, parts: Iterable[Features]) -> Moments:
        """Of features that come in parts, each of which may be forgotten once the next one comes."""
        return reduce(cls.merge, (cls._of_part(part) for part in parts))

    @classmethod
    def _of_part(cls, part: Features) -> Moments:
        return cls(GaussianStats.of(part.pool), None if part.spatial is None else GaussianStats.of(part.spatial))

    def merge(self, other: Moments) -> Moments:
        """Of both sets together."""
        spatial = None
        if self.spatial is not None and other.spatial is not None:
            spatial = self.spatial.merge(other.spatial)
        return Moments(self.pool.merge(other.pool), spatial)

    def save(
        self, file: Path, *, network: FeatureProtocol, of: Mapping[str, str | int], images: NDArray[np.uint8],
        libraries: str,
    ) -> None:  # fmt: skip
        """As mu, sigma, mu_s, sigma_s in float64, and images (n, h, w, c) as arr_0 where there are any."""
        pairs = zip(PAIRS, (self.pool, self.spatial), strict=True)
        known = [(names, stats) for names, stats in pairs if stats is not None]
        arrays = {
            name: values for names, stats in known for name, values in zip(names, (stats.mean, stats.cov), strict=True)
        }
        of_these = {"network": network, "images": dict(of), "count": self.pool.count}
        said = json.dumps({**of_these, MEASURED_WITH: {"reference": libraries}})
        shown = {"arr_0": images} if len(images) else {}
        np.savez(file, **arrays, **shown, **{PROTOCOL: said})  # type: ignore[arg-type]  # its stub's allow_pickle


def evenly(count: int, *, most: int) -> NDArray[np.int64]:
    """So many of 0..count-1 at equal distances, for images lie class by class; or all, where they are fewer."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
