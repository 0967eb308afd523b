"""What do the U-Net and the noisy classifier share? The way down, the middle, and the embedding of t.

The blocks are in layers.py; their order and their parameters' names are the published models'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.layers import (
    NORM_GROUPS,
    AttentionBlock,
    AttentionLayout,
    Conditioning,
    Downsample,
    Embedding,
    EmbedSequential,
    Resample,
    ResBlock,
    timestep_embedding,
    timestep_frequencies,
)
from diffusion.types import check_choice

Resampling = Literal["conv", "pool", "residual"]
ResidualScale = Literal["1", "1/sqrt(2)"]
CHOICES = {
    "attention_layout": AttentionLayout,
    "conditioning": Conditioning,
    "resampling": Resampling,
    "residual_scale": ResidualScale,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """The size and the choices of one network; the defaults are IDDPM's for CIFAR-10, less its third block a level."""

    image_size: int
    """Height and width of the image in pixels."""
    channels: int = 3
    """Of the image: 1 for gray, 3 for colour."""
    model_channels: int = 128
    """Width that channel_mult multiplies; also the size of the sinusoidal embedding of t."""
    num_res_blocks: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    channel_mult: tuple[int | float, ...] = (1, 2, 2, 2)
    """One factor a level, fractions too (ADM at 512 pixels begins with 0.5); the image is halved between levels."""
    attention_resolutions: tuple[int, ...] = (16, 8)
    """Sizes in pixels at which every residual block is followed by attention; the middle always has it."""
    num_heads: int | None = 4
    """Heads of every attention block; None where num_head_channels decides."""
    num_head_channels: int | None = None
    """Channels of a head: the number of heads then grows with the width (ADM)."""
    num_heads_upsample: int | None = None
    """Heads on the way up, where they are not num_heads."""
    attention_layout: AttentionLayout = "legacy"
    """Order of the channels of q, k and v in the weights, which do not show it: legacy, but new in ADM's for 64x64."""
    dropout: float = 0.0
    num_classes: int | None = None
    """Number of classes when the network is conditioned on them."""
    conditioning: Conditioning = "adagn"
    """How t and the class enter a residual block: scale and shift after its GroupNorm, or a sum before it."""
    resampling: Resampling = "conv"
    """Between levels: a strided convolution down and a convolution up; 2x2 means and nearest neighbours alone; or
    inside residual blocks (BigGAN's way, ADM)."""
    residual_scale: ResidualScale = "1"
    """What the sum that leaves a residual or attention block is multiplied by (ADM table 1; in no published model)."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "model_channels", "num_res_blocks"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)!r}: must be a whole number, 1 or more")
        for name in ("num_classes", "num_heads", "num_head_channels", "num_heads_upsample"):
            if type(getattr(self, name)) not in (int, type(None)):
                raise ValueError(f"model.{name}={getattr(self, name)!r}: must be a whole number, or null")
        for name, choices in CHOICES.items():
            check_choice(f"model.{name}", getattr(self, name), choices)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: must be at least 0 and less than 1")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"model.num_classes={self.num_classes}: must be 1 or more, or null for no classes")
        if self.model_channels % 2:
            raise ValueError(f"model.model_channels={self.model_channels}: must be even, for the sinusoids of t")
        self._check_levels()
        self._check_heads()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels a side of each level, from the image down."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    def heads(self, channels: int, *, way_up: bool = False) -> int:
        """Heads of an attention block of that many channels."""
        if self.num_head_channels is not None:
            return channels // self.num_head_channels
        fixed = self.num_heads_upsample if way_up and self.num_heads_upsample is not None else self.num_heads
        assert fixed is not None
        return fixed

    @property
    def skip_scale(self) -> float:
        """residual_scale as a number."""
        return 1.0 if self.residual_scale == "1" else math.sqrt(0.5)

    def _check_levels(self) -> None:
        if not self.channel_mult:
            raise ValueError("model.channel_mult=(): needs one factor a level, such as (1, 2, 2)")
        halvings = len(self.channel_mult) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"model.image_size={self.image_size} cannot be halved {halvings} times, as the levels of "
                f"model.channel_mult={self.channel_mult} need: use a multiple of {2**halvings}, or fewer levels"
            )
        for mult in self.channel_mult:
            if not math.isfinite(mult):
                raise ValueError(f"model.channel_mult={self.channel_mult}: every factor must be finite")
            width = int(mult * self.model_channels)
            if width < 1 or width % NORM_GROUPS or width != mult * self.model_channels:
                raise ValueError(
                    f"model.model_channels={self.model_channels} with model.channel_mult={self.channel_mult} gives a "
                    f"level of {mult * self.model_channels:g} channels: GroupNorm needs multiples of {NORM_GROUPS}"
                )
        unreachable = sorted(set(self.attention_resolutions) - set(self.sizes))
        if unreachable:
            raise ValueError(
                f"model.attention_resolutions={self.attention_resolutions}: the levels of this network are "
                f"{self.sizes} pixels wide, none is {' or '.join(map(str, unreachable))}; choose among these"
            )

    def _check_heads(self) -> None:
        if (self.num_heads is None) == (self.num_head_channels is None):
            raise ValueError(
                f"model.num_heads={self.num_heads}, model.num_head_channels={self.num_head_channels}: "
                f"set one of them, and the other to null"
            )
        if self.num_heads is None and self.num_heads_upsample is not None:
            raise ValueError(
                f"model.num_heads_upsample={self.num_heads_upsample} changes nothing with "
                f"model.num_head_channels={self.num_head_channels}: set it to null"
            )
        levels = zip(self.sizes, self.widths, strict=True)
        on_levels = {width for size, width in levels if size in self.attention_resolutions}
        if self.num_heads_upsample is not None and not on_levels:
            raise ValueError(
                f"model.num_heads_upsample={self.num_heads_upsample} changes nothing without attention on the way up "
                f"(model.attention_resolutions=()): set it to null"
            )
        for name in ("num_heads", "num_head_channels", "num_heads_upsample"):
            value = getattr(self, name)
            widths = on_levels | ({self.widths[-1]} if name != "num_heads_upsample" else set())
            if value is not None and any(value < 1 or width % value for width in widths):
                uneven = min(width for width in widths if value < 1 or width % value)
                raise ValueError(
                    f"model.{name}={value}: must divide the channels of every attention block, "
                    f"but one has {uneven}; all have {sorted(widths)}"
                )


class TimeEmbedding(nn.Sequential):
    """What the published models call time_embed: an MLP over the sinusoids of t."""

    def __init__(self, config: UNetConfig) -> None:
        width, emb = config.model_channels, 4 * config.model_channels
        super().__init__(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        frequencies = timestep_frequencies(width).to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimeEmbedding:
        """The frequencies follow to another device, never to another dtype, and are real after a meta device."""
        super()._apply(fn, recurse)
        frequencies = self.get_buffer("frequencies")
        self.frequencies = timestep_frequencies(2 * len(frequencies)).to(frequencies.device)
        return self

    def forward(self, model_t: Float[Tensor, "b"]) -> Embedding:
        """model_t is what schedule.model_t gives."""
        sinusoids = timestep_embedding(model_t, self.get_buffer("frequencies"))
        return super().forward(sinusoids.to(next(self.parameters()).dtype))


def input_blocks(config: UNetConfig, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels of each block's output: the skips of the way up."""
    channels = config.widths[0]
    blocks = [EmbedSequential([nn.Conv2d(in_channels, channels, 3, padding=1)])]
    skips = [channels]
    for level, (size, width) in enumerate(zip(config.sizes, config.widths, strict=True)):
        for _ in range(config.num_res_blocks):
            blocks.append(EmbedSequential(block_at(config, channels, width, size)))
            channels = width
            skips.append(channels)
        if level < len(config.widths) - 1:
            blocks.append(EmbedSequential([_down(config, width)]))
            skips.append(channels)
    return nn.ModuleList(blocks), skips


