"""How does noise become an image, and back? Ancestral sampling (Ho et al. 2020, algorithm 2), DDIM (Song et al. 2020).

All noise is a function of (seed, index, step of the walk): an image is the same in any batch and on any worker, up to
the rounding of matrix products over batches of different sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, Prediction, p_mean_variance, predict_eps_from_xstart
from diffusion.guidance import Guide, condition_mean, condition_score
from diffusion.randomness import SAMPLE_INIT, SAMPLE_LABEL, SAMPLE_NOISE, normal, uniform
from diffusion.schedule import NoiseSchedule, respace
from diffusion.types import Images, Model, Steps

OnStep = Callable[[int, int], None]
"""on_step(steps done, steps in all)"""


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


@dataclass(frozen=True)
class Visit:
    """One step of a walk: where it led, and what the network took for x_start on the way."""

    t: int
    """The step's index in the respaced chain."""
    x: Images
    """x_{t-1} of a walk back, x_{t+1} of one that encodes."""
    pred_xstart: Images
    """Clipped if the sampler clips. Guidance shifts DDIM's after that, and leaves that of ancestral sampling alone."""


def sample(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    index: Int64[Tensor, "n"], seed: int, image_shape: tuple[int, int, int], guide: Guide | None = None,
    on_step: OnStep | None = None,
) -> Images:  # fmt: skip
    """Draw one image for every index: (n, *image_shape), float32.

    In [-1, 1] when x_start is clipped, and neither guidance nor a prediction of x_prev moves the mean after that.
    Raises ValueError for a respacing that the schedule has no steps for.
    """
    x_T = normal(seed=seed, stream=SAMPLE_INIT, step=0, index=index, shape=image_shape)
    return decode(config, diffusion, schedule, model, x_T=x_T, index=index, seed=seed, guide=guide, on_step=on_step)


def decode(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    x_T: Images, index: Int64[Tensor, "b"], seed: int, guide: Guide | None = None, on_step: OnStep | None = None,
) -> Images:  # fmt: skip
    """The images to which a given x_T leads. With DDIM at eta = 0 seed and index play no part. See sample."""
    walk = walk_back(config, diffusion, schedule, model, x_T=x_T, index=index, seed=seed, guide=guide)
    return _last(walk, respace(schedule, config.respacing).num_timesteps, on_step)


def walk_back(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    x_T: Images, index: Int64[Tensor, "b"], seed: int, guide: Guide | None = None,
) -> Iterator[Visit]:  # fmt: skip
    """Every step from x_T to an image, for those who want the trajectory; the last one's x is the image."""
    spaced, x = respace(schedule, config.respacing), x_T
    step = ancestral_step if config.kind == "ancestral" else ddim_step
    for position in reversed(range(spaced.num_timesteps)):
        t = torch.full_like(index, position)
        noise = _noise(config, position, like=x, index=index, seed=seed)
        with torch.no_grad():
            model_t = spaced.model_t(t)
            gradient = None if guide is None else guide(x, model_t)
            p = p_mean_variance(diffusion, spaced, model(x, model_t), x_t=x, t=t, clip_denoised=config.clip_denoised)
            if gradient is not None and config.kind == "ancestral":
                p = condition_mean(p, gradient)
            elif gradient is not None:
                p = condition_score(spaced, p, x_t=x, t=t, gradient=gradient)
            x = step(config, spaced, p, x_t=x, t=t, noise=noise)
        yield Visit(position, x, p.pred_xstart)


def encode(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    x_start: Images, on_step: OnStep | None = None,
) -> Images:  # fmt: skip
    """The x_T from which DDIM at eta = 0 draws about x_start (Song et al. 2020, section 4.3): its chain, walked up.

    Raises ValueError for any other sampler.
    """
    walk = walk_up(config, diffusion, schedule, model, x_start=x_start)
    return _last(walk, respace(schedule, config.respacing).num_timesteps, on_step)


