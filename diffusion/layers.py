"""Which blocks are the networks made of? Embeddings of t, residual blocks, attention, resampling.

Assembled in trunk.py. Names and shapes of the parameters are those of the published models, so that their weights fit
by name, and blocks and their layers are called as there: input_blocks[3](h, emb). A network merges operations of its
blocks; one with a hook on any module does not, so that hooks see what they would see there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diffusion.fused import norm_act
from diffusion.precision import float32_island

NORM_GROUPS = 32  # GroupNorm's groups in every published model

Conditioning = Literal["adagn", "additive"]
Resample = Literal["none", "up", "down"]
AttentionLayout = Literal["legacy", "new"]
"""How the 3C channels of an attention's qkv are arranged: legacy is head, then q, k, v; new is q, k, v, then head."""

FeatureMap = Float[Tensor, "b c h w"]
Resampled = Float[Tensor, "b c h2 w2"]  # the size may differ
Output = Float[Tensor, "b c2 h2 w2"]  # the channels may differ too
Embedding = Float[Tensor, "b e"]
M = TypeVar("M", bound=nn.Module)


class Projected(NamedTuple):
    """What a residual block takes of the embedding, projected already."""

    values: Embedding


def timestep_frequencies(dim: int) -> Float[Tensor, "half"]:
    """exp(-ln(10000) k / half) for k = 0..half-1, on the CPU, whose last bits the published weights have learned."""
    half = dim // 2
    # float32 on purpose: float64 would move the phase by 2e-4 at t = 3999 from what published weights were trained on.
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half)


def timestep_embedding(model_t: Float[Tensor, "b"], frequencies: Float[Tensor, "half"]) -> Float[Tensor, "b dim"]:
    """Sinusoids of t, whole or fractional: the cosines of all frequencies, then the sines; float32."""
    phase = model_t.float()[:, None] * frequencies.float()
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups, computed in float32 or more; the result has the dtype of what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (b, channels, ...)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return functional.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)


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
        skip_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.resample = resample
        self.skip_scale = skip_scale
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, out_channels * (2 if conditioning == "adagn" else 1))
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    @property
    def projection(self) -> nn.Linear:
        """From the embedding, after its SiLU, to what the block takes of it; see project."""
        return cast(nn.Linear, self.emb_layers[1])

    def forward(self, x: FeatureMap, emb: Embedding | Projected) -> Output:
        """emb, or what project made of it for this block."""
        if isinstance(emb, Tensor):
            return self._by_layer(x, emb)
        projected = emb.values
        norm, _, conv = cast(tuple[GroupNorm, nn.Module, nn.Module], self.in_layers)
        h = conv(resampled(norm_act(norm, x), self.resample))
        norm, _, dropout, conv = cast(tuple[GroupNorm, nn.Module, nn.Module, nn.Module], self.out_layers)
        if self.conditioning == "adagn":
            h = norm_act(norm, h, projected)
        else:
            h = norm_act(norm, h + projected.to(h.dtype)[:, :, None, None])
        return merged(self.skip_connection(resampled(x, self.resample)), conv(dropout(h)), self.skip_scale)

    def _by_layer(self, x: FeatureMap, emb: Embedding) -> Output:
        if self.resample == "none":
            h = self.in_layers(x)
        else:
            h = self.in_layers[2](resampled(self.in_layers[1](self.in_layers[0](x)), self.resample))
        with float32_island(emb):
            projected = self.emb_layers(emb.to(self.projection.weight.dtype))
        projected = projected.to(h.dtype)[:, :, None, None]
        if self.conditioning == "adagn":
            scale, shift = projected.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            for layer in list(self.out_layers)[1:]:
                h = layer(h)
        else:
            h = self.out_layers(h + projected)
        return merged(self.skip_connection(resampled(x, self.resample)), h, self.skip_scale)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with a skip."""

    def __init__(self, channels: int, *, num_heads: int, layout: AttentionLayout, skip_scale: float = 1.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layout = layout
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels)
        # Conv1d for the shapes of the published weights.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Softmax(q k / sqrt(channels per head)) v over all pixels."""
        if is_hooked(self.norm, self.qkv, self.proj_out):
            return self._by_layer(x)
        qkv = pointwise(self.qkv, norm_act(self.norm, x, silu=False))
        h = attention(qkv.flatten(2).transpose(1, 2), num_heads=self.num_heads, layout=self.layout)
        h = pointwise(self.proj_out, h.transpose(1, 2).reshape(x.shape))
        return merged(x, h, self.skip_scale)

    def _by_layer(self, x: FeatureMap) -> FeatureMap:
        qkv = self.qkv(self.norm(x.flatten(2)))
        h = attention(qkv.transpose(1, 2), num_heads=self.num_heads, layout=self.layout)
        return merged(x, self.proj_out(h.transpose(1, 2)).reshape(x.shape), self.skip_scale)


