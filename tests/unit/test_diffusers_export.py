"""A network exported to diffusers is the same function there, or says why it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.diffusers_export import to_diffusers
from diffusion.metrics.inception import declare_missing_torchvision_operators
from diffusion.published import PUBLISHED, PublishedModel
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.unet import UNet
from tests.networks import BASE, close, draw, randomized

declare_missing_torchvision_operators()  # diffusers imports torchvision where it is installed
from diffusers import UNet2DModel  # noqa: E402


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_layout": "new", "num_classes": 7},
        {"resampling": "residual", "attention_resolutions": (8,)},
        {"conditioning": "additive", "num_res_blocks": 2},
        {"channel_mult": (1, 2, 2), "num_heads": 4, "num_head_channels": None},
    ],
)
def test_an_exported_network_computes_the_same(changes):
    config = replace(BASE, **changes)
    network = randomized(UNet(config, out_channels=6))
    exported = to_diffusers(network)
    theirs = UNet2DModel(**exported.config).eval()
    theirs.load_state_dict(exported.weights)
    x, t = draw(3, 3, 16, 16), torch.tensor([0.0, 3.25, 999.75])
    y = torch.tensor([0, 3, 6]) if config.num_classes else None
    with torch.no_grad():
        close(network(x, t, y), theirs(x, t, class_labels=y).sample.double())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resampling": "pool"}, "resampling='pool'"),
        ({"residual_scale": "1/sqrt(2)"}, "residual_scale"),
        ({"channel_mult": (2, 1, 1)}, "does not begin with 1"),
        ({"num_heads": 4, "num_head_channels": None}, r"heads of \[16, 24\] channels"),
    ],
)
def test_what_diffusers_cannot_express_is_named(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        to_diffusers(UNet(replace(BASE, **changes), out_channels=3))


def test_a_superresolution_network_is_not_one_of_diffusers():
    with pytest.raises(ValueError, match="a small image beside x_t"):
        to_diffusers(SuperResUNet(SuperResConfig(unet=BASE, small_size=4), out_channels=3))


def test_which_published_networks_can_be_exported():
    def can_be(model: PublishedModel) -> bool:
        with torch.device("meta"):
            network = model.build()
        try:
            to_diffusers(network)
        except ValueError:
            return False
        return True

    unets = {
        name
        for name, model in PUBLISHED.items()
        if not isinstance(model.network, SuperResConfig) and "class" not in name
    }
    cannot = {name for name in unets if not can_be(PUBLISHED[name])}
    # Four heads of 96 and of 128 channels; the first level half as wide as the embedding of t.
    imagenet64 = {name for name in unets if name.startswith(("imagenet64", "iddpm_scaling"))}
    assert cannot == imagenet64 | {"128x128_diffusion", "512x512_diffusion"}
