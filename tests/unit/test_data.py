"""Data sets: real images, a stable split, verified shards, and clear refusals."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.step import Resources, StepContext
from pipelines import builtin_data
from pipelines.builtin_data import read_idx
from pipelines.data import DataConfig, prepare
from pipelines.shards import ImageSet, read_split


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    prepare(DataConfig(), context(tmp_path))
    return tmp_path


def context(output: Path) -> StepContext:
    return StepContext(inputs={}, output=output, backend=LocalBackend(), resources=Resources())


def test_every_real_digit_is_on_exactly_one_side_of_the_split(digits: Path) -> None:
    train, test = read_split(digits, "train"), read_split(digits, "test")
    ours = sorted(image.tobytes() for image in np.concatenate([train.images, test.images]))
    theirs = sorted(np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images)
    assert ours == theirs
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}


def test_about_the_configured_share_is_held_out(digits: Path) -> None:
    held_out = len(read_split(digits, "test").labels)
    # Binomial(1797, 0.2): mean 359, standard deviation 17.
    assert abs(held_out - 359) < 4 * 17


def test_labels_stay_with_their_images(digits: Path) -> None:
    source = load_digits()
    label_of = {
        np.round(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(source.images, source.target, strict=True)
    }
    test = read_split(digits, "test")
    assert [label_of[image.tobytes()] for image in test.images] == test.labels.tolist()


def test_a_flipped_bit_in_a_shard_is_named(digits: Path) -> None:
    shard = digits / "test-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedArtifact, match=r"test-00000\.parquet"):
        read_split(digits, "test")


def test_a_missing_shard_is_named(digits: Path) -> None:
    (digits / "train-00000.parquet").unlink()
    with pytest.raises(DamagedArtifact, match=r"train-00000\.parquet"):
        read_split(digits, "train")


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (np.zeros((3, 8, 8, 1), np.float32), [0, 1, 2], "dtype float32: uint8"),
        (np.zeros((3, 8, 8), np.uint8), [0, 1, 2], "shape .* is needed"),
        (np.zeros((0, 8, 8, 1), np.uint8), [], "no images"),
        (np.zeros((3, 8, 8, 1), np.uint8), [0, 1], "3 images but 2 labels"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(images: np.ndarray, labels: list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ImageSet(images=images, labels=np.array(labels, dtype=np.int64))


def test_a_label_out_of_range_is_refused_with_its_image() -> None:
    images = ImageSet(images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.array([0, 10, 2]))
    with pytest.raises(ValueError, match=r"image 1 has label 10: labels must be 0\.\.9"):
        images.require(image_size=8, num_classes=10)


def test_images_of_another_size_than_configured_are_refused() -> None:
    images = ImageSet(images=np.zeros((3, 8, 8, 1), np.uint8), labels=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"8x8, but data\.image_size=16"):
        images.require(image_size=16, num_classes=10)


def test_an_image_size_the_source_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.image_size=16: digits is available at 4 or 8"):
        DataConfig(source="digits", image_size=16)


def test_an_idx_file_reads_as_the_array_it_holds() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in array.shape)
    np.testing.assert_array_equal(read_idx(header + array.tobytes()), array)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01" + bytes(8), b"\0\0\x08\x01\0\0\0\x09abc"])
def test_what_is_no_complete_idx_file_of_bytes_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="IDX"):
        read_idx(content)


def test_fashion_mnist_that_is_missing_or_altered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERTABLE_FASHION_MNIST", str(tmp_path))
    config = DataConfig(source="fashion-mnist", image_size=32, test_percent=None)
    with pytest.raises(PreflightError, match="dataset-fashion-mnist"):
        prepare(config, context(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(PreflightError, match="SHA-256"):
        prepare(config, context(tmp_path))


def test_small_digits_are_means_of_the_same_digits_and_the_same_are_held_out() -> None:
    small, large = (builtin_data.load_digits(size, 20) for size in (4, 8))
    for split in ("train", "test"):
        means = large[split].images.reshape(-1, 4, 2, 4, 2, 1).astype(float).mean(axis=(2, 4))
        assert np.abs(small[split].images - means).max() <= 0.5
        assert np.array_equal(small[split].labels, large[split].labels)
