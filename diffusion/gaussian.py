"""How does one step go forward, and back? q (Ho et al. 2020, section 2); p with fixed or learned variance (IDDPM).

Images in any floating dtype, results in that dtype or float32, whichever is wider. In the equations beta, abar, abar'
are betas, alphas_cumprod and alphas_cumprod_prev at t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.schedule import NoiseSchedule, cosine, linear
from diffusion.types import Images, ModelOutput, Steps

VLB_WEIGHT = 1e-3  # IDDPM eq. 16, lambda


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """The process a network is trained for, and the loss it is trained with."""

    num_timesteps: int = 4000
    """T, the length of the chain."""
    schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["eps", "x_start", "x_prev"] = "eps"
    """What the network's mean channels predict."""
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "learned_range"
    """fixed_small: the posterior's. fixed_large: beta_t. learned: as many channels again are its logarithm.
    learned_range: they say where between those two its logarithm lies."""
    loss: Literal["simple", "vlb", "hybrid"] = "hybrid"
    vlb_weight: float | Literal["1/T"] = VLB_WEIGHT
    """lambda of L_hybrid = L_simple + lambda L_vlb, with L_vlb in bits/dim; no other loss has it. Published are 0.001
    (rescale_learned_sigmas) and "1/T" (without it), which are the same at T = 1000."""
    rescale_timesteps: bool = True
    """Tell the network t * 1000 / T, as IDDPM does; ADM tells it t."""

    def __post_init__(self) -> None:
        if self.loss == "hybrid" and not self.learns_variance:
            raise ValueError(
                f"diffusion.loss='hybrid' learns the variance: set diffusion.variance='learned_range' or 'learned', "
                f"not {self.variance!r}"
            )
        if self.loss == "simple" and self.learns_variance:
            raise ValueError(
                "diffusion.loss='simple' gives a learned variance no gradient: set diffusion.variance='fixed_large' "
                "or 'fixed_small', or diffusion.loss='hybrid'"
            )
        if self.vlb_weight != "1/T" and not 0 < self.vlb_weight < math.inf:
            raise ValueError(
                f"diffusion.vlb_weight={self.vlb_weight}: must be more than 0 and finite, or '1/T'; "
                f"for no L_vlb use loss='simple'"
            )
        if self.loss != "hybrid" and self.vlb_weight != VLB_WEIGHT:
            raise ValueError(
                f"diffusion.vlb_weight={self.vlb_weight} changes nothing with diffusion.loss={self.loss!r}: "
                f"leave it at {VLB_WEIGHT}, or set diffusion.loss='hybrid'"
            )
        build_schedule(self)  # T and the schedule must go together

    @property
    def learns_variance(self) -> bool:
        """Whether the network has twice the image's channels."""
        return self.variance in ("learned", "learned_range")


@dataclass(frozen=True)
class Prediction:
    """p(x_{t-1} | x_t): a diagonal Gaussian, and the x_start it comes from."""

    mean: Images
    variance: Images
    log_variance: Images
    """Of fixed_small at t = 0 it is not the variance's, 0, but that of t = 1: the decoder needs a width."""
    pred_xstart: Images


def build_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The schedule of a config. Raises ValueError when T is too short for it."""
    make = {"linear": linear, "cosine": cosine}[config.schedule]
    return make(config.num_timesteps, rescale_timesteps=config.rescale_timesteps)


def q_sample(schedule: NoiseSchedule, *, x_start: Images, t: Steps, eps: Images) -> Images:
    """Draw x_t ~ q(x_t | x_0): sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4)."""
    signal = schedule.gather(schedule.sqrt_alphas_cumprod, t, x_start)
    noise = schedule.gather(schedule.sqrt_one_minus_alphas_cumprod, t, x_start)
    return signal * x_start + noise * eps


def q_mean_variance(schedule: NoiseSchedule, *, x_start: Images, t: Steps) -> tuple[Images, Images, Images]:
    """Mean, variance and log variance of q(x_t | x_0) (Ho et al. 2020, eq. 4)."""
    mean = schedule.gather(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
    variance = schedule.gather(1 - schedule.alphas_cumprod, t, x_start).expand_as(mean)
    log_variance = schedule.gather(schedule.log_one_minus_alphas_cumprod, t, x_start).expand_as(mean)
    return mean, variance, log_variance


def q_posterior(schedule: NoiseSchedule, *, x_start: Images, x_t: Images, t: Steps) -> tuple[Images, Images, Images]:
    """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 6 and 7)."""
    mean = q_posterior_mean(schedule, x_start=x_start, x_t=x_t, t=t)
    variance = schedule.gather(schedule.posterior_variance, t, x_t).expand_as(mean)
    log_variance = schedule.gather(schedule.posterior_log_variance_clipped, t, x_t).expand_as(mean)
    return mean, variance, log_variance


def q_posterior_mean(schedule: NoiseSchedule, *, x_start: Images, x_t: Images, t: Steps) -> Images:
    """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
    coef1 = schedule.gather(schedule.posterior_mean_coef1, t, x_t)
    coef2 = schedule.gather(schedule.posterior_mean_coef2, t, x_t)
    return coef1 * x_start + coef2 * x_t


