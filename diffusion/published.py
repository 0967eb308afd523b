"""Which networks did the papers publish, or print results of? Their settings, by the names of their files.

Sources: the model cards and READMEs of both repositories, and the papers' tables of hyper-parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from diffusion.classifier import ClassifierConfig, NoisyClassifier
from diffusion.gaussian import DiffusionConfig
from diffusion.superres import SuperResConfig, SuperResUNet
from diffusion.trunk import UNetConfig
from diffusion.unet import UNet

LEARNED = 6
"""Output channels: three of the mean, three of the variance, which all published models learn."""

CHANNEL_MULT: dict[int, tuple[int | float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""By image size. IDDPM has those of 32, 64 and 256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A network of a paper, and the process it was trained for; a classifier's is that of the model it guides."""

    network: UNetConfig | SuperResConfig | ClassifierConfig
    diffusion: DiffusionConfig

    def build(self) -> UNet | NoisyClassifier:
        """The network with fresh weights, on the current default device."""
        if isinstance(self.network, ClassifierConfig):
            return NoisyClassifier(self.network)
        if isinstance(self.network, SuperResConfig):
            return SuperResUNet(self.network, LEARNED)
        return UNet(self.network, LEARNED)


def _adm_process(schedule: Literal["linear", "cosine"]) -> DiffusionConfig:
    """rescale_learned_sigmas and rescale_timesteps are off in ADM."""
    return DiffusionConfig(num_timesteps=1000, schedule=schedule, vlb_weight="1/T", rescale_timesteps=False)


def _adm(image_size: int, *, model_channels: int = 256, num_res_blocks: int = 2, **choices: object) -> UNetConfig:
    config = UNetConfig(
        image_size=image_size,
        model_channels=model_channels,
        num_res_blocks=num_res_blocks,
        channel_mult=CHANNEL_MULT[image_size],
        attention_resolutions=(32, 16, 8),
        num_heads=None,
        num_head_channels=64,
        resampling="residual",
    )
    return replace(config, **choices)  # type: ignore[arg-type]  # fields of UNetConfig


def _adm_classifier(image_size: int, *, num_res_blocks: int = 2) -> ClassifierConfig:
    return ClassifierConfig(encoder=_adm(image_size, model_channels=128, num_res_blocks=num_res_blocks))


def _iddpm_64(model_channels: int, *, num_classes: int | None = None) -> UNetConfig:
    return UNetConfig(
        image_size=64,
        model_channels=model_channels,
        num_res_blocks=3,
        channel_mult=CHANNEL_MULT[64],
        num_classes=num_classes,
    )


_LINEAR, _COSINE = _adm_process("linear"), _adm_process("cosine")
_HYBRID = DiffusionConfig()
_VLB = DiffusionConfig(loss="vlb")
_CIFAR10 = UNetConfig(image_size=32, num_res_blocks=3, channel_mult=CHANNEL_MULT[32], dropout=0.3)
_LSUN_IDDPM = UNetConfig(
    image_size=256, channel_mult=CHANNEL_MULT[256], attention_resolutions=(16,), num_heads=1, conditioning="additive"
)
_UPSAMPLER_512 = _adm(
    512, model_channels=192, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(32, 16), num_classes=1000
)
_UPSAMPLER_IDDPM = UNetConfig(image_size=256, model_channels=192, channel_mult=CHANNEL_MULT[256], num_classes=1000)


def _model(network: UNetConfig | SuperResConfig | ClassifierConfig, diffusion: DiffusionConfig) -> PublishedModel:
    return PublishedModel(network=network, diffusion=diffusion)


