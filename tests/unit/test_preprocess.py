"""The pixels of an image are the papers' pixels, whatever mode, depth and orientation its file has."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.preprocess import FORMATS, ImageRefused, decode, resize_center_crop

LOSSLESS = tuple(kind for kind in FORMATS if kind not in {"JPEG", "GIF"})
EXIF_ORIENTATION = 0x0112

sides = st.integers(1, 70)
sizes = st.integers(1, 24)


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(decode(content, name="x", channels=3))


def gray(content: bytes) -> np.ndarray:
    return np.asarray(decode(content, name="x", channels=1))


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_format_gives_back_the_pixels_it_was_given(kind: str) -> None:
    pixels = noise(9, 7, 3)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(pixels), kind, **options)), pixels)


def test_a_jpeg_is_near_what_it_was_given_and_a_gif_is_exact_in_gray() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(gray(encoded(Image.fromarray(ramp), "GIF")), ramp)
    # At quality 95 a coefficient is rounded to a few levels at most.
    assert np.abs(gray(encoded(Image.fromarray(ramp), "JPEG", quality=95)).astype(int) - ramp).max() <= 8


def test_gray_is_repeated_over_three_channels_and_colour_becomes_luma() -> None:
    pixels = noise(5, 6)
    np.testing.assert_array_equal(rgb(encoded(Image.fromarray(pixels))), np.stack([pixels] * 3, axis=-1))
    colours = noise(5, 6, 3)
    luma = colours @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    # Rounded, from coefficients of 16 bits.
    assert np.abs(gray(encoded(Image.fromarray(colours))) - luma).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    pixels = noise(8, 8, 4 if mode == "RGBA" else 2)
    alpha = pixels[..., -1:] / 255
    expected = np.broadcast_to(pixels[..., :-1] * alpha + 255 * (1 - alpha), (8, 8, 3))
    assert np.abs(rgb(encoded(Image.fromarray(pixels, mode))) - expected).max() <= 1  # 8-bit arithmetic


@pytest.mark.parametrize("transparent", [0, bytes([0, 255])])
def test_a_transparent_palette_entry_becomes_white(transparent: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    content = encoded(image, transparency=transparent)
    assert rgb(content).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_a_palette_becomes_the_colours_it_lists() -> None:
    image = Image.fromarray(np.array([[0, 1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert rgb(encoded(image, kind)).tolist() == [[[10, 20, 30], [40, 50, 60], [10, 20, 30]]], kind


def test_the_colour_a_png_declares_transparent_becomes_white() -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert rgb(encoded(Image.fromarray(pixels), transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    assert gray(encoded(Image.fromarray(pixels[..., 0]), transparency=1)).tolist() == [[255, 4]]


def test_one_bit_becomes_black_and_white() -> None:
    bits = np.array([[True, False], [False, True]])
    for kind in ("PNG", "BMP", "TIFF", "PPM", "GIF"):
        assert gray(encoded(Image.fromarray(bits), kind)).tolist() == [[255, 0], [0, 255]], kind


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("YCbCr", "TIFF")])
def test_print_and_video_colours_become_rgb(mode: str, kind: str) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 60))
    # Rounded on the way to the mode and back, and by JPEG.
    assert np.abs(rgb(encoded(red.convert(mode), kind)).astype(int) - np.asarray(red)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_gray_are_divided_by_257_and_rounded_down(kind: str) -> None:
    values = np.array([[0, 1, 256, 257, 511, 514, 32896, 65534, 65535]], np.uint16)
    assert gray(encoded(Image.fromarray(values), kind)).tolist() == [[0, 0, 0, 1, 1, 2, 128, 254, 255]]


def test_sixteen_bits_in_either_byte_order_and_with_a_transparent_value_are_read() -> None:
    values = np.array([[257, 514, 65535]], np.uint16)
    assert gray(encoded(Image.fromarray(values.astype(">u2")), "TIFF")).tolist() == [[1, 2, 255]]
    assert gray(encoded(Image.fromarray(values), transparency=514)).tolist() == [[1, 255, 255]]


def test_thirty_two_bits_are_read_while_their_values_are_those_of_sixteen() -> None:
    values = np.array([[0, 257, 65535]], np.int32)
    assert gray(encoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 1, 255]]


UPRIGHT = {  # how EXIF 2.3 says a stored image is brought upright, as numpy says it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_brought_upright(orientation: int, kind: str) -> None:
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(Image.fromarray(pixels), kind, exif=exif, **options)
    np.testing.assert_array_equal(rgb(content), UPRIGHT[orientation](pixels))


def test_a_jpeg_is_brought_upright() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    image = Image.new("RGB", (16, 8), "red")
    assert rgb(encoded(image, "JPEG", exif=exif)).shape == (16, 8, 3)


def test_a_jpeg_that_carries_a_preview_is_its_first_picture() -> None:
    first, preview = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (4, 2), "blue")
    content = encoded(first, "MPO", save_all=True, append_images=[preview])
    np.testing.assert_array_equal(rgb(content), rgb(encoded(first, "JPEG")))


def test_a_file_is_known_by_its_content_not_by_its_name() -> None:
    content = encoded(Image.new("RGB", (3, 2)))
    assert decode(content, name="picture.jpg", channels=3).size == (3, 2)


def test_a_refusal_survives_the_way_between_processes_and_stays_on_one_line() -> None:
    refused = pickle.loads(pickle.dumps(ImageRefused("a\nok: b.png", "the file is empty")))
    assert (refused.name, refused.reason) == ("a\nok: b.png", "the file is empty")
    assert str(refused) == r"'a\nok: b.png': the file is empty"


def halved(pixels: np.ndarray) -> np.ndarray:
    """Averages of 2x2 pixels by integer arithmetic: across, then down, each rounded, with halves rounded up."""
    wide = pixels.astype(int)
    across = (wide[:, 0::2] + wide[:, 1::2] + 1) // 2
    return ((across[0::2] + across[1::2] + 1) // 2).astype(np.uint8)


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_a_power_of_two_is_reached_by_averages_of_four_pixels_alone(halvings: int) -> None:
    pixels = noise(8 * 2**halvings, 8 * 2**halvings, 3)
    ours = resize_center_crop(Image.fromarray(pixels), 8)
    for _ in range(halvings):
        pixels = halved(pixels)
    np.testing.assert_array_equal(ours, pixels)


def test_averages_that_need_no_rounding_are_exact() -> None:
    pixels = np.repeat(np.repeat(noise(8, 8, 3), 4, axis=0), 4, axis=1)
    np.testing.assert_array_equal(resize_center_crop(Image.fromarray(pixels), 8), noise(8, 8, 3))


@pytest.mark.parametrize(
    ("width", "height", "halfway", "scaled"),
    [
        (100, 63, (50, 31), (26, 16)),  # 31 < 2 x 16: halved once; 50 x 16/31 = 25.8
        (33, 31, (33, 31), (17, 16)),  # not halved
        (32, 65, (16, 32), (16, 32)),  # 65 // 2: a row is squeezed, not dropped
        (10, 11, (10, 11), (16, 18)),  # grows; 17.6 is rounded up
        (64, 16, (64, 16), (64, 16)),
    ],
)
def test_an_image_is_halved_scaled_and_cropped_as_published(
    width: int, height: int, halfway: tuple[int, int], scaled: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(height, width, 3))
    by_hand = image if halfway == image.size else image.resize(halfway, Image.Resampling.BOX)
    by_hand = by_hand.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - 16) // 2, (scaled[1] - 16) // 2
    by_hand = by_hand.crop((left, top, left + 16, top + 16))
    np.testing.assert_array_equal(resize_center_crop(image, 16), np.asarray(by_hand))


@given(width=sides, height=sides, size=sizes, mode=st.sampled_from(["L", "RGB"]))
def test_the_result_is_always_a_square_of_the_size_asked_for(width: int, height: int, size: int, mode: str) -> None:
    pixels = resize_center_crop(Image.new(mode, (width, height)), size)
    assert pixels.shape == (size, size, len(mode))
    assert pixels.dtype == np.uint8
    assert pixels.flags.owndata
    assert pixels.flags.writeable


@given(width=sides, height=sides, size=sizes, level=st.integers(0, 255))
def test_a_constant_image_stays_constant(width: int, height: int, size: int, level: int) -> None:
    assert (resize_center_crop(Image.new("L", (width, height), level), size) == level).all()


@given(size=sizes, seed=st.integers(0, 2**32 - 1), channels=st.sampled_from([1, 3]))
def test_an_image_of_that_size_comes_back_bit_for_bit(size: int, seed: int, channels: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    np.testing.assert_array_equal(resize_center_crop(image, size), pixels)


def test_the_crop_is_from_the_middle_and_an_odd_pixel_falls_to_the_far_side() -> None:
    ramp = np.tile(np.arange(91, dtype=np.uint8), (20, 1))
    across = resize_center_crop(Image.fromarray(ramp), 20)[..., 0]
    down = resize_center_crop(Image.fromarray(ramp.T), 20)[..., 0]
    assert across[0].tolist() == list(range(35, 55))  # (91 - 20) // 2 = 35 before it, 36 after
    np.testing.assert_array_equal(down, across.T)


def test_a_strip_that_would_grow_without_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1000000x1 would be 64000000x64 before it is cropped: more than"):
        resize_center_crop(Image.new("L", (1_000_000, 1)), 64)


def test_a_size_of_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        resize_center_crop(Image.new("L", (4, 4)), 0)
