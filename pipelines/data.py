"""Which images does a study train and test on? Real data sets turned into verified Parquet shards, and read back.

python pipelines/data.py prepare digits --store artifacts
python pipelines/data.py prepare fashion-mnist --store artifacts
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.step import Step, StepContext

VERSION = 1
SHARD_ROWS = 16384
FASHION_MNIST_HOME = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_SHA256 = {  # of the decompressed files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEFAULT_IMAGE_SIZE = {"digits": 8, "fashion-mnist": 32}
DIGITS_LEVELS = 16  # scikit-learn's digits count dark pixels of 4x4 blocks: 0..16


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A data set and how it is split. Its images are uint8; training sees them scaled to [-1, 1]."""

    source: Literal["digits", "fashion-mnist"] = "digits"
    image_size: int = 8
    """Height and width in pixels: 8 for digits; 28, or 32 with a black border, for fashion-mnist."""
    test_percent: int | None = 20
    """Share of the images held out, chosen by the hash of their bytes; null where the data set brings its own split."""

    def __post_init__(self) -> None:
        allowed = {"digits": (8,), "fashion-mnist": (28, 32)}[self.source]
        if self.image_size not in allowed:
            raise ValueError(
                f"data.image_size={self.image_size}: {self.source} is available at "
                f"{' or '.join(map(str, allowed))} pixels; set data.image_size to that"
            )
        if self.source == "fashion-mnist" and self.test_percent is not None:
            raise ValueError(
                f"data.test_percent={self.test_percent}: fashion-mnist brings its own split; set it to null"
            )
        if self.source == "digits" and not 1 <= (self.test_percent or 0) <= 50:
            raise ValueError(f"data.test_percent={self.test_percent}: must be between 1 and 50")

    @property
    def channels(self) -> int:
        """Channels of an image: 1, both sources are gray."""
        return 1


@dataclass(frozen=True)
class ImageSet:
    """Images of one split: uint8 (n, height, width, channels), with a label each."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8:
            raise ValueError(f"images have dtype {self.images.dtype}: uint8 in 0..255 is needed; convert them first")
        if self.images.ndim != 4:
            raise ValueError(
                f"images have shape {self.images.shape}: (count, height, width, channels) is needed; "
                f"add the missing axis or stack them"
            )
        if len(self.images) == 0:
            raise ValueError("the data set has no images: at least one in every split is needed")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels: every image needs one label")

    def require(self, *, image_size: int, num_classes: int) -> ImageSet:
        """Itself, or ValueError when an image is not image_size square or a label is outside 0..num_classes-1."""
        if self.images.shape[1:3] != (image_size, image_size):
            raise ValueError(
                f"images are {self.images.shape[1]}x{self.images.shape[2]}, but data.image_size={image_size}: "
                f"set data.image_size to the images' size"
            )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(wrong):
            raise ValueError(
                f"image {wrong[0]} has label {self.labels[wrong[0]]}: labels must be 0..{num_classes - 1} "
                f"({len(wrong)} of {len(self.labels)} are not)"
            )
        return self


def dataset_step(config: DataConfig) -> Step:
    """The data set as an artifact: one Parquet file a shard, manifest.json over all of them."""
    return Step(name="dataset", version=VERSION, config=config, inputs={}, run=prepare)


def prepare(config: DataConfig, ctx: StepContext) -> None:
    """Write both splits as shards and a manifest with their SHA-256."""
    splits = _load_digits(config) if config.source == "digits" else _load_fashion_mnist(config)
    shards = []
    for split, images in splits.items():
        images.require(image_size=config.image_size, num_classes=10)
        for first in range(0, len(images.labels), SHARD_ROWS):
            file = f"{split}-{first // SHARD_ROWS:05d}.parquet"
            _write_shard(ctx.output / file, images, first, min(first + SHARD_ROWS, len(images.labels)))
            shards.append({"split": split, "file": file, "sha256": _sha256(ctx.output / file)})
    manifest = {
        "source": config.source,
        "shape": list(splits["train"].images.shape[1:]),
        "num_classes": 10,
        "images": {split: len(images.labels) for split, images in splits.items()},
        "images_per_class": {s: np.bincount(i.labels, minlength=10).tolist() for s, i in splits.items()},
        "shards": shards,
    }
    (ctx.output / "manifest.json").write_text(json.dumps(manifest, indent=1))
    height, width, channels = splits["train"].images.shape[1:]
    counts = " and ".join(f"{len(images.labels):,} {split}" for split, images in splits.items())
    ctx.write_metrics({}, notes=[f"ours: {config.source}, {height}x{width}x{channels}, {counts} images"])


def read_split(dataset: Path, split: Literal["train", "test"]) -> ImageSet:
    """The images of a prepared data set, in the manifest's order. Raises DamagedArtifact for a shard that changed."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    tables = []
    for shard in (shard for shard in manifest["shards"] if shard["split"] == split):
        file = dataset / shard["file"]
        if not file.is_file() or _sha256(file) != shard["sha256"]:
            raise DamagedArtifact(file, "missing, or its SHA-256 is not the manifest's")
        tables.append(pq.read_table(file))
    table = pa.concat_tables(tables)
    pixels = np.frombuffer(b"".join(table["pixels"].to_pylist()), dtype=np.uint8)
    images = pixels.reshape(-1, *manifest["shape"]).copy()  # a copy: frombuffer's memory is read-only
    labels = table["label"].to_numpy()
    side = manifest["shape"][0]
    return ImageSet(images=images, labels=labels).require(image_size=side, num_classes=manifest["num_classes"])


def count_images(dataset: Path, split: Literal["train", "test"]) -> int:
    """How many images a split of a prepared data set has."""
    return int(json.loads((dataset / "manifest.json").read_text())["images"][split])


def _write_shard(file: Path, images: ImageSet, first: int, stop: int) -> None:
    pixels = [image.tobytes() for image in images.images[first:stop]]
    table = pa.table(
        {"pixels": pa.array(pixels, pa.binary()), "label": pa.array(images.labels[first:stop], pa.int64())}
    )
    pq.write_table(table, file, row_group_size=2048, compression="zstd")


def _load_digits(config: DataConfig) -> dict[str, ImageSet]:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    images = np.round(digits.images * (255 / DIGITS_LEVELS)).astype(np.uint8)[..., None]
    assert config.test_percent is not None
    held_out = np.array([_percentile(image) < config.test_percent for image in images])
    labels = digits.target.astype(np.int64)
    return {
        "train": ImageSet(images=images[~held_out], labels=labels[~held_out]),
        "test": ImageSet(images=images[held_out], labels=labels[held_out]),
    }


def _load_fashion_mnist(config: DataConfig) -> dict[str, ImageSet]:
    home = Path(os.environ.get("PAPERTABLE_FASHION_MNIST", FASHION_MNIST_HOME))
    border = (config.image_size - 28) // 2
    splits = {}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        images = read_idx(_verified(home, f"{prefix}-images-idx3-ubyte"))[..., None]
        labels = read_idx(_verified(home, f"{prefix}-labels-idx1-ubyte")).astype(np.int64)
        padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
        splits[split] = ImageSet(images=padded, labels=labels)
    return splits


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


def _percentile(image: np.ndarray) -> int:
    """0..99 from the image's own bytes, so that copies of one image land on the same side of a split."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") % 100


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import prepare as main  # needs this module under its own name

    run(main)
