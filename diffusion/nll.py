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
from scipy import stats
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, p_mean_variance, predict_eps_from_xstart, q_sample
from diffusion.likelihood import Cdf, nats_to_bpd
from diffusion.losses import vlb_of
from diffusion.randomness import NLL_DRAWN_NOISE, NLL_NOISE, NLL_TIMESTEP, PILOT, normal, uniform
from diffusion.schedule import NoiseSchedule
from diffusion.types import Images, Model, PerExample, Steps

PILOT_STEPS = 100
PILOT_UNIFORM = 0.02
"""Share of the density that is uniform, so that no term the pilot underestimates gets a huge weight."""
FEWEST_IMAGES = 20
"""With which a width that was estimated may end the rounds."""


@dataclass(frozen=True)
class TermAt:
    """What one forward tells of an image at its t."""

    vlb_bpd: PerExample
    """L_t in bits/dim."""
    xstart_mse: PerExample
    """Mean squared error of the predicted x_start, clipped if asked."""
    eps_mse: PerExample
    """Mean squared error of the eps that this x_start stands for."""


@dataclass(frozen=True)
class NllTerms:
    """The whole bound of each image, term by term.

    Step t is at column t. (Files of the published evaluation run the other way: their column 0 is t = T - 1.)
    """

    terms: Float[Tensor, "n T"]
    """L_t in bits/dim."""
    prior_bpd: PerExample
    xstart_mse: Float[Tensor, "n T"]
    eps_mse: Float[Tensor, "n T"]

    @property
    def total_bpd(self) -> PerExample:
        """L_vlb of each image."""
        return self.terms.sum(dim=1) + self.prior_bpd


@dataclass(frozen=True)
class NllEstimate:
    """The mean bound over a set of images, in bits/dim, and how far off it may be."""

    mean_bpd: float
    standard_error: float
    """As an estimate for all images these are drawn from: the spread between images, and the draws of t and noise."""
    standard_error_of_draws: float | None
    """As an estimate of what full loops find for these very images on average; None after a single round."""
    images: int
    rounds: int

    @property
    def interval_of_draws(self) -> float | None:
        """Half the width of the 95 % interval for the mean of full loops, whose noise differs, by Student's t."""
        if self.standard_error_of_draws is None:
            return None
        return float(stats.t.ppf(0.975, self.images * (self.rounds - 1))) * self.standard_error_of_draws


def nll_full(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "b"],
    seed: int, y: Int64[Tensor, "b"] | None = None, clip_denoised: bool = True, cdf: Cdf = "approximate",
    batch_size: int = 512, on_step: Callable[[int, int], None] | None = None,
) -> NllTerms:  # fmt: skip
    """Every term of the bound (float64), each with noise of its own, a function of (seed, index, t): T forwards each.

    x_start (n, c, h, w) in [-1, 1], of 256 levels; index is the images' place in the data set; y their classes, for a
    network that is told them.

    On a respaced schedule it is the bound of the shorter chain. Batches hold pairs of t and image, batch_size at most.
    """
    n, T = len(x_start), schedule.num_timesteps
    pairs = torch.arange(n * T, device=x_start.device)
    found = []
    for some in pairs.split(batch_size):
        t, which = some // n, some % n
        eps = normal(seed=seed, stream=NLL_NOISE, step=t, index=index[which], shape=tuple(x_start.shape[1:]))
        term = term_at(
            config, schedule, model, x_start=x_start[which], t=t, eps=eps, y=None if y is None else y[which],
            clip_denoised=clip_denoised, cdf=cdf,
        )  # fmt: skip
        found.append(torch.stack([term.vlb_bpd, term.xstart_mse, term.eps_mse]).double())
        if on_step is not None:
            on_step((int(some[-1]) + 1) // n, T)
    terms, xstart_mse, eps_mse = torch.cat(found, dim=1).reshape(3, T, n).transpose(1, 2)
    return NllTerms(terms, prior_bpd(schedule, x_start), xstart_mse, eps_mse)


def nll_estimate(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "b"],
    seed: int, density: Float[Tensor, "T_minus_1"], draws: int, round: int = 0, y: Int64[Tensor, "b"] | None = None,
    clip_denoised: bool = True, cdf: Cdf = "approximate", batch_size: int = 512,
) -> PerExample:  # fmt: skip
    """One round of an unbiased estimate of each image's bound, in bits/dim (float64): draws + 1 forwards an image.

    L_0 and the prior are always there; of L_1..L_{T-1} there are `draws`, one systematic sample of `density` (index
    t - 1), offset by a uniform of the image's own. Every term is evaluated with one noise. So rounds are independent,
    and so are images; each is a function of (seed, index, round), up to the rounding of matrix products over batches
    of other sizes. Nothing is shared with the noise of nll_full. Raises ValueError for a density that is not one over
    t = 1..T-1, and for no draws.
    """
    _check_density(density, schedule)
    if draws < 1 or round < 0:
        raise ValueError(f"draws={draws}, round={round}: at least 1 draw, and rounds count from 0")
    n = len(x_start)
    t, weights = _draw_terms(density.to(x_start.device), index, seed=seed, draws=draws, round=round)
    t = torch.cat([torch.zeros_like(t[:, :1]), t], dim=1).reshape(-1)
    weights = torch.cat([torch.ones_like(weights[:, :1]), weights], dim=1)
    which = torch.arange(n, device=x_start.device).repeat_interleave(draws + 1)
    # The counter's step is the draw, so that each of an image's terms has noise of its own.
    draw = torch.arange(round * (draws + 1), (round + 1) * (draws + 1), device=x_start.device).repeat(n)
    found = []
    for rows in torch.arange(len(t), device=x_start.device).split(batch_size):
        of = which[rows]
        eps = normal(
            seed=seed, stream=NLL_DRAWN_NOISE, step=draw[rows], index=index[of], shape=tuple(x_start.shape[1:])
        )
        term = term_at(
            config, schedule, model, x_start=x_start[of], t=t[rows], eps=eps, y=None if y is None else y[of],
            clip_denoised=clip_denoised, cdf=cdf,
        )  # fmt: skip
        found.append(term.vlb_bpd.double())
    return (torch.cat(found).reshape(n, draws + 1) * weights).sum(dim=1) + prior_bpd(schedule, x_start)


