"""The compute of the published networks, as another program counted it, and as the papers print it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.flops import Compute, compute_of
from diffusion.published import PUBLISHED

# In 1e9 multiply-accumulates of a forward pass. IDDPM prints 39 for its ImageNet-64 network, DiT 1120 for ADM's at 256.
GMACS = {
    "imagenet64_uncond_100M_1500K": 39.7,
    "cifar10_uncond_50M_500K": 8.4,
    "imagenet64_cond_270M_250K": 89.1,
    "upsample_cond_500K": 560.0,
    "64x64_diffusion": 109.7,
    "128x128_diffusion": 306.9,
    "256x256_diffusion": 1119.8,
    "64_256_upsampler": 631.6,
    "64x64_classifier": 19.1,
    "256x256_classifier": 73.3,
}


@pytest.mark.parametrize("name", GMACS)
def test_a_published_networks_compute_is_what_was_counted_elsewhere(name: str) -> None:
    counted = compute_of(PUBLISHED[name].build)
    assert counted.forward_macs / 1e9 == pytest.approx(GMACS[name], abs=0.051)


def test_compute_is_counted_by_hand() -> None:
    class One(nn.Conv2d):
        def example_inputs(self, batch_size: int) -> dict[str, torch.Tensor]:
            return {"input": torch.zeros(batch_size, 3, 8, 8)}

    counted = compute_of(lambda: One(3, 5, 3, padding=1))  # type: ignore[arg-type,return-value]
    macs = 8 * 8 * 5 * 3 * 9
    assert counted == Compute(forward_macs=macs)
    assert (counted.forward_flops, counted.training_macs, counted.training_flops) == (2 * macs, 3 * macs, 6 * macs)
