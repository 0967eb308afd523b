"""What is a feature extractor? Anything that turns images into vectors and says exactly how it does it."""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray


class FeatureProtocol(TypedDict):
    """All that decides the features of an image: distances are comparable only where these agree."""

    network: str
    weights_sha256: str
    resize: str
    size: int
    """Pixels a side at which the network sees the image."""
    dimension: int


class Extractor(Protocol):
    """A frozen network that sees images."""

    @property
    def protocol(self) -> FeatureProtocol:
        """How this extractor works, for the record that stands beside every number made from it."""

    def __call__(self, images: np.ndarray) -> NDArray[np.float32]:
        """Features (n, dimension) of uint8 images (n, h, w, 1 or 3); an image's features depend on it alone."""
