"""Which data sets come with the machine? scikit-learn's handwritten digits, and Fashion-MNIST as Debian packages it."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np

from orchestrator.errors import PreflightError
from pipelines.shards import ImageSet, Split, split_of

FASHION_MNIST_HOME = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_SHA256 = {  # of the decompressed files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DIGITS_LEVELS = 16  # scikit-learn's digits count dark pixels of 4x4 blocks: 0..16
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_digits(image_size: int, test_percent: int) -> dict[Split, ImageSet]:
    """1,797 digits of 8x8 pixels, or of their means over 2x2, 10 classes; the same ones are held out at both sizes."""
    from sklearn import datasets  # slow to import, and only needed here

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / DIGITS_LEVELS)).astype(np.uint8)[..., None]
    held_out = np.array([split_of(image, test_percent=test_percent) == "test" for image in images])
    labels = digits.target.astype(np.int64)
    images = images if image_size == 8 else _halved(images)
    return {
        "train": ImageSet(images=images[~held_out], labels=labels[~held_out]),
        "test": ImageSet(images=images[held_out], labels=labels[held_out]),
    }


def load_fashion_mnist(image_size: int) -> dict[Split, ImageSet]:
    """60,000 and 10,000 articles of 28x28 pixels, with a black border up to 32, or means over 2x2 of those; 10 classes.

    Raises PreflightError when the files are not there, or not the published ones.
    """
    home = Path(os.environ.get("PAPERTABLE_FASHION_MNIST", FASHION_MNIST_HOME))
    border = 0 if image_size == 28 else 2
    splits: dict[Split, ImageSet] = {}
    prefixes: dict[Split, str] = {"train": "train", "test": "t10k"}
    for split, prefix in prefixes.items():
        images = read_idx(_verified(home, f"{prefix}-images-idx3-ubyte"))[..., None]
        labels = read_idx(_verified(home, f"{prefix}-labels-idx1-ubyte")).astype(np.int64)
        padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
        padded = _halved(padded) if image_size == 16 else padded
        splits[split] = ImageSet(images=padded, labels=labels)
    return splits


def _halved(images: np.ndarray) -> np.ndarray:
    """Means over 2x2 pixels, rounded."""
    count, height, width, channels = images.shape
    parts = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return np.round(parts.mean(axis=(2, 4))).astype(np.uint8)


def read_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in the IDX format of MNIST. Raises ValueError for any other type or a wrong length."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 0x08:
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex()}, not 000008")
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3]))
    start = 4 + 4 * len(shape)
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(f"IDX header says {shape}, but {len(content) - start} bytes follow it: the file is cut")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _verified(home: Path, name: str) -> bytes:
    file = home / f"{name}.gz"
    if not file.is_file():
        raise PreflightError(
            f"{file} is not there: install Debian's package dataset-fashion-mnist (apt-get install "
            f"dataset-fashion-mnist), or set PAPERTABLE_FASHION_MNIST to the folder that holds the four .gz files"
        )
    content = gzip.decompress(file.read_bytes())
    if hashlib.sha256(content).hexdigest() != FASHION_MNIST_SHA256[name]:
        raise PreflightError(f"{file} is not the published file (its SHA-256 differs): install it again")
    return content