def nll_within(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "b"],
    seed: int, density: Float[Tensor, "T_minus_1"], draws: int, interval_bpd: float, max_rounds: int,
    clip_denoised: bool = True, cdf: Cdf = "approximate", batch_size: int = 512,
    on_round: Callable[[NllEstimate], None] | None = None,
) -> tuple[NllEstimate, Float[Tensor, "rounds b"]]:  # fmt: skip
    """Rounds of nll_estimate until the mean of full loops is known to +-interval_bpd (95 %), or max_rounds are over.

    At least two rounds. The estimate says how wide its interval is; the second value is every round of every image.
    Raises ValueError for fewer images than FEWEST_IMAGES: to stop at a width that was itself estimated from few is to
    stop where it came out too narrow.
    """
    if not interval_bpd > 0 or max_rounds < 2 or len(x_start) < FEWEST_IMAGES:
        raise ValueError(
            f"interval_bpd={interval_bpd}, max_rounds={max_rounds}, {len(x_start)} images: an interval must be more "
            f"than 0, and takes at least 2 rounds of {FEWEST_IMAGES} images"
        )
    rounds: list[PerExample] = []
    while True:
        rounds.append(
            nll_estimate(
                config, schedule, model, x_start=x_start, index=index, seed=seed, density=density, draws=draws,
                round=len(rounds), clip_denoised=clip_denoised, cdf=cdf, batch_size=batch_size,
            )
        )  # fmt: skip
        estimate = summarize(torch.stack(rounds))
        if on_round is not None:
            on_round(estimate)
        if is_within(estimate, interval_bpd) or len(rounds) == max_rounds:
            return estimate, torch.stack(rounds)


def is_within(estimate: NllEstimate, interval_bpd: float) -> bool:
    """Whether the mean that full loops find on average is known to +-interval_bpd with 95 % confidence."""
    half_width = estimate.interval_of_draws
    return half_width is not None and half_width <= interval_bpd


def summarize(rounds: Float[Tensor, "rounds n"]) -> NllEstimate:
    """The mean over images, from every round of nll_estimate. Raises ValueError for fewer than 2 images."""
    count, n = rounds.shape
    if n < 2:
        raise ValueError(f"{n} images: a standard error needs at least 2")
    per_image = rounds.mean(dim=0)
    draws = None
    if count > 1:
        draws = float((rounds.var(dim=0).mean() / (count * n)).sqrt())
    return NllEstimate(float(per_image.mean()), float(per_image.std() / n**0.5), draws, n, count)


