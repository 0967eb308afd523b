"""Which network predicts the noise? The U-Net of both papers (IDDPM appendix A, ADM section 3).

Its parameters have the published names and shapes. What it shares with the classifier is in trunk.py.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffusion.checkpoints import Network
from diffusion.layers import Embedding, EmbedSequential, GroupNorm, Upsample, handed_out, zero_init
from diffusion.precision import float32_island, in_torso_dtype
from diffusion.trunk import (
    TimeEmbedding,
    UNetConfig,
    block_at,
    check_inputs,
    input_blocks,
    middle_block,
    res_block,
)
from diffusion.types import check_labels

__all__ = ["UNet", "UNetConfig"]


class UNet(Network):
    """Predicts eps (or what else the process asks for) from x_t and t; out_channels is double for learned variances."""

    kind = "unet"
    config_type: ClassVar[type] = UNetConfig

    def __init__(self, config: UNetConfig, out_channels: int) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels={out_channels}: must be 1 or more")
        self.config = config
        self.out_channels = out_channels
        self.gradient_checkpointing = False
        """Run every block twice in training and keep none of its activations: a third more time, far less memory."""
        self.time_embed = TimeEmbedding(config)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, 4 * config.model_channels)
        self.input_blocks, skips = input_blocks(config, self.in_channels)
        self.middle_block = middle_block(config)
        self.output_blocks = _output_blocks(config, skips)
        first = config.widths[0]
        self.out = nn.Sequential(GroupNorm(first), nn.SiLU(), zero_init(nn.Conv2d(first, out_channels, 3, padding=1)))

    @property
    def in_channels(self) -> int:
        """Of what the first convolution sees."""
        return self.config.channels

    @property
    def torso(self) -> tuple[nn.Module, ...]:
        """See Network: all but the embeddings and the output."""
        return self.input_blocks, self.middle_block, self.output_blocks

    def arguments(self) -> dict[str, int]:
        """See Network."""
        return {"out_channels": self.out_channels}

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """See Network."""
        size = self.config.image_size
        inputs = {"x": torch.zeros(batch_size, self.config.channels, size, size), "model_t": torch.zeros(batch_size)}
        if self.config.num_classes is not None:
            inputs["y"] = torch.zeros(batch_size, dtype=torch.int64)
        return inputs

    def forward(
        self, x: Float[Tensor, "b c h w"], model_t: Float[Tensor, "b"], y: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b out h w"]:
        """x_t in, prediction out, of the same size. model_t is what schedule.model_t gives; y is the class.

        Raises ValueError for shapes and labels that are none of this network's.
        """
        check_inputs(self.config, x, model_t, channels=self.in_channels)
        emb = self._embedding(model_t, y)
        for_each = handed_out(emb, self.torso)
        h, skips = in_torso_dtype(self, x), []
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.input_blocks:
            h = block(h, for_each, recompute=recompute)
            skips.append(h)
        h = self.middle_block(h, for_each, recompute=recompute)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), for_each, recompute=recompute)
        with float32_island(h):
            return self.out(h.to(self.out[-1].weight.dtype))

    def _embedding(self, model_t: Tensor, y: Tensor | None) -> Embedding:
        if (y is None) != (self.config.num_classes is None):
            raise ValueError(
                f"model.num_classes={self.config.num_classes}, but y was {'not ' if y is None else ''}given: "
                f"a network has classes if and only if it is called with them"
            )
        with float32_island(model_t):
            emb = self.time_embed(model_t)
            if y is not None and self.config.num_classes is not None:
                check_labels(y, images=len(model_t), num_classes=self.config.num_classes)
                emb = emb + self.label_emb(y)
            return emb


def _output_blocks(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The way up: every block takes its forerunner's output and one skip, last in first out."""
    channels, skips = config.widths[-1], list(skips)
    blocks = []
    for level in reversed(range(len(config.widths))):
        width = config.widths[level]
        for number in range(config.num_res_blocks + 1):
            layers = block_at(config, channels + skips.pop(), width, config.sizes[level], way_up=True)
            if level > 0 and number == config.num_res_blocks:
                layers.append(_up(config, width))
            blocks.append(EmbedSequential(layers))
            channels = width
    return nn.ModuleList(blocks)


def _up(config: UNetConfig, width: int) -> nn.Module:
    if config.resampling == "residual":
        return res_block(config, width, width, "up")
    return Upsample(width, convolve=config.resampling == "conv")
