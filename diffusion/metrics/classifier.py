"""What does a classifier of the data set itself see in an image? For images that no network of photographs knows.

A distance over it is named after its weights: another training is another network, and no such distance is called FID.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.classifier import NoisyClassifier
from diffusion.metrics.features import FeatureProtocol, Features, check_images

IMAGES_AT_ONCE = 64


class ClassifierFeatures:
    """What the last linear layer is given, at model_t = 0, and the probabilities it makes of that."""

    def __init__(self, network: NoisyClassifier, *, weights_sha256: str, device: str = "cpu") -> None:
        self.weights_sha256, self.device = weights_sha256, device
        self._network = network.eval().requires_grad_(False).to(device)

    @property
    def protocol(self) -> FeatureProtocol:
        """How an image becomes a vector."""
        return {
            "network": f"classifier {self.weights_sha256[:12]}",
            "weights_sha256": self.weights_sha256[:12],
            "resize": "none",
            "size": self._network.config.encoder.image_size,
            "dimension": self._network.pooled_channels,
        }

    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images (n, h, w, c) of the size and channels it was trained on. Raises ValueError."""
        check_images(images)
        encoder = self._network.config.encoder
        wanted = (encoder.image_size, encoder.image_size, encoder.channels)
        if images.shape[1:] != wanted:
            raise ValueError(f"images of shape {images.shape[1:]}: this classifier was trained on {wanted}")
        blocks = [images[first : first + IMAGES_AT_ONCE] for first in range(0, len(images), IMAGES_AT_ONCE)]
        return Features.together([self._features(block) for block in blocks])

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> Features:
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        pool, logits = self._network.pooled_and_logits(pixels / 127.5 - 1, torch.zeros(len(images), device=self.device))
        return Features(pool.cpu().numpy(), probabilities=logits.softmax(dim=1).cpu().numpy())
