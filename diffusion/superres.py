"""Which network makes an image larger? The U-Net, shown a small image beside x_t (IDDPM and ADM, two-stage models)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diffusion.trunk import UNetConfig, check_inputs
from diffusion.unet import UNet


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperResConfig:
    """A network from images of small_size pixels to those of unet.image_size."""

    unet: UNetConfig
    small_size: int
    """Height and width in pixels of the image it is shown."""

    def __post_init__(self) -> None:
        if not 1 <= self.small_size < self.unet.image_size:
            raise ValueError(
                f"superres.small_size={self.small_size}: must be at least 1 and less than "
                f"superres.unet.image_size={self.unet.image_size}"
            )


class SuperResUNet(UNet):
    """A U-Net whose first convolution also sees a small image, enlarged to the size of x_t."""

    kind = "superres"
    config_type = SuperResConfig

    def __init__(self, config: SuperResConfig, out_channels: int) -> None:
        super().__init__(config.unet, out_channels)
        self.superres = config

    @property
    def in_channels(self) -> int:
        """See UNet: x_t, and the small image enlarged."""
        return 2 * self.config.channels

    def built_from(self) -> SuperResConfig:
        """See Network."""
        return self.superres

    def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
        """See Network."""
        small = self.superres.small_size
        low_res = torch.zeros(batch_size, self.config.channels, small, small)
        return {**super().example_inputs(batch_size), "low_res": low_res}

    def forward(  # type: ignore[override]  # it takes one more image
        self,
        x: Float[Tensor, "b c h w"],
        model_t: Float[Tensor, "b"],
        y: Int[Tensor, "b"] | None = None,
        *,
        low_res: Float[Tensor, "b c h_small w_small"],
    ) -> Float[Tensor, "b out h w"]:
        """low_res in [-1, 1], not noisy, smaller than x by what the network was built for.

        Raises ValueError for a low_res of another shape.
        """
        check_inputs(self.config, x, model_t, channels=self.config.channels)
        small, size = self.superres.small_size, self.config.image_size
        expected = (len(x), self.config.channels, x.shape[2] * small // size, x.shape[3] * small // size)
        if low_res.shape != expected or not low_res.is_floating_point():
            raise ValueError(
                f"low_res of shape {tuple(low_res.shape)} and {low_res.dtype}: this network, which enlarges {small} to "
                f"{size} pixels, takes floating numbers of shape {expected} beside x of {tuple(x.shape)}"
            )
        return super().forward(torch.cat([x, enlarged(low_res, x)], dim=1), model_t, y)


def enlarged(low_res: Float[Tensor, "b c h_small w_small"], like: Tensor) -> Float[Tensor, "b c h w"]:
    """Bilinear, corners not aligned, to the height and width of `like` and its dtype: what the network is shown."""
    return functional.interpolate(low_res, like.shape[2:], mode="bilinear").to(like.dtype)


def reduced(x_start: Float[Tensor, "b c h w"], small_size: int) -> Float[Tensor, "b c h_small w_small"]:
    """Means over areas: the small image that training shows beside x_start. Raises ValueError for no reduction."""
    if not 1 <= small_size <= min(x_start.shape[2:]):
        raise ValueError(f"small_size={small_size} of images of {tuple(x_start.shape[2:])} pixels: nothing to reduce")
    return functional.interpolate(x_start, (small_size, small_size), mode="area")
