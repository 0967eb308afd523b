"""Shards: the same bytes however images come, and nothing that changed afterwards is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import DamagedArtifact
from pipelines import shards
from pipelines.shards import UNLABELLED, ImageSet, Manifest, ShardWriter, read_split, split_of


def random_images(count: int, shape: tuple[int, int, int], *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def written(folder: Path, images: np.ndarray, labels: list[int], *, classes: list[str]) -> Manifest:
    writer = ShardWriter(folder, shape=images.shape[1:], num_classes=len(classes))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        writer.add("test" if number % 3 == 0 else "train", image, label, f"{number}.png")
    return writer.finish(source="random", classes=classes)


def test_images_come_back_in_their_order_with_labels_counts_and_statistics(tmp_path: Path) -> None:
    images = random_images(50, (6, 6, 3))
    labels = [number % 4 for number in range(50)]
    manifest = written(tmp_path, images, labels, classes=list("abcd"))
    train, test = (np.array([number % 3 != 0 for number in range(50)]) == wanted for wanted in (True, False))
    for split, where in (("train", train), ("test", test)):
        found = read_split(tmp_path, split)
        np.testing.assert_array_equal(found.images, images[where])
        np.testing.assert_array_equal(found.labels, np.array(labels)[where])
        assert manifest.images[split] == where.sum()
        assert manifest.images_per_class[split] == np.bincount(np.array(labels)[where], minlength=4).tolist()
    np.testing.assert_allclose(manifest.mean, images[train].mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, images[train].std(axis=(0, 1, 2)), rtol=1e-9)
    assert Manifest.read(tmp_path) == manifest


def test_a_data_set_has_several_shards_when_it_is_large_and_the_same_bytes_when_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * 4 * 4)
    images = random_images(64, (4, 4, 1))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, images, [UNLABELLED] * 64, classes=[])
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(files) == 1 + 5 + 3  # 42 and 22 images, ten a shard
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)
    np.testing.assert_array_equal(read_split(tmp_path / "one", "test").images, images[::3])


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shape=(4, 4, 1), num_classes=0)
    writer.add("train", random_images(1, (4, 4, 1))[0], UNLABELLED, "only")
    with pytest.raises(ValueError, match="no test images"):
        writer.finish(source="random", classes=[])
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"shape": [1, 2]})])
def test_a_manifest_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedArtifact, match=r"manifest\.json: no manifest of a data set"):
        read_split(tmp_path, "train")


def test_labels_of_images_without_classes_must_say_so() -> None:
    images = random_images(2, (4, 4, 1))
    ImageSet(images=images, labels=np.array([UNLABELLED] * 2)).require(image_size=4, num_classes=0)
    with pytest.raises(ValueError, match=r"image 1 has label 0: labels must be -1\.\.-1"):
        ImageSet(images=images, labels=np.array([UNLABELLED, 0])).require(image_size=4, num_classes=0)


@given(seed=st.integers(0, 1000), low=st.integers(1, 50), more=st.integers(0, 49))
@settings(max_examples=30)
def test_a_larger_test_split_keeps_the_images_of_a_smaller_one_and_copies_stay_together(
    seed: int, low: int, more: int
) -> None:
    images = random_images(20, (2, 2, 1), seed=seed)
    for image in images:
        if split_of(image, test_percent=low) == "test":
            assert split_of(image, test_percent=low + more) == "test"
        assert split_of(image.copy(), test_percent=low) == split_of(image, test_percent=low)


def test_the_share_held_out_is_the_one_asked_for() -> None:
    images = random_images(4000, (3, 3, 1))
    held_out = sum(split_of(image, test_percent=10) == "test" for image in images)
    assert abs(held_out - 400) < 4 * 19  # binomial: standard deviation 19
