"""How does noise become an image? Ancestral sampling (Ho et al. 2020, algorithm 2) and DDIM (Song et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, p_mean_variance, predict_eps_from_xstart
from diffusion.randomness import SAMPLE_INIT, SAMPLE_NOISE, normal
from diffusion.schedule import NoiseSchedule, respace
from diffusion.types import Images, Model, Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """How the chain is walked back."""

    kind: Literal["ancestral", "ddim"] = "ancestral"
    respacing: str = ""
    """Which steps are visited: "" all, "250" that many, "90,60,60,20,20" by section, "ddim50" an even stride."""
    clip_denoised: bool = True
    eta: float = 0.0
    """Noise of DDIM's steps: 0 none, 1 as much as ancestral sampling."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"sample.sampler.eta={self.eta}: must be between 0 and 1")
        if self.kind == "ancestral" and self.eta:
            raise ValueError(
                f"sample.sampler.eta={self.eta} is DDIM's: set sample.sampler.kind='ddim', or leave eta at 0"
            )


def sample(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    index: Int64[Tensor, "n"], seed: int, image_shape: tuple[int, int, int],
    on_step: Callable[[int, int], None] | None = None,
) -> Images:  # fmt: skip
    """Draw one image for every index, in [-1, 1] when clipped.

    All noise is a function of (seed, index, step of the walk): an image is the same in any batch, up to the rounding
    of matrix products over batches of different sizes.
    """
    spaced = respace(schedule, config.respacing)
    x = normal(seed=seed, stream=SAMPLE_INIT, step=0, index=index, shape=image_shape)
    step = ancestral_step if config.kind == "ancestral" else ddim_step
    with torch.inference_mode():
        for position in reversed(range(spaced.num_timesteps)):
            t = torch.full_like(index, position)
            noise = normal(seed=seed, stream=SAMPLE_NOISE, step=position, index=index, shape=image_shape)
            x = step(config, diffusion, spaced, model(x, spaced.model_t(t)), x_t=x, t=t, noise=noise)
            if on_step is not None:
                on_step(spaced.num_timesteps - position, spaced.num_timesteps)
    return x.clone()  # an ordinary tensor again, outside inference mode


def ancestral_step(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, output: Tensor, *,
    x_t: Images, t: Steps, noise: Images,
) -> Images:  # fmt: skip
    """x_{t-1} ~ p(x_{t-1} | x_t); at t = 0 its mean."""
    p = p_mean_variance(diffusion, schedule, output, x_t=x_t, t=t, clip_denoised=config.clip_denoised)
    return p.mean + _not_last(t, x_t) * torch.exp(0.5 * p.log_variance) * noise


def ddim_step(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, output: Tensor, *,
    x_t: Images, t: Steps, noise: Images,
) -> Images:  # fmt: skip
    """x_{t-1} by Song et al. 2020, eq. 12; a learned variance plays no part."""
    p = p_mean_variance(diffusion, schedule, output, x_t=x_t, t=t, clip_denoised=config.clip_denoised)
    eps = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=p.pred_xstart)
    signal, direction, sigma = (schedule.gather(table, t, x_t) for table in _ddim_tables(schedule, eta=config.eta))
    return p.pred_xstart * signal + direction * eps + _not_last(t, x_t) * sigma * noise


def _ddim_tables(schedule: NoiseSchedule, *, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies pred_xstart, eps and the noise at each t (Song et al. 2020, eq. 12 and 16), in float64."""
    alpha, alpha_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    variance = eta**2 * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    # At eta = 1 and a large stride almost nothing is left, and rounding may take more than that.
    left = (1 - alpha_prev - variance).clamp(min=0)
    return alpha_prev.sqrt(), left.sqrt(), variance.sqrt()


def to_uint8(images: Images) -> UInt8[Tensor, "b h w c"]:
    """[-1, 1] -> 0..255 as published: truncated, not rounded; channels last."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _not_last(t: Steps, like: Images) -> Tensor:
    return (t != 0).to(like.dtype).reshape(-1, 1, 1, 1)
