"""Do the networks have the published parameters, name by name? Their names and shapes are in data/."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from diffusion.unet import UNet, UNetConfig

DATA = Path(__file__).parent / "data"
IMAGENET64 = {"image_size": 64, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4)}

PUBLISHED = {
    "cifar10_uncond_50M_500K": (UNetConfig(image_size=32, num_res_blocks=3, dropout=0.3), 52_546_438),
    "iddpm_scaling_64ch": (UNetConfig(**IMAGENET64, model_channels=64), 30_303_494),
    "imagenet64_cond_270M_250K": (UNetConfig(**IMAGENET64, model_channels=192, num_classes=1000), 273_049_350),
    "lsun_uncond_100M_1200K_bs128": (
        UNetConfig(
            image_size=256,
            channel_mult=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(16,),
            num_heads=1,
            conditioning="additive",
        ),
        113_676_678,
    ),
    "64x64_diffusion": (
        UNetConfig(
            **IMAGENET64,
            model_channels=192,
            attention_resolutions=(32, 16, 8),
            num_heads=None,
            num_head_channels=64,
            dropout=0.1,
            num_classes=1000,
            resblock_updown=True,
        ),
        295_904_454,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_the_published_parameter_names_and_shapes(name):
    config, _ = PUBLISHED[name]
    with torch.device("meta"):
        network = UNet(config, out_channels=6)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_is_as_large_as_its_paper_prints(name):
    config, count = PUBLISHED[name]
    with torch.device("meta"):
        network = UNet(config, out_channels=6)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
