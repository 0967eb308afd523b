"""Does the U-Net compute what the papers describe?"""

import math

import pytest
import torch

from diffusion.layers import timestep_embedding, timestep_frequencies
from diffusion.unet import UNet, UNetConfig
from tests.networks import draw, randomized

SMALL = {"image_size": 8, "channels": 1, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}


def small_config(**changes):
    return UNetConfig(**{**SMALL, "attention_resolutions": (4,), "num_heads": 2, **changes})


def test_t_is_embedded_as_cosines_then_sines_of_falling_frequencies():
    dim, ts = 32, [0.0, 0.25, 7.0, 999.75]
    found = timestep_embedding(torch.tensor(ts), timestep_frequencies(dim))
    for row, t in zip(found, ts, strict=True):
        phases = [t * 10000 ** (-k / (dim // 2)) for k in range(dim // 2)]
        expected = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
        # float32 rounds a phase of up to 1000 by up to 6e-5.
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


def test_steps_between_whole_ones_are_told_apart():
    network = randomized(UNet(small_config(), out_channels=1))
    x = draw(3, 1, 8, 8)
    assert not torch.equal(network(x, torch.full((3,), 5.0)), network(x, torch.full((3,), 5.25)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 3, "channel_mult": (1, 2, 2), "num_res_blocks": 2, "attention_resolutions": ()},
        {"resampling": "residual", "num_heads": None, "num_head_channels": 16},
        {"conditioning": "additive", "attention_resolutions": (8, 4)},
    ],
)
def test_every_parameter_of_a_network_takes_part(changes):
    config = small_config(**changes)
    network = randomized(UNet(config, out_channels=config.channels))
    network(draw(2, config.channels, 8, 8), torch.tensor([1.0, 2.0])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_of_a_batch_do_not_see_one_another():
    network = randomized(UNet(small_config(), out_channels=1))
    x, t = draw(4, 1, 8, 8), torch.tensor([1.0, 20.0, 300.0, 999.0])
    # One image alone goes through other convolution kernels: the same sums in another order.
    torch.testing.assert_close(network(x, t)[2:3], network(x[2:3], t[2:3]), rtol=1e-4, atol=1e-5)


def test_the_class_changes_the_prediction_and_must_be_given_exactly_when_there_are_classes():
    x, t = draw(2, 1, 8, 8), torch.tensor([1.0, 1.0])
    conditional = randomized(UNet(small_config(num_classes=10), out_channels=1))
    assert not torch.equal(conditional(x, t, torch.tensor([0, 0])), conditional(x, t, torch.tensor([1, 1])))
    with pytest.raises(ValueError, match="y was not given"):
        conditional(x, t)
    with pytest.raises(ValueError, match="num_classes=None"):
        UNet(small_config(), out_channels=1)(x, t, torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, r"48 channels: GroupNorm needs multiples of 32"),
        ({"image_size": 12, "channel_mult": (1, 1, 1, 1)}, r"image_size=12 cannot be halved 3 times"),
        ({"attention_resolutions": (16, 4)}, r"\(8, 4\) pixels wide, none is 16"),
        ({"num_heads": 3}, r"num_heads=3: must divide .* has 64"),
        ({"num_head_channels": 16}, r"set one of them, and the other to null"),
        ({"num_heads": None, "num_head_channels": 48}, r"num_head_channels=48: must divide"),
        ({"dropout": 1.0}, r"dropout=1.0"),
        ({"num_res_blocks": 0}, r"num_res_blocks=0"),
        ({"channel_mult": ()}, r"channel_mult=\(\)"),
        ({"num_classes": 0}, r"num_classes=0"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)