def pilot(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, seed: int,
    y: Int64[Tensor, "b"] | None = None, clip_denoised: bool = True, cdf: Cdf = "approximate",
) -> Float[Tensor, "T_minus_1"]:  # fmt: skip
    """A density over t = 1..T-1 near sqrt(E[L_t^2]), from a few images at log-spaced t; float64, sums to 1.

    That root is the allocation of least variance for independent draws. Any fixed positive density leaves the estimate
    unbiased.
    """
    last = schedule.num_timesteps - 1
    steps = np.unique(np.round(np.geomspace(1, last, min(PILOT_STEPS, last))).astype(np.int64))
    index = torch.arange(len(x_start), device=x_start.device)
    sizes = []
    for step in steps.tolist():
        eps = normal(seed=seed, stream=PILOT, step=step, index=index, shape=tuple(x_start.shape[1:]))
        term = term_at(
            config, schedule, model, x_start=x_start, t=torch.full_like(index, step), eps=eps, y=y,
            clip_denoised=clip_denoised, cdf=cdf,
        )  # fmt: skip
        sizes.append(float(term.vlb_bpd.double().square().mean().sqrt()))
    floor = max(max(sizes), 1e-300) * 1e-12  # a term that is 0 for the pilot's images has no logarithm
    log_sizes = np.interp(np.log(np.arange(1, last + 1)), np.log(steps), np.log(np.maximum(sizes, floor)))
    shape = np.exp(log_sizes - log_sizes.max())
    mixed = (1 - PILOT_UNIFORM) * shape / shape.sum() + PILOT_UNIFORM / last
    return torch.from_numpy(mixed)


def term_at(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *,
    x_start: Images, t: Steps, eps: Images, y: Int64[Tensor, "b"] | None = None, clip_denoised: bool = True,
    cdf: Cdf = "approximate",
) -> TermAt:  # fmt: skip
    """L_t of each image and the errors behind it, at x_t made with eps. The network sees no gradients."""
    x_t = q_sample(schedule, x_start=x_start, t=t, eps=eps)
    with torch.no_grad():
        model_t = schedule.model_t(t)
        output = model(x_t, model_t) if y is None else model(x_t, model_t, y)
        p = p_mean_variance(config, schedule, output, x_t=x_t, t=t, clip_denoised=clip_denoised)
        vlb = vlb_of(schedule, p, x_start=x_start, x_t=x_t, t=t, cdf=cdf)
        pred_eps = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=p.pred_xstart)
        xstart_mse, eps_mse = (
            ((ours - truth) ** 2).flatten(1).mean(dim=1) for ours, truth in ((p.pred_xstart, x_start), (pred_eps, eps))
        )
    return TermAt(vlb, xstart_mse, eps_mse)


def prior_bpd(schedule: NoiseSchedule, x_start: Images) -> PerExample:
    """KL(q(x_T | x_0) || N(0, I)) in bits/dim (float64): what the last step has not yet made noise.

    (abar (x_0^2 - 1) - log(1 - abar)) / 2 at t = T - 1: gaussian_kl, with the ones that cancel left out.
    """
    alpha, log_variance = schedule.alphas_cumprod[-1], schedule.log_one_minus_alphas_cumprod[-1]
    return nats_to_bpd((alpha * (x_start.double() ** 2 - 1) - log_variance) / 2)


def _check_density(density: Float[Tensor, "T_minus_1"], schedule: NoiseSchedule) -> None:
    terms = schedule.num_timesteps - 1
    if len(density) != terms or not bool((density > 0).all()) or abs(float(density.sum()) - 1) > 1e-6:
        raise ValueError(
            f"density: {len(density)} values that sum to {float(density.sum()):g}, the smallest of them "
            f"{float(density.min()):g}; needed are {terms}, all more than 0, that sum to 1 (pilot() gives one)"
        )


def _draw_terms(
    density: Float[Tensor, "T_minus_1"], index: Int64[Tensor, "n"], *, seed: int, draws: int, round: int
) -> tuple[Int64[Tensor, "n draws"], Float[Tensor, "n draws"]]:
    """t in 1..T-1 at evenly spaced quantiles, and the weights 1 / (draws p_t)."""
    offset = uniform(seed=seed, stream=NLL_TIMESTEP, step=round, index=index, count=1)
    quantiles = (torch.arange(draws, device=index.device, dtype=torch.float64) + offset) / draws
    cumulative = torch.cumsum(density, dim=0)
    cumulative = cumulative / cumulative[-1]
    place = torch.searchsorted(cumulative, quantiles, right=True).clamp(max=len(density) - 1)
    return place + 1, 1 / (draws * density[place])