def walk_up(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images
) -> Iterator[Visit]:
    """Every step from an image to its x_T. Raises ValueError for a sampler that has no way back."""
    if config.kind != "ddim" or config.eta:
        raise ValueError(
            f"sample.sampler.kind={config.kind!r}, eta={config.eta}: only DDIM with eta=0, whose steps add no noise, "
            f"can be walked up"
        )
    spaced, x = respace(schedule, config.respacing), x_start
    for position in range(spaced.num_timesteps):
        t = torch.full((len(x),), position, dtype=torch.int64, device=x.device)
        with torch.no_grad():
            p = p_mean_variance(
                diffusion, spaced, model(x, spaced.model_t(t)), x_t=x, t=t, clip_denoised=config.clip_denoised
            )
            x = ddim_step_up(spaced, p, x_t=x, t=t)
        yield Visit(position, x, p.pred_xstart)


def ancestral_step(
    config: SamplerConfig, schedule: NoiseSchedule, p: Prediction, *, x_t: Images, t: Steps, noise: Images
) -> Images:
    """x_{t-1} ~ p(x_{t-1} | x_t); at t = 0 its mean."""
    return p.mean + _not_last(t, x_t) * torch.exp(0.5 * p.log_variance) * noise


def ddim_step(
    config: SamplerConfig, schedule: NoiseSchedule, p: Prediction, *, x_t: Images, t: Steps, noise: Images
) -> Images:
    """x_{t-1} by Song et al. 2020, eq. 12 and 16, from p's pred_xstart alone: a learned variance plays no part."""
    eps = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=p.pred_xstart)
    alpha = schedule.gather(schedule.alphas_cumprod, t, x_t)
    alpha_prev = schedule.gather(schedule.alphas_cumprod_prev, t, x_t)
    sigma = config.eta * ((1 - alpha_prev) / (1 - alpha)).sqrt() * (1 - alpha / alpha_prev).sqrt()
    # At eta = 1 and a large stride almost nothing is left, and rounding may take more: the published root is then nan.
    left = (1 - alpha_prev - sigma**2).clamp(min=0)
    return p.pred_xstart * alpha_prev.sqrt() + left.sqrt() * eps + _not_last(t, x_t) * sigma * noise


def ddim_step_up(schedule: NoiseSchedule, p: Prediction, *, x_t: Images, t: Steps) -> Images:
    """x_{t+1} by the same ODE, walked the other way; beyond the last step there is nothing but eps."""
    eps = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=p.pred_xstart)
    alpha_next = schedule.gather(schedule.alphas_cumprod_next, t, x_t)
    return p.pred_xstart * alpha_next.sqrt() + (1 - alpha_next).sqrt() * eps


def class_labels(
    which: Literal["balanced", "drawn"], *, index: Int64[Tensor, "n"], seed: int, num_classes: int
) -> Int64[Tensor, "n"]:
    """The class each image is to be of: one after the other, or drawn evenly as published, by its index alone."""
    if which == "balanced":
        return index % num_classes
    draws = uniform(seed=seed, stream=SAMPLE_LABEL, step=0, index=index, count=1)[:, 0]
    return (draws * num_classes).long()


def to_uint8(images: Images, *, rounding: Literal["truncate", "nearest"] = "truncate") -> UInt8[Tensor, "b h w c"]:
    """[-1, 1] -> 0..255, channels last. Published is truncate, half a grey level too dark on average."""
    values = (images + 1) * 127.5
    values = values.round() if rounding == "nearest" else values
    return values.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _noise(config: SamplerConfig, position: int, *, like: Images, index: Int64[Tensor, "b"], seed: int) -> Images:
    """A step's noise; zeros where the step takes none."""
    if position == 0 or (config.kind == "ddim" and config.eta == 0):
        return torch.zeros_like(like)
    return normal(seed=seed, stream=SAMPLE_NOISE, step=position, index=index, shape=tuple(like.shape[1:]))


def _last(walk: Iterator[Visit], steps: int, on_step: OnStep | None) -> Images:
    done = 0
    for visit in walk:
        x, done = visit.x, done + 1
        if on_step is not None:
            on_step(done, steps)
    return x


def _not_last(t: Steps, like: Images) -> Tensor:
    return (t != 0).to(like.dtype).reshape(-1, 1, 1, 1)
