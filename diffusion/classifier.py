"""Which network says what a noisy image shows? The U-Net's way down and middle, then logits (ADM section 4.1).

Its gradient guides sampling (guidance.py). Its parameters have the published names and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.checkpoints import Network
from diffusion.layers import FeatureMap, GroupNorm, attention, handed_out, zero_init
from diffusion.precision import float32_island, in_torso_dtype
from diffusion.trunk import TimeEmbedding, UNetConfig, check_inputs, input_blocks, middle_block
from diffusion.types import check_choice

HIDDEN = 2048  # of the published spatial pools

Pool = Literal["attention", "adaptive", "spatial", "spatial_v2"]
Logits = Float[Tensor, "b classes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """A noisy classifier."""

    encoder: UNetConfig
    """Of this U-Net it has the way down and the middle."""
    num_classes: int = 1000
    pool: Pool = "attention"
    """How a feature map becomes logits. attention: the mean pixel asks all others. adaptive: a linear layer over the
    mean. spatial, spatial_v2: an MLP over the means of every block's output."""

    def __post_init__(self) -> None:
        check_choice("classifier.pool", self.pool, Pool)
        if self.num_classes < 2:
            raise ValueError(f"classifier.num_classes={self.num_classes}: must be 2 or more")
        if self.encoder.num_classes is not None:
            raise ValueError(
                f"classifier.encoder.num_classes={self.encoder.num_classes}: a classifier is not told the class; "
                f"set it to null"
            )
        if self.encoder.num_heads_upsample is not None:
            raise ValueError(
                f"classifier.encoder.num_heads_upsample={self.encoder.num_heads_upsample}: there is no way up; "
                f"set it to null"
            )
        if self.pool == "attention" and self.encoder.num_head_channels is None:
            raise ValueError(
                "classifier.pool='attention' takes heads by their channels: set classifier.encoder.num_head_channels, "
                "or another pool"
            )


class NoisyClassifier(Network):
    """Logits of each class from x_t and t."""

    kind = "classifier"
    config_type = ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        """Run every block twice in training and keep none of its activations: a third more time, far less memory."""
        self.time_embed = TimeEmbedding(config.encoder)
        self.input_blocks, features = input_blocks(config.encoder, config.encoder.channels)
        self.middle_block = middle_block(config.encoder)
        self.out = _head(config, [*features, config.encoder.widths[-1]])

    @property
    def torso(self) -> tuple[nn.Module, ...]:
        """See Network: all but the embeddings and the output."""
        return self.input_blocks, self.middle_block

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """See Network."""
        size, channels = self.config.encoder.image_size, self.config.encoder.channels
        return {"x": torch.zeros(batch_size, channels, size, size), "model_t": torch.zeros(batch_size)}

    def forward(self, x: Float[Tensor, "b c h w"], model_t: Float[Tensor, "b"]) -> Logits:
        """model_t is what schedule.model_t gives. Raises ValueError for shapes that are not this network's."""
        h = self._encoded(x, model_t)
        with float32_island(h):
            return self.out(h)

    @property
    def pooled_channels(self) -> int:
        """Numbers that the last linear layer is given. Raises ValueError where that is attention's."""
        if self.config.pool == "attention":
            raise ValueError("classifier.pool='attention' has no features before its last layer: choose another pool")
        return self.config.encoder.widths[-1] if self.config.pool == "adaptive" else HIDDEN

    def pooled_and_logits(
        self, x: Float[Tensor, "b c h w"], model_t: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b d"], Logits]:
        """What the last linear layer is given, pooled_channels numbers an image, and what it makes of that."""
        last = 3 if self.config.pool == "adaptive" else len(self.out) - 1
        h = self._encoded(x, model_t)
        with float32_island(h):
            pooled = self.out[:last](h)
            return pooled.flatten(start_dim=1), self.out[last:](pooled)

    def _encoded(self, x: Float[Tensor, "b c h w"], model_t: Float[Tensor, "b"]) -> Tensor:
        """What the head is given."""
        check_inputs(self.config.encoder, x, model_t, channels=self.config.encoder.channels)
        with float32_island(model_t):
            emb = self.time_embed(model_t)
        for_each = handed_out(emb, self.torso)
        h = in_torso_dtype(self, x)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        means = []
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, for_each, recompute=recompute)
            if self.config.pool in ("spatial", "spatial_v2"):
                means.append(h.to(emb.dtype).mean(dim=(2, 3)))
        with float32_island(h):
            return torch.cat(means, dim=1) if means else h.to(emb.dtype)


class AttentionPool(nn.Module):
    """One more token, the mean of all, asks the others; what it hears is turned into logits."""

    def __init__(self, size: int, channels: int, *, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: FeatureMap) -> Logits:
        """Raises ValueError for a feature map of another size than the positions were learned for."""
        tokens = x.flatten(2)
        if tokens.shape[2] + 1 != self.positional_embedding.shape[1]:
            raise ValueError(
                f"a feature map of {tuple(x.shape[2:])} pixels: this classifier's attention pool has positions for "
                f"{self.positional_embedding.shape[1] - 1}, so images must have the size it was built for"
            )
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2) + self.positional_embedding
        # Here the published order is the new one, also where the blocks have the legacy one.
        heard = attention(self.qkv_proj(tokens).transpose(1, 2), num_heads=self.num_heads, layout="new")
        return self.c_proj(heard.transpose(1, 2))[:, :, 0]


def _head(config: ClassifierConfig, features: list[int]) -> nn.Sequential:
    width, classes = config.encoder.widths[-1], config.num_classes
    if config.pool == "attention":
        assert config.encoder.num_head_channels is not None
        pool = AttentionPool(
            config.encoder.sizes[-1], width, head_channels=config.encoder.num_head_channels, out_channels=classes
        )
        return nn.Sequential(GroupNorm(width), nn.SiLU(), pool)
    if config.pool == "adaptive":
        linear = zero_init(nn.Conv2d(width, classes, 1))
        return nn.Sequential(GroupNorm(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), linear, nn.Flatten())
    if config.pool == "spatial":
        return nn.Sequential(nn.Linear(sum(features), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    return nn.Sequential(nn.Linear(sum(features), HIDDEN), GroupNorm(HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, classes))
