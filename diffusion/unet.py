"""Which network predicts the noise? The U-Net of both papers (IDDPM appendix A, ADM section 3).

Its parameters have the published names and shapes. Its blocks are in layers.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diffusion.layers import (
    NORM_GROUPS,
    AttentionBlock,
    Conditioning,
    Downsample,
    Embedding,
    EmbedSequential,
    Resample,
    ResBlock,
    Upsample,
    group_norm,
    timestep_embedding,
    timestep_frequencies,
    zero_init,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """The size and the choices of one U-Net; the defaults are IDDPM's for CIFAR-10, less its third block a level."""

    image_size: int
    """Height and width of the image in pixels."""
    channels: int = 3
    """Of the image: 1 for gray, 3 for colour."""
    model_channels: int = 128
    """Width that channel_mult multiplies; also the size of the sinusoidal embedding of t."""
    num_res_blocks: int = 2
    """Residual blocks a level on the way down; one more on the way up."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    """One factor a level; the image is halved between levels."""
    attention_resolutions: tuple[int, ...] = (16, 8)
    """Sizes in pixels at which every residual block is followed by attention; the middle always has it."""
    num_heads: int | None = 4
    """Heads of every attention block; None where num_head_channels decides."""
    num_head_channels: int | None = None
    """Channels of a head: the number of heads then grows with the width (ADM)."""
    dropout: float = 0.0
    num_classes: int | None = None
    """Number of classes when the network is conditioned on them."""
    conditioning: Conditioning = "adagn"
    """How t and the class enter a residual block: scale and shift after its GroupNorm, or a sum before it."""
    resblock_updown: bool = False
    """Resample inside residual blocks (BigGAN's way, ADM) instead of by strided convolutions."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "model_channels", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: must be at least 0 and less than 1")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"model.num_classes={self.num_classes}: must be 1 or more, or null for no classes")
        self._check_levels()
        self._check_heads()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels a side of each level, from the image down."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_mult)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(mult * self.model_channels for mult in self.channel_mult)

    def heads(self, channels: int) -> int:
        """Heads of an attention block of that many channels."""
        return self.num_heads or channels // (self.num_head_channels or channels)

    def _check_levels(self) -> None:
        if not self.channel_mult:
            raise ValueError("model.channel_mult=(): needs one factor a level, such as (1, 2, 2)")
        halvings = len(self.channel_mult) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"model.image_size={self.image_size} cannot be halved {halvings} times, as the levels of "
                f"model.channel_mult={self.channel_mult} need: use a multiple of {2**halvings}, or fewer levels"
            )
        for width in self.widths:
            if width < 1 or width % NORM_GROUPS:
                raise ValueError(
                    f"model.model_channels={self.model_channels} with model.channel_mult={self.channel_mult} gives a "
                    f"level of {width} channels: GroupNorm needs multiples of {NORM_GROUPS}"
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
        name = "num_heads" if self.num_heads is not None else "num_head_channels"
        value = getattr(self, name)
        levels = zip(self.sizes, self.widths, strict=True)
        widths = {width for size, width in levels if size in self.attention_resolutions} | {self.widths[-1]}
        uneven = sorted(width for width in widths if value < 1 or width % value)
        if uneven:
            raise ValueError(
                f"model.{name}={value}: must divide the channels of every attention block, "
                f"but one has {uneven[0]}; all have {sorted(widths)}"
            )


class UNet(nn.Module):
    """Predicts eps (or what else the process asks for) from x_t and t; out_channels is double for learned variances."""

    def __init__(self, config: UNetConfig, out_channels: int) -> None:
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, emb)
        self.input_blocks, skips = _input_blocks(config)
        self.middle_block = _middle_block(config)
        self.output_blocks = _output_blocks(config, skips)
        first = config.widths[0]
        self.out = nn.Sequential(group_norm(first), nn.SiLU(), zero_init(nn.Conv2d(first, out_channels, 3, padding=1)))
        self.register_buffer("frequencies", timestep_frequencies(width), persistent=False)

    def forward(
        self, x: Float[Tensor, "b c h w"], model_t: Float[Tensor, "b"], y: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """x_t in, prediction out, of the same size. model_t is what schedule.model_t gives; y is the class."""
        emb = self._embedding(model_t, y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def _embedding(self, model_t: Tensor, y: Tensor | None) -> Embedding:
        if (y is None) != (self.config.num_classes is None):
            raise ValueError(
                f"model.num_classes={self.config.num_classes}, but y was {'not ' if y is None else ''}given: "
                f"a network has classes if and only if it is called with them"
            )
        emb = self.time_embed(timestep_embedding(model_t, self.get_buffer("frequencies")))
        if y is not None:
            emb = emb + self.label_emb(y)
        return functional.silu(emb)


def _input_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the channels of each block's output: the skips of the way up."""
    channels = config.widths[0]
    blocks = [EmbedSequential([nn.Conv2d(config.channels, channels, 3, padding=1)])]
    skips = [channels]
    for level, (size, width) in enumerate(zip(config.sizes, config.widths, strict=True)):
        for _ in range(config.num_res_blocks):
            blocks.append(EmbedSequential(_block(config, channels, width, size)))
            channels = width
            skips.append(channels)
        if level < len(config.widths) - 1:
            down = _res_block(config, width, width, "down") if config.resblock_updown else Downsample(width)
            blocks.append(EmbedSequential([down]))
            skips.append(channels)
    return nn.ModuleList(blocks), skips


def _middle_block(config: UNetConfig) -> EmbedSequential:
    width = config.widths[-1]
    attention = AttentionBlock(width, num_heads=config.heads(width))
    return EmbedSequential([_res_block(config, width, width), attention, _res_block(config, width, width)])


def _output_blocks(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The way up: every block takes its forerunner's output and one skip, last in first out."""
    channels, skips = config.widths[-1], list(skips)
    blocks = []
    for level in reversed(range(len(config.widths))):
        width = config.widths[level]
        for number in range(config.num_res_blocks + 1):
            layers = _block(config, channels + skips.pop(), width, config.sizes[level])
            if level > 0 and number == config.num_res_blocks:
                layers.append(_res_block(config, width, width, "up") if config.resblock_updown else Upsample(width))
            blocks.append(EmbedSequential(layers))
            channels = width
    return nn.ModuleList(blocks)


def _block(config: UNetConfig, in_channels: int, out_channels: int, size: int) -> list[nn.Module]:
    """A residual block, and attention where this size has it."""
    layers: list[nn.Module] = [_res_block(config, in_channels, out_channels)]
    if size in config.attention_resolutions:
        layers.append(AttentionBlock(out_channels, num_heads=config.heads(out_channels)))
    return layers


def _res_block(config: UNetConfig, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
    return ResBlock(
        in_channels,
        out_channels,
        emb_channels=4 * config.model_channels,
        dropout=config.dropout,
        conditioning=config.conditioning,
        resample=resample,
    )
