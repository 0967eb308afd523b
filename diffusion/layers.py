"""Which blocks is the U-Net made of? Embeddings of t, residual blocks, attention, resampling. Assembled in unet.py.

Names and shapes of the parameters are those of the published models, so that their weights fit by name.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NORM_GROUPS = 32  # GroupNorm's groups in every published model

Conditioning = Literal["adagn", "additive"]
Resample = Literal["none", "up", "down"]

FeatureMap = Float[Tensor, "b c h w"]
Resampled = Float[Tensor, "b c h2 w2"]  # the size may differ
Output = Float[Tensor, "b c2 h2 w2"]  # the channels may differ too
Embedding = Float[Tensor, "b e"]
M = TypeVar("M", bound=nn.Module)


def timestep_frequencies(dim: int) -> Float[Tensor, "half"]:
    """exp(-ln(10000) k / half) for k = 0..half-1."""
    half = dim // 2
    # float32 on purpose: float64 would move the phase by 2e-4 at t = 3999 from what published weights were trained on.
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)


def timestep_embedding(model_t: Float[Tensor, "b"], frequencies: Float[Tensor, "half"]) -> Float[Tensor, "b dim"]:
    """Sinusoids of t, whole or fractional: the cosines of all frequencies, then the sines."""
    phase = model_t.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a skip; t (and class) enters before the second one.

    adagn: GroupNorm(h) * (1 + scale) + shift (ADM section 3.1). additive: GroupNorm(h + emb).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        dropout: float,
        conditioning: Conditioning,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.resample = resample
        self.in_layers = nn.Sequential(
            group_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        # Identity holds the place of the published SiLU, which is the same for every block: the U-Net applies it once.
        self.emb_layers = nn.Sequential(
            nn.Identity(), nn.Linear(emb_channels, out_channels * (2 if conditioning == "adagn" else 1))
        )
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: FeatureMap, emb: Embedding) -> Output:
        """emb is the embedding of t after its SiLU."""
        norm, silu, conv = self.in_layers
        h = conv(resampled(silu(norm(x)), self.resample))
        h = self._conditioned(h, self.emb_layers(emb)[:, :, None, None])
        skip: Tensor = self.skip_connection(resampled(x, self.resample))
        return skip + h

    def _conditioned(self, h: FeatureMap, emb: Float[Tensor, "b e 1 1"]) -> Tensor:
        norm, silu, dropout, conv = self.out_layers
        if self.conditioning == "adagn":
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + emb)
        return conv(dropout(silu(h)))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a skip (channel order of IDDPM: head, then q, k, v)."""

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        # Conv1d for the shapes of the published weights; as 1x1 convolutions they are applied as matrix products.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Softmax(q k / sqrt(channels per head)) v over all pixels."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = functional.linear(tokens, self.qkv.weight[:, :, 0], self.qkv.bias)
        q, k, v = qkv.view(batch, height * width, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        h = functional.linear(h, self.proj_out.weight[:, :, 0], self.proj_out.bias)
        return x + h.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: FeatureMap) -> Resampled:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: FeatureMap) -> Resampled:
        return self.conv(resampled(x, "up"))


class EmbedSequential(nn.ModuleList):
    """Layers in a row, of which the residual blocks also receive the embedding."""

    def forward(self, x: FeatureMap, emb: Embedding) -> Output:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def resampled(x: FeatureMap, resample: Resample) -> Resampled:
    """x at half the size (2x2 means), at twice the size (nearest neighbours), or as it is."""
    if resample == "down":
        return functional.avg_pool2d(x, 2)
    if resample == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return x


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm as in every published model; channels must be a multiple of 32."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-5)


def zero_init(module: M) -> M:
    """The module with all its parameters zero: the last layer of a residual branch begins as no change."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