def middle_block(config: UNetConfig) -> EmbedSequential:
    """Between the way down and the way up; always with attention."""
    width = config.widths[-1]
    return EmbedSequential(
        [res_block(config, width, width), attention_block(config, width), res_block(config, width, width)]
    )


def block_at(
    config: UNetConfig, in_channels: int, out_channels: int, size: int, *, way_up: bool = False
) -> list[nn.Module]:
    """A residual block, and attention where this size has it."""
    layers: list[nn.Module] = [res_block(config, in_channels, out_channels)]
    if size in config.attention_resolutions:
        layers.append(attention_block(config, out_channels, way_up=way_up))
    return layers


def res_block(config: UNetConfig, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
    """A residual block as the config has them."""
    return ResBlock(
        in_channels,
        out_channels,
        emb_channels=4 * config.model_channels,
        dropout=config.dropout,
        conditioning=config.conditioning,
        resample=resample,
        skip_scale=config.skip_scale,
    )


def attention_block(config: UNetConfig, channels: int, *, way_up: bool = False) -> AttentionBlock:
    """An attention block as the config has them."""
    return AttentionBlock(
        channels,
        num_heads=config.heads(channels, way_up=way_up),
        layout=config.attention_layout,
        skip_scale=config.skip_scale,
    )


def check_inputs(config: UNetConfig, x: Tensor, model_t: Tensor, *, channels: int) -> None:
    """Raises ValueError unless x is (b, channels, h, w) that all levels can halve, and model_t (b,)."""
    factor = 2 ** (len(config.channel_mult) - 1)
    if not x.is_floating_point() or model_t.is_complex() or model_t.dtype == torch.bool:
        raise ValueError(f"x of {x.dtype} and model_t of {model_t.dtype}: x is floating, and model_t a number")
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"x of shape {tuple(x.shape)}: this network takes (b, {channels}, h, w), h and w multiples of {factor}"
        )
    if model_t.shape != x.shape[:1]:
        raise ValueError(
            f"model_t of shape {tuple(model_t.shape)} for {len(x)} images: one number an image, ({len(x)},)"
        )


def _down(config: UNetConfig, width: int) -> nn.Module:
    if config.resampling == "residual":
        return res_block(config, width, width, "down")
    return Downsample(width, convolve=config.resampling == "conv")
