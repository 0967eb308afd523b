"""Which of our U-Nets is also a UNet2DModel of diffusers, and with which weights? Exactly the same function, or none.

Not all are: diffusers has one number of channels a head for the whole network, begins its embedding of t with the first
level's width, and knows neither resampling without convolutions nor scaled sums on the way down and up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.layers import NORM_GROUPS, AttentionBlock, AttentionLayout, Downsample, ResBlock, Upsample
from diffusion.superres import SuperResUNet
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet


@dataclass(frozen=True)
class DiffusersUNet:
    """diffusers.UNet2DModel(**config) with load_state_dict(weights) is the network that was exported.

    Called as model(x_t, schedule.model_t(t), class_labels=y).
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def to_diffusers(network: UNet) -> DiffusersUNet:
    """The network as a UNet2DModel. Raises ValueError that names every setting diffusers cannot express."""
    config = network.config
    _check(network)
    attends = [size in config.attention_resolutions for size in config.sizes]
    kinds = [_block_kind(config, attention) for attention in attends]
    described = {
        "sample_size": config.image_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "down_block_types": tuple(f"{kind}DownBlock2D".replace("ResnetDown", "ResnetDownsample") for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D".replace("ResnetUp", "ResnetUpsample") for kind in reversed(kinds)),
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "downsample_type": "resnet" if config.resampling == "residual" else "conv",
        "upsample_type": "resnet" if config.resampling == "residual" else "conv",
        "dropout": config.dropout,
        "attention_head_dim": _head_channels(config).pop(),
        "norm_num_groups": NORM_GROUPS,
        "attn_norm_num_groups": NORM_GROUPS,  # otherwise the middle's attention has no norm
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if config.conditioning == "adagn" else "default",
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "num_class_embeds": config.num_classes,
    }
    return DiffusersUNet(described, dict(_weights(network)))


def _check(network: UNet) -> None:
    config = network.config
    problems = []
    if isinstance(network, SuperResUNet):
        problems.append("a small image beside x_t")
    if config.resampling == "pool":
        problems.append("model.resampling='pool'")
    if config.residual_scale != "1":
        problems.append(f"model.residual_scale={config.residual_scale!r}")
    if config.channel_mult[0] != 1:
        problems.append(f"model.channel_mult={config.channel_mult}, which does not begin with 1")
    if len(_head_channels(config)) > 1:
        problems.append(f"heads of {sorted(_head_channels(config))} channels (model.num_heads={config.num_heads})")
    if problems:
        raise ValueError(f"diffusers' UNet2DModel cannot express {'; '.join(problems)}")


def _head_channels(config: UNetConfig) -> set[int]:
    levels = zip(config.sizes, config.widths, strict=True)
    widths = {width for size, width in levels if size in config.attention_resolutions}
    both = [(width, way_up) for width in widths for way_up in (False, True)] + [(config.widths[-1], False)]
    return {width // config.heads(width, way_up=way_up) for width, way_up in both}


def _block_kind(config: UNetConfig, attention: bool) -> str:
    if attention:
        return "Attn"
    return "Resnet" if config.resampling == "residual" else ""


def _weights(network: UNet) -> Iterator[tuple[str, Tensor]]:
    blocks = len(network.config.channel_mult)
    inputs: Iterator[Any] = iter(network.input_blocks)  # Any: torch's containers do not know what they hold
    outputs: Iterator[Any] = iter(network.output_blocks)
    middle: list[Any] = list(network.middle_block)
    yield from _renamed(network.time_embed[0], "time_embedding.linear_1")
    yield from _renamed(network.time_embed[2], "time_embedding.linear_2")
    if network.config.num_classes is not None:
        yield from _renamed(network.label_emb, "class_embedding")
    yield from _renamed(next(inputs)[0], "conv_in")
    for level in range(blocks):
        for number in range(network.config.num_res_blocks):
            yield from _layers(next(inputs), f"down_blocks.{level}", number)
        if level < blocks - 1:
            yield from _resampler(next(inputs)[0], f"down_blocks.{level}.downsamplers.0")
    yield from _residual(middle[0], "mid_block.resnets.0")
    yield from _attention(middle[1], "mid_block.attentions.0")
    yield from _residual(middle[2], "mid_block.resnets.1")
    for level in range(blocks):
        for number in range(network.config.num_res_blocks + 1):
            block = list(next(outputs))
            if level < blocks - 1 and number == network.config.num_res_blocks:
                yield from _resampler(block.pop(), f"up_blocks.{level}.upsamplers.0")
            yield from _layers(block, f"up_blocks.{level}", number)
    yield from _renamed(network.out[0], "conv_norm_out")
    yield from _renamed(network.out[2], "conv_out")


def _layers(block: Any, name: str, number: int) -> Iterator[tuple[str, Tensor]]:
    """A residual block, and attention if there is one."""
    yield from _residual(block[0], f"{name}.resnets.{number}")
    if len(block) > 1:
        yield from _attention(block[1], f"{name}.attentions.{number}")


def _residual(block: ResBlock, name: str) -> Iterator[tuple[str, Tensor]]:
    yield from _renamed(block.in_layers[0], f"{name}.norm1")
    yield from _renamed(block.in_layers[2], f"{name}.conv1")
    yield from _renamed(block.emb_layers[1], f"{name}.time_emb_proj")
    yield from _renamed(block.out_layers[0], f"{name}.norm2")
    yield from _renamed(block.out_layers[3], f"{name}.conv2")
    yield from _renamed(block.skip_connection, f"{name}.conv_shortcut")


def _attention(block: AttentionBlock, name: str) -> Iterator[tuple[str, Tensor]]:
    yield from _renamed(block.norm, f"{name}.group_norm")
    for part, rows in zip("qkv", _split_qkv(block), strict=True):
        yield f"{name}.to_{part}.weight", block.qkv.weight.detach()[rows, :, 0]
        assert block.qkv.bias is not None
        yield f"{name}.to_{part}.bias", block.qkv.bias.detach()[rows]
    yield f"{name}.to_out.0.weight", block.proj_out.weight.detach()[:, :, 0]
    assert block.proj_out.bias is not None
    yield f"{name}.to_out.0.bias", block.proj_out.bias.detach()


def _split_qkv(block: AttentionBlock) -> Tensor:
    """Which rows of qkv are q, k and v, head by head: (3, channels)."""
    rows = torch.arange(block.qkv.out_channels)
    layout: AttentionLayout = block.layout
    if layout == "legacy":
        return rows.reshape(block.num_heads, 3, -1).transpose(0, 1).reshape(3, -1)
    return rows.reshape(3, -1)


def _resampler(block: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(block, ResBlock):
        yield from _residual(block, name)
    elif isinstance(block, Downsample):
        yield from _renamed(block.op, f"{name}.conv")
    elif isinstance(block, Upsample) and block.conv is not None:
        yield from _renamed(block.conv, f"{name}.conv")


def _renamed(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    for entry, tensor in module.state_dict().items():
        yield f"{name}.{entry}", tensor
