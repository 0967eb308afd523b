"""The same U-Net computed the way guided-diffusion computes it: the yardstick that ratios are taken against.

Written from the description of that code, not copied: attention by two einsums, always run a second time in the
backward pass; a SiLU and a projection of the embedding in every block; separate norm, scale, shift and activation;
images in contiguous memory. What is left of ours is the classifier's attention pool.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.classifier import NoisyClassifier
from diffusion.layers import AttentionBlock, ResBlock, resampled
from diffusion.unet import UNet

N = TypeVar("N", UNet, NoisyClassifier)


class PublishedAttention(AttentionBlock):
    """See the module."""

    def forward(self, x: Tensor) -> Tensor:
        """Always run twice in training."""
        if not torch.is_grad_enabled():
            return self._attend(x)
        return checkpoint(self._attend, x, use_reentrant=False, preserve_rng_state=False)

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, *size = x.shape
        flat = x.reshape(batch, channels, -1)
        qkv = self.qkv(self.norm(flat))
        width = channels // self.num_heads
        q, k, v = qkv.reshape(batch * self.num_heads, 3 * width, -1).split(width, dim=1)
        scale = 1 / math.sqrt(math.sqrt(width))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, -1, flat.shape[-1])
        return (flat + self.proj_out(h)).reshape(batch, channels, *size)


class PublishedResBlock(ResBlock):
    """See the module."""

    emb: Tensor

    def forward(self, x: Tensor, projected: Tensor) -> Tensor:
        """Not what was projected for all blocks, but its own, with the SiLU that every block does again."""
        layers: Any = self.in_layers
        h = layers[2](resampled(layers[1](layers[0](x)), self.resample))
        conditioning: Tensor = self.emb_layers(self.emb)[:, :, None, None]
        norm, silu, dropout, conv = self.out_layers  # type: ignore[misc]  # a Sequential of four
        scale, shift = conditioning.chunk(2, dim=1)
        h = conv(dropout(silu(norm(h) * (1 + scale) + shift)))
        return self.skip_connection(resampled(x, self.resample)) + h


class PublishedUNet(UNet):
    """See the module."""

    def forward(self, x: Tensor, model_t: Tensor, y: Tensor | None = None) -> Tensor:
        """Blocks are handed the embedding before its SiLU."""
        emb = self.time_embed(model_t)
        nothing = _hand_out(self, emb if y is None else emb + self.label_emb(y))
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, nothing)
            skips.append(h)
        h = self.middle_block(h, nothing)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), nothing)
        return self.out(h)


class PublishedClassifier(NoisyClassifier):
    """See the module."""

    def forward(self, x: Tensor, model_t: Tensor) -> Tensor:
        """As PublishedUNet's."""
        nothing, h = _hand_out(self, self.time_embed(model_t)), x
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, nothing)
        return self.out(h)


def _hand_out(network: nn.Module, emb: Tensor) -> Iterator[Tensor]:
    """Give every block the embedding; in place of the projections, which each makes for itself, there is this."""
    for module in network.modules():
        if isinstance(module, PublishedResBlock):
            module.emb = emb
    return itertools.repeat(emb)


def computed_as_published(network: N) -> N:
    """The network itself, with the forward of its blocks changed; of the options it knows those of the benchmark."""
    trunk = network.config if isinstance(network, UNet) else network.config.encoder
    assert (trunk.attention_layout, trunk.conditioning, trunk.skip_scale) == ("legacy", "adagn", 1.0)
    network.__class__ = PublishedUNet if isinstance(network, UNet) else PublishedClassifier
    for module in network.modules():
        if isinstance(module, AttentionBlock):
            module.__class__ = PublishedAttention
        elif isinstance(module, ResBlock):
            module.__class__ = PublishedResBlock
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
