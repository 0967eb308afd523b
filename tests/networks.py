"""Small networks for tests, and what to feed them."""

from __future__ import annotations

import torch
from torch import nn

from diffusion.trunk import UNetConfig

BASE = UNetConfig(
    image_size=16, model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=1, attention_resolutions=(8, 4),
    num_heads=None, num_head_channels=16,
)  # fmt: skip


def randomized(network, seed=0):
    """No parameter at its initial value: zero-initialised layers would hide what is behind them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=2e-5):
    """Relative to the largest value there is: float32 sums of hundreds of terms, in another order."""
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"off by {error:.1e}"
