"""How is a prepared data set kept? Parquet shards of pixels, and a manifest over all of them that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DamagedArtifact
from pipelines.located_shards import shard_bytes
from pipelines.preprocess import made_with

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
MANIFEST_FILE = "manifest.json"
SHARD_BYTES = 2**26  # of pixels: what is held in memory at once
MOST_SHARD_ROWS = 16384
ROW_GROUP = 2048
UNLABELLED = -1


@dataclass(frozen=True)
class ImageSet:
    """Images of one split: uint8 (n, height, width, channels), with a label each; UNLABELLED where there are none."""

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
        """Itself, or ValueError when an image is not image_size square or a label is outside 0..num_classes-1.

        With no classes every image must be unlabelled.
        """
        if self.images.shape[1:3] != (image_size, image_size):
            raise ValueError(
                f"images are {self.images.shape[1]}x{self.images.shape[2]}, but data.image_size={image_size}: "
                f"set data.image_size to the images' size"
            )
        lowest, highest = (0, num_classes - 1) if num_classes else (UNLABELLED, UNLABELLED)
        wrong = np.flatnonzero((self.labels < lowest) | (self.labels > highest))
        if len(wrong):
            raise ValueError(
                f"image {wrong[0]} has label {self.labels[wrong[0]]}: labels must be {lowest}..{highest} "
                f"({len(wrong)} of {len(self.labels)} are not)"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set holds, a function of its identity and of what it was made with; written after all shards."""

    source: str
    shape: tuple[int, int, int]
    """Height, width and channels of every image."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, ...; none when the images are not labelled."""
    images: dict[str, int]
    """By split."""
    images_per_class: dict[str, list[int]]
    mean: list[float]
    """Of the training images' pixels, 0..255, by channel."""
    std: list[float]
    shards: tuple[dict[str, Any], ...]
    """split, file, rows and sha256 of each, in order."""
    left_out: int
    """How many images of the source could not be read; skipped.json names them."""
    made_with: dict[str, str]
    """Versions of the preprocessing, of Pillow and of the decoders in it."""

    @classmethod
    def read(cls, dataset: Path) -> Manifest:
        """Of a prepared data set. Raises DamagedArtifact when it is missing or no manifest."""
        file = dataset / MANIFEST_FILE
        try:
            return cls.parse(file.read_bytes(), file)
        except OSError as error:
            raise DamagedArtifact(file, f"no manifest of a data set ({error})") from error

    @classmethod
    def parse(cls, content: bytes, source: Path | str) -> Manifest:
        """Of a manifest's bytes, wherever they were read."""
        try:
            said = json.loads(content)
            manifest = cls(**{**said, "shape": tuple(said["shape"]), "classes": tuple(said["classes"]),
                              "shards": tuple(said["shards"])})  # fmt: skip
            for split, count in manifest.images.items():
                if sum(shard["rows"] for shard in manifest.shards if shard["split"] == split) != count:
                    raise ValueError(f"its shards of {split} do not hold the {count} images it says")
            if strange := {shard["split"] for shard in manifest.shards} - manifest.images.keys():
                raise ValueError(f"it has shards of {', '.join(map(repr, strange))}")
            return manifest
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedArtifact(source, f"no manifest of a data set ({error})") from error

    def write(self, dataset: Path) -> None:
        """Into the data set's directory."""
        (dataset / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=1))

    def of_split(self, split: Split) -> Iterator[dict[str, Any]]:
        """The shards of a split, in order."""
        return (shard for shard in self.shards if shard["split"] == split)


