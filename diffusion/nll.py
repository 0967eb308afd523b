"""How many bits/dim does a model need for an image? The bound L_vlb = L_0 + ... + L_{T-1} + prior (IDDPM eq. 4-7).

The full loop evaluates all T terms. The estimator evaluates L_0, the prior, and a few of the other terms, drawn by
importance: unbiased, and for the same standard error it needs hundreds of times fewer forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, q_sample
from diffusion.likelihood import gaussian_kl, nats_to_bpd
from diffusion.losses import vlb_term
from diffusion.randomness import NLL_NOISE, NLL_TIMESTEP, PILOT, normal, uniform
from diffusion.schedule import NoiseSchedule
from diffusion.types import Images, Model, PerExample, Steps

PILOT_STEPS = 100
PILOT_UNIFORM = 0.02
"""Share of the density that is uniform, so that no term the pilot underestimates gets a huge weight."""


@dataclass(frozen=True)
class NllTerms:
    """The whole bound of each image, term by term, in bits/dim."""

    terms: Float[Tensor, "n T"]
    """L_t at column t. (Files of the published evaluation run the other way: their column 0 is t = T - 1.)"""
    prior_bpd: PerExample

    @property
    def total_bpd(self) -> PerExample:
        """L_vlb of each image."""
        return self.terms.sum(dim=1) + self.prior_bpd


def nll_full(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "n"],
    seed: int, clip_denoised: bool = True, on_step: Callable[[int, int], None] | None = None,
) -> NllTerms:  # fmt: skip
    """Every term of the bound, each with noise of its own, a function of (seed, index, t): T forwards an image."""
    terms = torch.empty(len(x_start), schedule.num_timesteps, dtype=torch.float64, device=x_start.device)
    for step in range(schedule.num_timesteps):
        eps = normal(seed=seed, stream=NLL_NOISE, step=step, index=index, shape=tuple(x_start.shape[1:]))
        t = torch.full_like(index, step)
        terms[:, step] = vlb_at(config, schedule, model, x_start=x_start, t=t, eps=eps, clip_denoised=clip_denoised)
        if on_step is not None:
            on_step(step + 1, schedule.num_timesteps)
    return NllTerms(terms, prior_bpd(schedule, x_start))


def nll_estimate(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "n"],
    seed: int, density: Float[Tensor, "T_minus_1"], draws: int, clip_denoised: bool = True, batch_size: int = 512,
) -> PerExample:  # fmt: skip
    """An unbiased estimate of each image's bound, in bits/dim: L_0 and the prior, and `draws` terms for L_1..L_{T-1}.

    The draws of an image are one systematic sample of `density` (index t - 1), offset by a uniform of its own; every
    term, L_0 too, is evaluated with one noise. So estimates are independent between images, and each is a function
    of (seed, index), up to the rounding of matrix products over batches of other sizes.
    """
    n = len(x_start)
    t, weights = _draw_terms(density.to(x_start.device), index, seed=seed, draws=draws)
    decoder_t = torch.zeros(n, 1, dtype=torch.int64, device=x_start.device)
    all_t = torch.cat([decoder_t, t], dim=1)
    all_weights = torch.cat([torch.ones_like(weights[:, :1]), weights], dim=1)
    which = torch.arange(n, device=x_start.device)[:, None].expand_as(all_t).reshape(-1)
    draw = torch.arange(draws + 1, device=x_start.device).expand_as(all_t).reshape(-1)
    values = []
    for first in range(0, n * (draws + 1), batch_size):
        rows = slice(first, first + batch_size)
        # The counter's step is the draw, so that each of an image's terms has noise of its own.
        eps = normal(
            seed=seed, stream=NLL_NOISE, step=draw[rows], index=index[which[rows]], shape=tuple(x_start.shape[1:])
        )
        pair = {"x_start": x_start[which[rows]], "t": all_t.reshape(-1)[rows], "eps": eps}
        values.append(vlb_at(config, schedule, model, **pair, clip_denoised=clip_denoised).double())
    terms = torch.cat(values).reshape(n, draws + 1)
    return (terms * all_weights).sum(dim=1) + prior_bpd(schedule, x_start)


def pilot(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, seed: int,
    clip_denoised: bool = True,
) -> Float[Tensor, "T_minus_1"]:  # fmt: skip
    """A density over t = 1..T-1 near sqrt(E[L_t^2]), from a few images at log-spaced t; float64, sums to 1.

    Any fixed positive density leaves the estimate unbiased; a good one makes its variance small.
    """
    last = schedule.num_timesteps - 1
    steps = np.unique(np.round(np.geomspace(1, last, min(PILOT_STEPS, last))).astype(np.int64))
    index = torch.arange(len(x_start), device=x_start.device)
    sizes = []
    for step in steps.tolist():
        eps = normal(seed=seed, stream=PILOT, step=step, index=index, shape=tuple(x_start.shape[1:]))
        t = torch.full_like(index, step)
        terms = vlb_at(config, schedule, model, x_start=x_start, t=t, eps=eps, clip_denoised=clip_denoised)
        sizes.append(float(terms.double().square().mean().sqrt()))
    floor = max(max(sizes), 1e-300) * 1e-12  # a term that is 0 for the pilot's images has no logarithm
    log_sizes = np.interp(np.log(np.arange(1, last + 1)), np.log(steps), np.log(np.maximum(sizes, floor)))
    shape = np.exp(log_sizes - log_sizes.max())
    mixed = (1 - PILOT_UNIFORM) * shape / shape.sum() + PILOT_UNIFORM / last
    return torch.from_numpy(mixed)


def vlb_at(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    x_start: Images, t: Steps, eps: Images, clip_denoised: bool = True,
) -> PerExample:  # fmt: skip
    """L_t of each image in bits/dim, at x_t made with eps."""
    with torch.inference_mode():
        x_t = q_sample(schedule, x_start=x_start, t=t, eps=eps)
        output = model(x_t, schedule.model_t(t))
        term = vlb_term(config, schedule, output, x_start=x_start, x_t=x_t, t=t, clip_denoised=clip_denoised)
    return term.clone()  # an ordinary tensor again, outside inference mode


def prior_bpd(schedule: NoiseSchedule, x_start: Images) -> PerExample:
    """KL(q(x_T | x_0) || N(0, I)) in bits/dim (float64): what the last step has not yet made noise."""
    last = schedule.num_timesteps - 1
    mean = schedule.sqrt_alphas_cumprod[last] * x_start.double()
    log_variance = schedule.log_one_minus_alphas_cumprod[last].expand_as(mean)
    zero = torch.zeros_like(mean)
    return nats_to_bpd(gaussian_kl(mean, log_variance, zero, zero))


def _draw_terms(
    density: Float[Tensor, "T_minus_1"], index: Int64[Tensor, "n"], *, seed: int, draws: int
) -> tuple[Int64[Tensor, "n draws"], Float[Tensor, "n draws"]]:
    """t in 1..T-1 at evenly spaced quantiles, and the weights 1 / (draws p_t)."""
    offset = uniform(seed=seed, stream=NLL_TIMESTEP, step=0, index=index, count=1)
    quantiles = (torch.arange(draws, device=index.device, dtype=torch.float64) + offset) / draws
    cumulative = torch.cumsum(density, dim=0)
    cumulative = cumulative / cumulative[-1]
    place = torch.searchsorted(cumulative, quantiles, right=True).clamp(max=len(density) - 1)
    return place + 1, 1 / (draws * density[place])