def attention(qkv: Float[Tensor, "b n c3"], *, num_heads: int, layout: AttentionLayout) -> Float[Tensor, "b n c"]:
    """Softmax(q k / sqrt(channels per head)) v over n tokens, softmax in float32 or more."""
    batch, tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    if layout == "legacy":
        q, k, v = qkv.reshape(batch, tokens, num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
    else:
        q, k, v = qkv.reshape(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    h = functional.scaled_dot_product_attention(q, k, v)
    return h.transpose(1, 2).reshape(batch, tokens, channels)


def pointwise(conv: nn.Conv1d, x: FeatureMap) -> Output:
    """A convolution of one pixel, applied to a feature map: a matrix product."""
    if x.is_cpu:  # where convolutions are twice as fast as torch's matrix products, or as fast, by kind of CPU
        return functional.conv2d(x, conv.weight[..., None], conv.bias)
    return matrix_product(conv, x)


def matrix_product(conv: nn.Conv1d, x: FeatureMap) -> Output:
    """See pointwise."""
    tokens = functional.linear(x.flatten(2).transpose(1, 2), conv.weight[:, :, 0], conv.bias)
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Half the size: by a 3x3 convolution of stride 2, or by means of 2x2."""

    def __init__(self, channels: int, *, convolve: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolve else nn.AvgPool2d(2)

    def forward(self, x: FeatureMap) -> Resampled:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size by nearest neighbours, then by choice a 3x3 convolution."""

    def __init__(self, channels: int, *, convolve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolve else None

    def forward(self, x: FeatureMap) -> Resampled:
        x = resampled(x, "up")
        return x if self.conv is None else self.conv(x)


class EmbedSequential(nn.ModuleList):
    """Layers in a row, of which the residual blocks also receive the embedding."""

    def forward(
        self, x: FeatureMap, emb: Embedding | Iterator[Embedding | Projected], *, recompute: bool = False
    ) -> Output:
        """emb, or what handed_out gives. recompute: keep only what goes into a layer, and run it again later."""
        for_each = repeat(emb) if isinstance(emb, Tensor) else emb
        for layer in self:
            inputs = (x, next(for_each)) if isinstance(layer, ResBlock) else (x,)
            x = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return x


def handed_out(emb: Embedding, parts: Sequence[nn.Module]) -> Iterator[Embedding | Projected]:
    """What each residual block of these parts is given, in order: projected, unless somebody watches their layers."""
    watched = is_hooked(*(module for part in parts for module in part.modules()))
    return repeat(emb) if watched else project(emb, parts)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether any of them has a hook that wants it called as a module."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def project(emb: Embedding, parts: Iterable[nn.Module]) -> Iterator[Projected]:
    """The embedding as each residual block of these parts takes it, in order: one matrix product for all."""
    linears = [module.projection for part in parts for module in part.modules() if isinstance(module, ResBlock)]
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    with float32_island(emb):
        projected = functional.linear(functional.silu(emb), weight, bias)
    return iter([Projected(part) for part in projected.split([linear.out_features for linear in linears], dim=1)])


def resampled(x: FeatureMap, resample: Resample) -> Resampled:
    """x at half the size (2x2 means), at twice the size (nearest neighbours), or as it is."""
    if resample == "down":
        return functional.avg_pool2d(x, 2)
    if resample == "up":
        return functional.interpolate(x, scale_factor=2, mode="nearest")
    return x


def merged(skip: Tensor, residual: Tensor, scale: float) -> Tensor:
    """What leaves a residual block: the sum, by choice scaled."""
    return skip + residual if scale == 1.0 else (skip + residual) * scale


def zero_init(module: M) -> M:
    """The module with all its parameters zero: the last layer of a residual branch begins as no change."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