def predict_xstart_from_eps(schedule: NoiseSchedule, *, x_t: Images, t: Steps, eps: Images) -> Images:
    """The x_0 that this eps would have turned into x_t: sqrt(1 / abar) x_t - sqrt(1 / abar - 1) eps (from eq. 4)."""
    recip = schedule.gather(schedule.sqrt_recip_alphas_cumprod, t, x_t)
    recipm1 = schedule.gather(schedule.sqrt_recipm1_alphas_cumprod, t, x_t)
    return recip * x_t - recipm1 * eps


def predict_eps_from_xstart(schedule: NoiseSchedule, *, x_t: Images, t: Steps, pred_xstart: Images) -> Images:
    """The eps that would have turned this x_0 into x_t: (sqrt(1 / abar) x_t - x_0) / sqrt(1 / abar - 1)."""
    recip = schedule.gather(schedule.sqrt_recip_alphas_cumprod, t, x_t)
    recipm1 = schedule.gather(schedule.sqrt_recipm1_alphas_cumprod, t, x_t)
    return (recip * x_t - pred_xstart) / recipm1


def predict_xstart_from_xprev(schedule: NoiseSchedule, *, x_t: Images, t: Steps, x_prev: Images) -> Images:
    """The x_0 whose posterior mean is x_prev (eq. 7, solved for x_0)."""
    coef1, coef2 = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
    return schedule.gather(1 / coef1, t, x_t) * x_prev - schedule.gather(coef2 / coef1, t, x_t) * x_t


def p_mean_variance(
    config: DiffusionConfig, schedule: NoiseSchedule, model_output: ModelOutput, *,
    x_t: Images, t: Steps, clip_denoised: bool,
) -> Prediction:  # fmt: skip
    """p(x_{t-1} | x_t) from what the network said; raises ValueError when that has the wrong number of channels.

    Clipping bounds x_start to [-1, 1], and through it the mean; a predicted x_prev is the mean already, and stays.
    """
    mean_part, variance, log_variance = split_output(config, schedule, model_output, x_t=x_t, t=t)
    pred_xstart = _pred_xstart(config, schedule, mean_part, x_t, t)
    if clip_denoised:
        pred_xstart = pred_xstart.clamp(-1, 1)
    if config.prediction == "x_prev":
        return Prediction(mean_part, variance, log_variance, pred_xstart)
    mean = q_posterior_mean(schedule, x_start=pred_xstart, x_t=x_t, t=t)
    return Prediction(mean, variance, log_variance, pred_xstart)


def split_output(
    config: DiffusionConfig, schedule: NoiseSchedule, model_output: ModelOutput, *, x_t: Images, t: Steps
) -> tuple[Images, Images, Images]:
    """The mean channels, and the variance and its logarithm, which fixed tables or the variance channels v give.

    learned_range (IDDPM eq. 15): log variance = f log beta_t + (1 - f) log posterior variance, f = (v + 1) / 2.
    """
    model_output = as_output(config, model_output, channels=x_t.shape[1])
    if config.learns_variance:
        mean_part, v = model_output.chunk(2, dim=1)
        log_variance = v if config.variance == "learned" else _in_range(schedule, v, x_t, t)
        return mean_part, torch.exp(log_variance), log_variance
    tables = {
        "fixed_small": (schedule.posterior_variance, schedule.posterior_log_variance_clipped),
        "fixed_large": (schedule.fixed_large_variance, schedule.fixed_large_log_variance),
    }
    variance, log_variance = (schedule.gather(table, t, x_t).expand_as(x_t) for table in tables[config.variance])
    return model_output, variance, log_variance


def as_output(config: DiffusionConfig, model_output: ModelOutput, *, channels: int) -> ModelOutput:
    """What a network said, in float32 or more: in 16 bits a learned variance would leave its range.

    Raises ValueError unless it has as many channels as the image, or twice as many when the variance is learned.
    """
    expected = channels * 2 if config.learns_variance else channels
    if model_output.shape[1] != expected:
        raise ValueError(
            f"the network gives {model_output.shape[1]} channels; diffusion.variance={config.variance!r} "
            f"of images with {channels} takes {expected}"
        )
    return model_output.to(torch.promote_types(model_output.dtype, torch.float32))


def range_fraction(v: Images) -> Images:
    """Where a learned_range lies: 0 at the posterior variance, 1 at beta_t, nothing keeps it between (IDDPM eq. 15)."""
    return (v + 1) / 2


def _in_range(schedule: NoiseSchedule, v: Tensor, x_t: Images, t: Steps) -> Images:
    fraction = range_fraction(v)
    largest = schedule.gather(schedule.log_betas, t, x_t)
    smallest = schedule.gather(schedule.posterior_log_variance_clipped, t, x_t)
    return fraction * largest + (1 - fraction) * smallest


def _pred_xstart(config: DiffusionConfig, schedule: NoiseSchedule, mean_part: Images, x_t: Images, t: Steps) -> Images:
    if config.prediction == "x_start":
        return mean_part
    if config.prediction == "x_prev":
        return predict_xstart_from_xprev(schedule, x_t=x_t, t=t, x_prev=mean_part)
    return predict_xstart_from_eps(schedule, x_t=x_t, t=t, eps=mean_part)
