"""Does the FID's Inception give what clean-fid's and its own TorchScript program give, of a file in its layout?"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.metrics.frechet import frechet_distance
from diffusion.metrics.inception import FILES, InceptionFeatures, declare_missing_torchvision_operators
from diffusion.metrics.resize import resize_legacy_tensorflow
from diffusion.metrics.stats import GaussianStats
from tests.inception import inception_file

SIZE = 24


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the name clean-fid looks for."""
    file = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    file.write_bytes(inception_file())
    return file


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Some that differ more than noise does."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (40, 1, 1, 3)) + rng.integers(-60, 60, (40, SIZE, SIZE, 3))
    return flat.clip(0, 255).astype(np.uint8)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def features_of(file: Path, mode: str, images: np.ndarray):
    return InceptionFeatures(file.read_bytes(), mode=mode, weights_sha256=sha256(file))(images)


def clean_fid_features(file: Path, mode: str, images: np.ndarray) -> np.ndarray:
    """By clean-fid's own classes and resizers, image by image."""
    declare_missing_torchvision_operators()
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    network = InceptionV3W(str(file.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    resized = np.stack([build_resizer(mode)(image) for image in images])
    with torch.no_grad():
        return network(torch.from_numpy(resized).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("mode", ["legacy_tensorflow", "clean"])
def test_features_and_distances_are_clean_fids(torchscript, images, mode):
    ours, theirs = features_of(torchscript, mode, images).pool, clean_fid_features(torchscript, mode, images)
    assert theirs.std(axis=0).max() > 0.01  # images do differ in it
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    of_ours, of_theirs = ([GaussianStats.of(half[:, :64]) for half in (x[:20], x[20:])] for x in (ours, theirs))
    assert frechet_distance(*of_ours) == pytest.approx(frechet_distance(*of_theirs), rel=1e-6)


def test_probabilities_are_the_programs_own_without_a_bias(torchscript, images):
    found = features_of(torchscript, "legacy_tensorflow", images).probabilities
    program = torch.jit.load(io.BytesIO(torchscript.read_bytes())).eval()
    with torch.no_grad():
        expected = program(torch.from_numpy(images).permute(0, 3, 1, 2), no_output_bias=True).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_spatial_features_are_seven_channels_of_mixed_6_with_the_channel_moving_fastest(torchscript, images):
    spatial = features_of(torchscript, "legacy_tensorflow", images[:3]).spatial
    layers = torch.jit.load(io.BytesIO(torchscript.read_bytes())).eval().layers
    x = (resize_legacy_tensorflow(torch.from_numpy(images[:3]).permute(0, 3, 1, 2), 299) - 128) / 128
    with torch.no_grad():
        for name in ("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed"):
            x = getattr(layers, name)(x)
        for number in range(1, 6):
            x = getattr(layers, f"mixed_{number}")(x)
        expected = layers.mixed_6.conv(x)[:, :7].numpy().transpose(0, 2, 3, 1).reshape(3, 17 * 17 * 7)
    np.testing.assert_allclose(spatial, expected, rtol=1e-4, atol=1e-5)


def test_pytorch_fids_weights_give_clean_fids_features(tmp_path, images, monkeypatch):
    declare_missing_torchvision_operators()
    from cleanfid import inception_pytorch as theirs

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # the network without its download
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = theirs.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    monkeypatch.setattr(theirs, "fid_inception_v3", lambda: network)
    with torch.no_grad():
        from cleanfid.resize import build_resizer

        resized = np.stack([build_resizer("legacy_pytorch")(image) for image in images[:4]])
        model = theirs.InceptionV3(resize_input=False).eval()
        expected = model(torch.from_numpy(resized).permute(0, 3, 1, 2) / 255)[0].flatten(start_dim=1).numpy()
    found = features_of(file, "legacy_pytorch", images[:4])
    np.testing.assert_allclose(found.pool, expected, rtol=1e-4, atol=1e-5)
    assert found.spatial.shape == (4, 17 * 17 * 7)
    assert found.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_file_of_another_hash_is_refused_before_it_is_loaded(torchscript, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(ValueError, match=f"SHA-256 .*, not {FILES['clean'].sha256}, are not loaded"):
        InceptionFeatures(torchscript.read_bytes(), mode="clean")


@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_a_file_of_that_hash_that_holds_no_inception_is_refused(mode):
    other = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), other)
    for content in (other.getvalue(), b"no archive", b""):
        with pytest.raises(ValueError, match=r"no .* of .*Inception"):
            InceptionFeatures(content, mode=mode, weights_sha256=hashlib.sha256(content).hexdigest())
