"""Every option of every network, against the papers' networks written down a second time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.guidance import log_probability_gradient
from diffusion.precision import to_inference_dtype
from diffusion.superres import SuperResConfig, SuperResUNet, enlarged
from diffusion.unet import UNet
from tests.networks import BASE, close, draw, randomized
from tests.reference_networks import Reference

OPTIONS = {
    "head channels": {},
    "heads": {"num_heads": 4, "num_head_channels": None},
    "heads on the way up": {"num_heads": 4, "num_head_channels": None, "num_heads_upsample": 2},
    "new layout": {"attention_layout": "new"},
    "additive": {"conditioning": "additive"},
    "pool": {"resampling": "pool"},
    "residual": {"resampling": "residual"},
    "rescaled": {"residual_scale": "1/sqrt(2)"},
    "fraction": {"model_channels": 64, "channel_mult": (0.5, 1, 1.5)},
    "classes": {"num_classes": 7},
    "deep": {"num_res_blocks": 3},
    "all at once": {
        "num_res_blocks": 2, "attention_layout": "new", "resampling": "residual", "residual_scale": "1/sqrt(2)",
        "num_classes": 5, "attention_resolutions": (16, 8, 4), "channels": 1,
    },
}  # fmt: skip


def reference_of(network, config):
    return Reference(
        network.state_dict(),
        image_size=config.image_size,
        levels=len(config.channel_mult),
        num_res_blocks=config.num_res_blocks,
        attention_at=config.attention_resolutions,
        model_channels=config.model_channels,
        heads=lambda channels, way_up: (
            channels // config.num_head_channels
            if config.num_head_channels
            else (config.num_heads_upsample or config.num_heads) if way_up else config.num_heads
        ),
        resampling=config.resampling,
        layout=config.attention_layout,
        additive=config.conditioning == "additive",
        rescale=config.residual_scale != "1",
    )  # fmt: skip


def outputs_of_blocks(network):
    """Filled, when the network runs, with what leaves each of its blocks and of the layers they are made of."""
    seen = {}
    blocks = {"middle_block": network.middle_block}
    for part in ("input_blocks", "output_blocks"):
        blocks |= {f"{part}.{number}": block for number, block in enumerate(getattr(network, part, []))}
    blocks |= {f"{name}.{number}": layer for name, block in blocks.items() for number, layer in enumerate(block)}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    return seen


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_unet_computes_what_the_papers_do_in_every_block(option, memory_format):
    config = replace(BASE, **OPTIONS[option])
    network = randomized(UNet(config, out_channels=2 * config.channels)).to(memory_format=memory_format)
    x, t = draw(3, config.channels, 16, 16), torch.tensor([0.0, 3.25, 999.75])
    y = torch.tensor([0, 3, 4]) if config.num_classes else None
    seen = outputs_of_blocks(network)
    reference = reference_of(network, config)
    expected = reference.unet(x, t, y)
    with torch.no_grad():
        found = network(x.contiguous(memory_format=memory_format), t, y)
        assert seen.keys() == reference.seen.keys()
        for name, output in seen.items():
            close(output, reference.seen[name])
        close(found, expected)
        # In float64 nothing but the float32 sinusoids, which both have, is left to round.
        close(network.double()(x.double(), t, y), expected, 1e-12)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize("resampling", ["residual", "conv"])
def test_a_classifier_computes_what_the_papers_do_and_so_does_its_gradient(pool, resampling):
    encoder = replace(BASE, resampling=resampling)
    network = randomized(NoisyClassifier(ClassifierConfig(encoder=encoder, num_classes=6, pool=pool)))
    x, t, y = draw(2, 3, 16, 16), torch.tensor([1.0, 500.0]), torch.tensor([5, 0])
    reference, seen = reference_of(network, encoder), outputs_of_blocks(network)
    x_reference = x.double().requires_grad_()
    expected = reference.classifier(x_reference, t, pool=pool, head_channels=16)
    close(network(x, t), expected)
    for name, output in seen.items():
        close(output, reference.seen[name])
    log_p = functional.log_softmax(expected, dim=1)
    (gradient,) = torch.autograd.grad(log_p[0, 5] + log_p[1, 0], x_reference)
    close(log_probability_gradient(network, x_t=x, model_t=t, y=y), gradient)


def test_a_superresolution_network_sees_the_small_image_enlarged_beside_x():
    config = SuperResConfig(unet=replace(BASE, num_classes=3), small_size=4)
    network = randomized(SuperResUNet(config, out_channels=6))
    x, low_res, t, y = draw(2, 3, 16, 16), draw(2, 3, 4, 4, seed=2), torch.tensor([1.0, 2.0]), torch.tensor([0, 2])
    # Bilinear by hand: pixel centres of both images cover the same square, and edges repeat.
    at = ((torch.arange(16) + 0.5) / 4 - 0.5).clamp(0, 3).double()
    low, high, share = at.floor().long(), at.ceil().long(), at - at.floor()
    rows = low_res.double()[:, :, low] * (1 - share)[:, None] + low_res.double()[:, :, high] * share[:, None]
    large = rows[..., low] * (1 - share) + rows[..., high] * share
    close(enlarged(low_res, x), large)
    expected = reference_of(network, config.unet).unet(torch.cat([x.double(), large], dim=1), t, y)
    close(network(x, t, y, low_res=low_res), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 4e-2)])
def test_16_bit_weights_change_the_output_by_their_rounding_alone(precision, tolerance):
    config = replace(BASE, resampling="residual", num_classes=7)
    network = randomized(UNet(config, out_channels=6))
    x, t, y = draw(3, 3, 16, 16), torch.tensor([0.0, 3.25, 999.75]), torch.tensor([0, 3, 4])
    expected = reference_of(network, config).unet(x, t, y)
    dtypes = {name: tensor.dtype for name, tensor in to_inference_dtype(network, precision).state_dict().items()}
    half = {name for name, dtype in dtypes.items() if dtype != torch.float32}
    blocks = ("input_blocks.", "middle_block.", "output_blocks.")
    convolutions = (".in_layers.2", ".out_layers.3", ".skip_connection", ".qkv", ".proj_out", "input_blocks.0.0")
    assert half == {
        name for name in dtypes if name.startswith(blocks) and name.rpartition(".")[0].endswith(convolutions)
    }
    with torch.no_grad():
        found = network(x, t, y)
    assert found.dtype == torch.float32
    close(found, expected, tolerance)