ADM: dict[str, PublishedModel] = {
    "64x64_diffusion": _model(
        _adm(
            64,
            model_channels=192,
            num_res_blocks=3,
            dropout=0.1,
            num_classes=1000,
            attention_layout="new",  # the only one
        ),
        _COSINE,
    ),
    "128x128_diffusion": _model(_adm(128, num_heads=4, num_head_channels=None, num_classes=1000), _LINEAR),
    "256x256_diffusion": _model(_adm(256, num_classes=1000), _LINEAR),
    "256x256_diffusion_uncond": _model(_adm(256), _LINEAR),
    "512x512_diffusion": _model(_adm(512, num_classes=1000), _LINEAR),
    "64_256_upsampler": _model(
        SuperResConfig(
            unet=_adm(256, model_channels=192, num_heads=4, num_head_channels=None, num_classes=1000), small_size=64
        ),
        _LINEAR,
    ),
    "128_512_upsampler": _model(SuperResConfig(unet=_UPSAMPLER_512, small_size=128), _LINEAR),
    "lsun_bedroom": _model(_adm(256, dropout=0.1), _LINEAR),
    "lsun_cat": _model(_adm(256, dropout=0.1), _LINEAR),
    "lsun_horse": _model(_adm(256, dropout=0.1), _LINEAR),
    "lsun_horse_nodropout": _model(_adm(256), _LINEAR),
    "64x64_classifier": _model(_adm_classifier(64, num_res_blocks=4), _COSINE),
    "128x128_classifier": _model(_adm_classifier(128), _LINEAR),
    "256x256_classifier": _model(_adm_classifier(256), _LINEAR),
    "512x512_classifier": _model(_adm_classifier(512), _LINEAR),
}
"""Diffusion Models Beat GANs."""

IDDPM: dict[str, PublishedModel] = {
    "imagenet64_uncond_100M_1500K": _model(_iddpm_64(128), _HYBRID),
    "imagenet64_uncond_vlb_100M_1500K": _model(_iddpm_64(128), _VLB),
    "imagenet64_cond_270M_250K": _model(
        _iddpm_64(192, num_classes=1000), replace(_HYBRID, vlb_weight="1/T", rescale_timesteps=False)
    ),
    "cifar10_uncond_50M_500K": _model(_CIFAR10, _HYBRID),
    "cifar10_uncond_vlb_50M_500K": _model(_CIFAR10, _VLB),
    "lsun_uncond_100M_1200K_bs128": _model(_LSUN_IDDPM, _LINEAR),
    "lsun_uncond_100M_2400K_bs64": _model(_LSUN_IDDPM, _LINEAR),
    "upsample_cond_500K": _model(
        SuperResConfig(unet=_UPSAMPLER_IDDPM, small_size=64), replace(_LINEAR, num_timesteps=4000)
    ),
    **{f"iddpm_scaling_{channels}ch": _model(_iddpm_64(channels), _HYBRID) for channels in (64, 96, 128, 192)},
}
"""Improved DDPM: its files, and the four widths of its scaling study (section 6)."""

PUBLISHED: dict[str, PublishedModel] = {**ADM, **IDDPM}

_ABLATION = UNetConfig(
    image_size=128,
    model_channels=160,
    num_res_blocks=2,
    channel_mult=CHANNEL_MULT[128],
    attention_resolutions=(16,),
    num_heads=1,
    num_classes=1000,
)
_ATTENTION = replace(_ABLATION, model_channels=128, attention_resolutions=(32, 16, 8), resampling="residual")


def _head_channels(channels: int) -> UNetConfig:
    return replace(_ATTENTION, num_heads=None, num_head_channels=channels)


ADM_ABLATION: dict[str, UNetConfig] = {
    "base": _ABLATION,
    "deeper": replace(_ABLATION, model_channels=128, num_res_blocks=4),
    "4 heads": replace(_ABLATION, num_heads=4),
    "attention at 32, 16, 8": replace(_ABLATION, attention_resolutions=(32, 16, 8)),
    "BigGAN up/down": replace(_ABLATION, resampling="residual"),
    "rescaled": replace(_ABLATION, residual_scale="1/sqrt(2)"),
    "all but deeper and rescaled": replace(
        _ABLATION, num_heads=4, attention_resolutions=(32, 16, 8), resampling="residual"
    ),
    **{f"attention, {heads} heads": replace(_ATTENTION, num_heads=heads) for heads in (1, 2, 4, 8)},
    **{f"attention, {channels} channels a head": _head_channels(channels) for channels in (32, 64, 128)},
    "AdaGN": _head_channels(64),
    "addition": replace(_head_channels(64), conditioning="additive"),
}
"""The networks of ADM's tables 1 (first seven), 2 (the attention ones) and 3 (the last two), ImageNet 128x128.

Table 1 changes one thing of the base each. The paper does not print whether they knew the class: here they do, as its
final models.
"""
