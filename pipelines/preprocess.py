"""How does an image file's content become the pixels a network sees? As in the papers' code, or not at all."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError, features

VERSION = 1  # raised when the same file would become other pixels
Channels = Literal[1, 3]

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "TIFF")
"""The formats that are read, in Pillow's words; a file is known by its content, not by its name."""
MAX_PIXELS = 2**27
"""The largest image that is decoded, width x height. Above 178,956,970 pixels Pillow refuses by itself."""
MAX_RESIZED_PIXELS = 2**27
"""The largest image on the way to a crop: a strip of 1 x 1,000,000 pixels would grow to 64 x 64,000,000."""
WHITE = (255, 255, 255, 255)
"""What shows through where an image is transparent."""
LEVELS_16_TO_8 = 257  # 65535 / 255, so that white stays white; every value is rounded down


class ImageRefused(ValueError):
    """One image that cannot be used. The name is shown as Python writes it: nothing in it can begin a line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name!r}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageRefused], tuple[str, str]]:
        return type(self), (self.name, self.reason)


def decode(content: bytes, *, name: str, channels: Channels, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file's content, upright, opaque and 8 bits deep: mode L for one channel, RGB for three.

    EXIF's orientation is applied and what is transparent composited on white. 16 bits of gray become value // 257;
    16 bits of colour lose their lower byte, which is Pillow's way. Palettes, 1 bit, CMYK and YCbCr are converted by
    Pillow. Of a JPEG with more pictures inside (a camera's preview, a depth map) the first is taken, as viewers do.
    Raises ImageRefused for anything that is not one whole image: damaged or cut files, animations, floating point,
    and more than max_pixels, which the header tells before anything is decoded.
    """
    if not content:
        raise ImageRefused(name, "the file is empty (zero bytes)")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_header(image, name=name, max_pixels=max_pixels)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_8_bits(image, name=name).convert("L" if channels == 1 else "RGB")
    except (ImageRefused, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefused(name, f"too large to be decoded: {error}") from error
    except UnidentifiedImageError as error:
        begins = content[:8].hex(" ")
        reason = f"no whole image in a format that is read ({', '.join(FORMATS)}); it begins with {begins}"
        raise ImageRefused(name, reason) from error
    except Exception as error:  # what damaged or hostile bytes make Pillow raise is not a closed list
        raise ImageRefused(name, f"damaged or cut short: {one_line(error)}") from error


def resize_center_crop(image: Image.Image, size: int) -> np.ndarray:
    """The square in the middle, scaled to uint8 (size, size, channels), bit for bit as both papers' code does it.

    Halved by averages while the short side is at least twice the size, then resized by BICUBIC so that the short side
    is the size, then cropped; a small image grows. Raises ValueError for one so long and thin that it would not fit.
    """
    if size < 1:
        raise ValueError(f"size={size}: an image has at least 1 pixel a side")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {image.width}x{image.height} would be {width}x{height} before it is cropped: "
            f"more than {MAX_RESIZED_PIXELS:,} pixels; crop it yourself first"
        )
    pixels = np.asarray(image.resize((width, height), resample=Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size].reshape(size, size, -1).copy()


def made_with() -> dict[str, str]:
    """What pixels depend on besides the file: this module, Pillow, and the decoders inside it."""
    decoders = {name: str(features.version(name)) for name in ("jpg", "webp", "libtiff")}
    return {"preprocessing": str(VERSION), "pillow": PIL.__version__, **decoders}


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says: enough for a message that quotes it."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check_header(image: Image.Image, *, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRefused(name, f"{width}x{height} are {width * height:,} pixels, more than max_pixels={max_pixels:,}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a JPEG, whose other pictures no viewer shows
        raise ImageRefused(name, f"holds {frames} frames: one image is needed; save the one you mean by itself")
    if image.mode == "F":
        raise ImageRefused(name, "holds floating point values, whose range no header tells; save it with 8 or 16 bits")


def _to_8_bits(image: Image.Image, *, name: str) -> Image.Image:
    """The same image without transparency and without 16-bit values, in a mode Pillow converts by itself."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_gray(image, name=name)
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, WHITE)
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _scale_gray(image: Image.Image, *, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        found = f"{values.min()}..{values.max()}"
        raise ImageRefused(name, f"gray values are {found}, outside the 0..65535 of 16 bits; scale them first")
    gray = (values // LEVELS_16_TO_8).astype(np.uint8)
    if "transparency" in image.info:  # one value that stands for nothing
        gray[values == image.info["transparency"]] = WHITE[0]
    return Image.fromarray(gray)
