"""What is a feature extractor? Anything that turns images into vectors and says exactly how it does it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPATIAL_CHANNELS = 7
"""Of a layer of 17 x 17: 2,023 numbers, about as many as the pooled 2,048. sFID's choice (Nash et al. 2021)."""


class FeatureProtocol(TypedDict):
    """All that decides the features of an image: distances are comparable only where these agree."""

    network: str
    weights_sha256: str
    resize: str
    size: int
    """Pixels a side at which the network sees the image."""
    dimension: int


class Features(NamedTuple):
    """What a network sees in n images, each image by itself."""

    pool: NDArray[np.float32]
    """(n, dimension): the last feature map's means. FID, KID, precision and recall are over these."""
    spatial: NDArray[np.float32] | None = None
    """(n, s): a layer in the middle, with its places, for sFID; None of a network that has no such layer by custom."""
    probabilities: NDArray[np.float32] | None = None
    """(n, classes): what the network takes the image for, for the Inception Score; None where it names no classes."""

    @staticmethod
    def together(parts: list[Features]) -> Features:
        """Of all images, in the order of the parts, which are of one network."""
        pool, spatial, probabilities = (
            None if any(values is None for values in column) else np.concatenate(column)
            for column in zip(*parts, strict=True)
        )
        assert pool is not None
        return Features(pool, spatial, probabilities)


class Extractor(Protocol):
    """A frozen network that sees images."""

    @property
    def protocol(self) -> FeatureProtocol:
        """How this extractor works, for the record that stands beside every number made from it."""

    def __call__(self, images: np.ndarray) -> Features:
        """Of uint8 images (n, h, w, 1 or 3). Raises ValueError for others."""


def check_images(images: np.ndarray) -> None:
    """Raises ValueError for what are no images to an extractor."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images of dtype {images.dtype} and shape {images.shape}: needs uint8 (n, height, width, 1 or 3), n > 0"
        )


def in_colour(images: NDArray[np.uint8], device: str) -> Tensor:
    """As (n, 3, h, w) on a device, still uint8; gray is repeated into the three colours."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    return pixels.expand(-1, 3, -1, -1)
