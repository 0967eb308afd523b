"""What does the FID's Inception see in an image? The network of December 2015, from a file the user names.

No package carries its weights. Two files do: the TorchScript one that StyleGAN2-ADA published and clean-fid loads
(modes clean and legacy_tensorflow), and the weights that pytorch-fid published (legacy_pytorch). A file's content is
loaded once its SHA-256 is known to be the one that was meant: TorchScript holds a program. The only file that imports
cleanfid.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion.metrics.features import SPATIAL_CHANNELS, FeatureProtocol, Features, check_images, in_colour
from diffusion.metrics.resize import resize_clean, resize_legacy_pytorch, resize_legacy_tensorflow

Mode = Literal["legacy_tensorflow", "legacy_pytorch", "clean"]
"""clean-fid's names. legacy_tensorflow is how the papers' numbers were measured."""
INCEPTION = "inception-2015-12-05"
SIZE, DIMENSION, IMAGES_AT_ONCE = 299, 2048, 64
TORCHSCRIPT_LAYERS = (
    "conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed",
    *(f"mixed_{number}" for number in range(1, 11)), "pool2",
)  # fmt: skip


class PublishedFile(NamedTuple):
    """Where weights of the network are found."""

    name: str
    sha256: str


TORCHSCRIPT = PublishedFile(
    "inception-2015-12-05.pt", "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
)
PYTORCH = PublishedFile(
    "pt_inception-2015-12-05-6726825d.pth", "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
)
FILES: dict[Mode, PublishedFile] = {"legacy_tensorflow": TORCHSCRIPT, "clean": TORCHSCRIPT, "legacy_pytorch": PYTORCH}
RESIZE: dict[Mode, Callable[[Tensor, int], Tensor]] = {
    "legacy_tensorflow": resize_legacy_tensorflow,
    "legacy_pytorch": resize_legacy_pytorch,
    "clean": resize_clean,
}


class InceptionFeatures:
    """Pooled and spatial features, and probabilities of 1,008 classes from logits without a bias, as published."""

    def __init__(
        self, content: bytes, *, mode: Mode = "legacy_tensorflow", weights_sha256: str | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        """Of a file's content. Raises ValueError for one of another SHA-256: by default that of the published file."""
        self.mode, self.device = mode, device
        self.weights_sha256 = FILES[mode].sha256 if weights_sha256 is None else weights_sha256
        _check_hash(content, self.weights_sha256)
        load = _from_pytorch if mode == "legacy_pytorch" else _from_torchscript
        self._network = load(content).eval().requires_grad_(False).to(device)

    @property
    def protocol(self) -> FeatureProtocol:
        """How an image becomes a vector."""
        return self.protocol_of(self.mode, self.weights_sha256)

    @staticmethod
    def protocol_of(mode: Mode, weights_sha256: str) -> FeatureProtocol:
        """The protocol of a mode, without the network being loaded."""
        return {
            "network": INCEPTION,
            "weights_sha256": weights_sha256[:12],
            "resize": f"clean-fid {mode}",
            "size": SIZE,
            "dimension": DIMENSION,
        }

    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images (n, h, w, 1 or 3); gray is repeated into the three colours."""
        check_images(images)
        blocks = [images[first : first + IMAGES_AT_ONCE] for first in range(0, len(images), IMAGES_AT_ONCE)]
        return Features.together([self._features(block) for block in blocks])

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> Features:
        pixels = RESIZE[self.mode](in_colour(images, self.device), SIZE)
        scaled = 2 * (pixels / 255) - 1 if self.mode == "legacy_pytorch" else (pixels - 128) / 128
        return Features(*(values.float().cpu().numpy() for values in self._network(scaled)))


class _TorchScript(nn.Module):
    """The layers of the TorchScript file, one by one: what lies between them is wanted, too."""

    def __init__(self, published: Any) -> None:
        super().__init__()
        self.published = published

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [-1, 1) -> pooled, spatial, probabilities."""
        spatial = x
        published: Any = self.published
        for name, layer in published.layers.named_children():
            if name == "mixed_6":
                spatial = layer.conv(x)
            x = layer(x)
        pool = x.flatten(start_dim=1)
        return pool, _as_published(spatial), F.linear(pool, published.output.weight).softmax(dim=1)


class _Pytorch(nn.Module):
    """The network of pytorch-fid's weights, likewise."""

    def __init__(self, inception: nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images in [-1, 1] -> pooled, spatial, probabilities."""
        net: Any = self.inception
        for layer in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3):
            x = layer(x)
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = F.max_pool2d(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)), kernel_size=3, stride=2)
        for layer in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c):
            x = layer(x)
        spatial = net.Mixed_6d.branch1x1(x)
        for layer in (net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c):
            x = layer(x)
        pool = F.adaptive_avg_pool2d(x, (1, 1)).flatten(start_dim=1)
        return pool, _as_published(spatial), F.linear(pool, net.fc.weight).softmax(dim=1)


def _as_published(spatial: Tensor) -> Tensor:
    """(n, c, 17, 17) -> (n, 2023): the first seven channels, which move fastest, as in published statistics."""
    return spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(start_dim=1)


def _check_hash(content: bytes, sha256: str) -> None:
    """Of what is then loaded itself: nobody changes it in between."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        names = ", ".join(f"{known.name} {known.sha256}" for known in (TORCHSCRIPT, PYTORCH))
        raise ValueError(f"weights of SHA-256 {found}, not {sha256}, are not loaded. Published are {names}")


def _from_torchscript(content: bytes) -> nn.Module:
    try:
        published = torch.jit.load(io.BytesIO(content), map_location="cpu")
        layers = tuple(name for name, _ in published.layers.named_children())
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"no TorchScript file of the FID's Inception ({_reason(error)})") from error
    if layers != TORCHSCRIPT_LAYERS:
        raise ValueError(f"no layout of the FID's Inception: {', '.join(layers)}, not {', '.join(TORCHSCRIPT_LAYERS)}")
    return _TorchScript(published)


def _from_pytorch(content: bytes) -> nn.Module:
    declare_missing_torchvision_operators()
    from cleanfid import inception_pytorch as theirs

    with torch.device("meta"):
        network = theirs._inception_v3(num_classes=1008, aux_logits=False)
        network.Mixed_5b, network.Mixed_5c = theirs.FIDInceptionA(192, 32), theirs.FIDInceptionA(256, 64)
        network.Mixed_5d, network.Mixed_6b = theirs.FIDInceptionA(288, 64), theirs.FIDInceptionC(768, 128)
        network.Mixed_6c, network.Mixed_6d = theirs.FIDInceptionC(768, 160), theirs.FIDInceptionC(768, 160)
        network.Mixed_6e = theirs.FIDInceptionC(768, 192)
        network.Mixed_7b, network.Mixed_7c = theirs.FIDInceptionE_1(1280), theirs.FIDInceptionE_2(2048)
    try:
        network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), assign=True)
    except Exception as error:  # what a file that is none makes torch raise is not a closed list
        raise ValueError(f"no weights of pytorch-fid's Inception ({_reason(error)})") from error
    return _Pytorch(network)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


_declared: list[torch.library.Library] = []  # declarations last only as long as this object


def declare_missing_torchvision_operators() -> None:
    """Let torchvision be imported beside a torch that its binary does not fit (CPU-only torch, CUDA torchvision).

    Its Python code registers shapes for two operators of that binary at import and fails where they are missing. Their
    names are enough: what is used of clean-fid calls none of torchvision's operators.
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
