"""Augmentation: a function of (seed, step, index), within its published range, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from diffusion import augment
from diffusion.augment import flipped, prepared_size, random_crop

seeds = st.integers(0, 2**64 - 1)
steps = st.integers(0, 2**32 - 1)
SIZE = 16
LARGE = prepared_size(SIZE)


def noise(count: int, side: int = LARGE) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def places(count: int) -> Tensor:
    """Images whose pixels say where they are: the row in one channel, the column in another."""
    along = torch.arange(LARGE, dtype=torch.uint8)
    rows, columns = along[:, None].expand(LARGE, LARGE), along.expand(LARGE, LARGE)
    return torch.stack([rows, columns]).expand(count, -1, -1, -1)


def augmented(images: Tensor, *, seed: int, step: int, index: Tensor) -> Tensor:
    cropped = random_crop(images, image_size=SIZE, seed=seed, step=step, index=index)
    return flipped(cropped, seed=seed, step=step, index=index)


@given(seed=seeds, step=steps, workers=st.sampled_from([1, 2, 3, 6]))
def test_an_image_is_varied_the_same_way_in_every_batch_and_by_every_worker(seed: int, step: int, workers: int) -> None:
    images, index = noise(12), torch.arange(12)
    shares = zip(images.chunk(workers), index.chunk(workers), strict=True)
    found = torch.cat([augmented(share, seed=seed, step=step, index=part) for share, part in shares])
    assert torch.equal(found, augmented(images, seed=seed, step=step, index=index))


def test_seeds_steps_and_indices_vary_images_differently() -> None:
    image = noise(1).expand(64, -1, -1, -1)
    found = [
        augmented(image, seed=seed, step=step, index=first + torch.arange(64))
        for seed, step, first in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 64))
    ]
    assert len({batch.numpy().tobytes() for batch in found}) == 4


def test_half_of_the_images_are_mirrored_and_the_others_left_alone() -> None:
    images, count = noise(1, side=4).expand(10_000, -1, -1, -1), 10_000
    found = flipped(images, seed=0, step=0, index=torch.arange(count))
    mirrored = (found == images.flip(-1)).flatten(1).all(dim=1)
    assert torch.equal(found[~mirrored], images[~mirrored])
    assert abs(mirrored.sum() - count / 2) < 4 * math.sqrt(count) / 2


def test_sides_are_uniform_in_the_published_range_and_corners_within_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Cut out of the whole rather than shrunk, so that pixels go on saying where they were.
    monkeypatch.setattr(augment, "_shrunk", lambda images, side: images[..., :side, :side])
    count = 20_000
    found = random_crop(places(count), image_size=SIZE, seed=0, step=0, index=torch.arange(count)).long()
    top, left = found[:, 0, 0, 0], found[:, 1, 0, 0]
    along = torch.arange(SIZE)
    assert torch.equal(found[:, 0], (top[:, None, None] + along[:, None]).expand(-1, SIZE, SIZE))
    assert torch.equal(found[:, 1], (left[:, None, None] + along).expand(-1, SIZE, SIZE))
    corners = range(LARGE - SIZE + 1)
    # A corner at c needs a side of SIZE + c or more, and such a side SIZE + s has it in one of s + 1 cases.
    expected = [count * sum(1 / (s + 1) for s in corners if s >= c) / len(corners) for c in corners]
    for corner in (top, left):
        assert stats.chisquare(corner.bincount(minlength=len(corners)).numpy(), expected).pvalue > 1e-3


def test_at_the_smallest_side_a_crop_is_the_whole_image_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "_draws", lambda seed, step, index: torch.zeros(len(index), 4))
    images = noise(5)
    resized = functional.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    found = random_crop(images, image_size=SIZE, seed=0, step=0, index=torch.arange(5))
    assert torch.equal(found, resized.round().clamp(0, 255).to(torch.uint8))


def test_a_flat_image_stays_flat() -> None:
    images = torch.full((20, 3, LARGE, LARGE), 255, dtype=torch.uint8)
    assert bool((random_crop(images, image_size=SIZE, seed=0, step=0, index=torch.arange(20)) == 255).all())


def test_images_of_another_size_than_the_range_needs_are_refused() -> None:
    with pytest.raises(ValueError, match=f"images of {SIZE} pixels: crops of {SIZE} are taken from {LARGE}"):
        random_crop(noise(2, side=SIZE), image_size=SIZE, seed=0, step=0, index=torch.arange(2))