class ShardWriter:
    """Takes images one after the other and writes them as shards: the same bytes, however they came."""

    def __init__(self, dataset: Path, *, shape: tuple[int, int, int], num_classes: int) -> None:
        self._dataset, self._shape = dataset, shape
        self._rows = max(1, min(MOST_SHARD_ROWS, SHARD_BYTES // int(np.prod(shape))))
        self._waiting: dict[Split, list[tuple[bytes, int, str]]] = {split: [] for split in SPLITS}
        self._counts = {split: np.zeros(num_classes, dtype=np.int64) for split in SPLITS}
        self._images: dict[str, int] = dict.fromkeys(SPLITS, 0)
        # Whole numbers, so that no order of summing changes them.
        self._sum, self._squares = np.zeros(shape[2], dtype=np.int64), np.zeros(shape[2], dtype=np.int64)
        self._shards: list[dict[str, Any]] = []

    def add(self, split: Split, image: np.ndarray, label: int, name: str) -> None:
        """One image, uint8 of the writer's shape."""
        assert image.shape == self._shape
        assert image.dtype == np.uint8
        self._waiting[split].append((image.tobytes(), label, name))
        self._images[split] += 1
        if label != UNLABELLED:
            self._counts[split][label] += 1
        if split == "train":
            pixels = image.reshape(-1, self._shape[2]).astype(np.int64)
            self._sum += pixels.sum(axis=0)
            self._squares += (pixels**2).sum(axis=0)
        if len(self._waiting[split]) == self._rows:
            self._write(split)

    def finish(self, *, source: str, classes: Sequence[str], left_out: int = 0) -> Manifest:
        """Write what is left and the manifest. Raises ValueError when a split is empty."""
        for split in SPLITS:
            if self._waiting[split]:
                self._write(split)
            if not self._images[split]:
                raise ValueError(f"the data set has no {split} images: at least one in every split is needed")
        values = self._images["train"] * self._shape[0] * self._shape[1]
        mean = self._sum / values
        manifest = Manifest(
            source=source,
            shape=self._shape,
            classes=tuple(classes),
            images=dict(self._images),
            images_per_class={split: counts.tolist() for split, counts in self._counts.items()},
            mean=mean.tolist(),
            std=np.sqrt(np.maximum(self._squares / values - mean**2, 0)).tolist(),
            shards=tuple(sorted(self._shards, key=lambda shard: str(shard["file"]))),
            left_out=left_out,
            made_with=made_with(),
        )
        manifest.write(self._dataset)
        return manifest

    def _write(self, split: Split) -> None:
        number = sum(shard["split"] == split for shard in self._shards)
        file = f"{split}-{number:05d}.parquet"
        pixels, labels, names = zip(*self._waiting[split], strict=True)
        size = int(np.prod(self._shape))
        table = pa.table(
            {
                "pixels": pa.array(pixels, pa.binary(size)),
                "label": pa.array(labels, pa.int64()),
                "name": pa.array(names, pa.string()),
            }
        )
        pq.write_table(table, self._dataset / file, row_group_size=ROW_GROUP, compression="zstd")
        sha256 = sha256_of(self._dataset / file)
        self._shards.append({"split": split, "file": file, "rows": len(pixels), "sha256": sha256})
        self._waiting[split] = []


def read_split(dataset: Path, split: Split) -> ImageSet:
    """The images of a prepared data set, in the manifest's order. Raises DamagedArtifact for a shard that changed."""
    manifest = Manifest.read(dataset)
    parts = [read_images(dataset, shard, manifest) for shard in manifest.of_split(split)]
    return ImageSet(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def read_images(dataset: Path, shard: dict[str, Any], manifest: Manifest) -> ImageSet:
    """A shard's images, read-only. Raises DamagedArtifact unless it is what the manifest says."""
    table = read_shard(dataset, shard)
    size = int(np.prod(manifest.shape))
    pixels, labels = table["pixels"].combine_chunks(), table["label"].to_numpy()
    if len(table) != shard["rows"] or pixels.type != pa.binary(size) or pixels.null_count:
        raise DamagedArtifact(dataset / shard["file"], "does not hold the images that the manifest says")
    flat = np.frombuffer(pixels.buffers()[1], np.uint8, count=len(pixels) * size, offset=pixels.offset * size)
    images = ImageSet(images=flat.reshape(-1, *manifest.shape), labels=labels)
    return images.require(image_size=manifest.shape[0], num_classes=len(manifest.classes))


def read_shard(dataset: Path, shard: dict[str, Any]) -> pa.Table:
    """pixels, label and name of a shard's images, from here or from object storage.

    Raises DamagedArtifact unless it is what was written.
    """
    return pq.read_table(pa.BufferReader(shard_bytes(dataset, shard)))


def encoded_images(result: tuple[np.ndarray, np.ndarray]) -> bytes:
    """Images, uint8 (n, h, w, c), and their labels, as the content of a Parquet file of a shard's columns."""
    images, labels = result
    table = pa.table(
        {
            "pixels": pa.array([image.tobytes() for image in images], pa.binary(int(np.prod(images.shape[1:])))),
            "label": pa.array(labels, pa.int64()),
        },
        metadata={"shape": json.dumps(images.shape[1:])},
    )
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    return content.getvalue().to_pybytes()


def decoded_images(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """What encoded_images() took. Raises ValueError for what is not whole."""
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        shape = json.loads(table.schema.metadata[b"shape"])
        pixels, labels = b"".join(table["pixels"].to_pylist()), table["label"].to_numpy()
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise ValueError(f"no Parquet file of images ({error})") from error
    return np.frombuffer(pixels, np.uint8).reshape(len(table), *shape), labels


def count_images(dataset: Path, split: Split) -> int:
    """How many images a split of a prepared data set has."""
    return Manifest.read(dataset).images[split]


def split_of(image: np.ndarray, *, test_percent: int) -> Split:
    """By the hash of the image's own bytes: copies of one image land on the same side, and new images move none."""
    percentile = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big") % 100
    return "test" if percentile < test_percent else "train"


def sha256_of(file: Path) -> str:
    """Hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
