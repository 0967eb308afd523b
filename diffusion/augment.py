"""How are training images varied? By functions of (seed, step, index), on the device, before they are normalised.

Draws are made where index lies. The evaluation of a model varies nothing.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from diffusion.randomness import AUGMENTATION, uniform
from diffusion.transfer import sent

SMALLEST_CROP = 0.8  # PAPERS.md section 4: of the short side
Pixels = UInt8[Tensor, "b c h w"]
Prepared = UInt8[Tensor, "b c large large"]
Cropped = UInt8[Tensor, "b c small small"]


def flipped(images: Pixels, *, seed: int, step: int, index: Int64[Tensor, "b"]) -> Pixels:
    """Each image as it is or mirrored left to right, with equal chance."""
    mirrored = _draws(seed, step, index)[:, 0] < 0.5
    return torch.where(sent(mirrored, images.device)[:, None, None, None], images.flip(-1), images)


def prepared_size(image_size: int) -> int:
    """The side of the images that random_crop is given: of those, image_size is the smallest crop."""
    return math.ceil(image_size / SMALLEST_CROP)


def random_crop(images: Prepared, *, image_size: int, seed: int, step: int, index: Int64[Tensor, "b"]) -> Cropped:
    """Crops for training a classifier, of square images of prepared_size: 0.8 to 1 of a side, at a uniform place.

    As published, an image is shrunk to a side that is uniform among image_size..prepared_size, and image_size pixels
    of it are kept. What was published shrinks the file's own image, once, with Pillow (halved by box filters, then
    bicubic), and crops along its long side too. This shrinks what has been cut to a square and shrunk by data.py
    before, with torch's antialiased bicubic filter. Waits for a GPU when index lies there.
    """
    largest = prepared_size(image_size)
    if images.shape[-1] != largest:
        raise ValueError(
            f"images of {images.shape[-1]} pixels: crops of {image_size} are taken from {largest}; prepare the data "
            f"set with --image-size {largest}"
        )
    draws = _draws(seed, step, index)
    sides = image_size + (draws[:, 1] * (largest - image_size + 1)).long()
    corners = (draws[:, 2:] * (sides - image_size + 1)[:, None]).long()
    cropped = images.new_empty(*images.shape[:2], image_size, image_size)
    for side in sides.unique().tolist():
        here = (sides == side).nonzero()[:, 0]
        top, left = sent(corners[here].T.contiguous(), images.device)
        places = sent(here, images.device)
        cropped[places] = _windows(_shrunk(images[places], side), top, left, image_size)
    return cropped


def whole(images: Prepared, *, image_size: int) -> Cropped:
    """What a classifier is tested on, of images of prepared_size: all of each, shrunk to image_size."""
    return _shrunk(images, image_size)


def _shrunk(images: Prepared, side: int) -> Cropped:
    if side == images.shape[-1]:
        return images
    shrunk = functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return shrunk.round().clamp(0, 255).to(torch.uint8)


def _windows(images: Prepared, top: Int64[Tensor, "b"], left: Int64[Tensor, "b"], size: int) -> Cropped:
    """size pixels a side of each image, from a corner of its own."""
    along = torch.arange(size, device=images.device)
    rows, columns = (top[:, None] + along)[:, None, :, None], (left[:, None] + along)[:, None, None, :]
    image, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return images[image[:, None, None, None], channel[None, :, None, None], rows, columns]


def _draws(seed: int, step: int, index: Int64[Tensor, "b"]) -> Float[Tensor, "b 4"]:
    """Of an example: one for its flip, and three for its crop."""
    return uniform(seed=seed, stream=AUGMENTATION, step=step, index=index, count=4)
