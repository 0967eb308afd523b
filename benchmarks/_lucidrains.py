"""lucidrains' U-Net, as large as ours is wide, and what it costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.flops import Cost
from diffusion.trunk import UNetConfig


def lucidrains(config: UNetConfig) -> nn.Module:
    """Its U-Net with as many levels and the same base width: another function."""
    from denoising_diffusion_pytorch import Unet

    mults = tuple(int(mult) for mult in config.channel_mult)
    attention = tuple(size in config.attention_resolutions for size in config.sizes)
    return Unet(
        config.model_channels, dim_mults=mults, full_attn=attention, attn_heads=4,
        attn_dim_head=config.model_channels // 4, flash_attn=False,
    )  # fmt: skip


def cost_of_lucidrains(config: UNetConfig) -> Cost:
    """Counted on one image."""
    network, size = lucidrains(config), config.image_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, size, size), torch.zeros(1))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)
