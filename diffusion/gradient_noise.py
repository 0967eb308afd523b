"""How noisy is a training gradient? B_simple = tr(Sigma) / |G|^2, in examples (McCandlish et al. 2018, section 2.2).

G is the mean gradient and Sigma the covariance of one example's, weighted as the sampler of t weights it. A batch of
B_simple examples has as much noise as gradient; G is the same however t is drawn (IDDPM section 3.3).

Of L_vlb a few t at both ends of the chain have nearly all of E |gradient|^2. A batch whose t are drawn evenly mostly
misses them, and its noise would look small; so t is drawn for measuring, as often from there as from elsewhere, and
what each sampler of training would see follows by weighting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.objectives import Examples, Module, Objective
from diffusion.randomness import GRADIENT_NOISE, GRADIENT_TIMESTEP, normal, uniform
from diffusion.timestep_sampler import LossSecondMomentConfig, LossSecondMomentSampler
from diffusion.types import Images, PerExample

MEASURED, PILOT_PASS = 0, 1
"""What a draw's step counts: examples whose gradient is taken, and those from which the sampler of t learns."""
MEASURING = LossSecondMomentConfig(pools=60)
"""Before it has learned anything, this draws from each pool as often: of one t at the ends, of hundreds in between."""
FEWEST_MICROBATCHES = 3
"""A jackknife leaves one out, and two must be left."""
COLUMNS = 2**20  # of gradients that are in float64 at a time


@dataclass(frozen=True)
class MicrobatchGradient:
    """What one microbatch tells of G, and of the noise under each of some densities of t."""

    mean: Float[Tensor, "p"]
    """An unbiased estimate of G, flat, in the parameters' dtype."""
    second_moments: Float[Tensor, "k"]
    """Of E |gradient|^2 of one example, weighted by 1 / (T p_t), under each density (float64)."""


def microbatch_gradient(
    objective: Objective, module: Module, parameters: Sequence[Tensor], examples: Examples, *,
    densities: Float[Tensor, "k T"], seed: int,
) -> MicrobatchGradient:  # fmt: skip
    """One backward an example, at t and eps that are functions of (seed, index). densities are samplers' p(t)."""
    T = objective.schedule.num_timesteps
    draws = _uniforms(examples, seed=seed, step=MEASURED)
    t, weights = LossSecondMomentSampler(MEASURING, T, device=draws.device).sample(draws)
    eps = _eps(examples, seed=seed, step=MEASURED)
    total, norms = [torch.zeros_like(parameter) for parameter in parameters], []
    for n in range(len(examples)):
        loss = objective(module, examples.part(n, n + 1), t=t[n : n + 1], eps=eps[n : n + 1]).objective.sum()
        gradients = torch.autograd.grad(loss, parameters)
        norms.append(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum())
        torch._foreach_add_(total, gradients, alpha=float(weights[n]) / len(examples))
    # The sampler's weight is squared in the gradient's norm, and its p makes one of the two a mean over even t.
    of_sampler = 1 / (T * densities[:, t])
    second_moments = (weights.double() * of_sampler * torch.stack(norms)).mean(dim=1)
    return MicrobatchGradient(torch.cat([gradient.flatten() for gradient in total]), second_moments)


@dataclass(frozen=True)
class NoiseScale:
    """An estimate from microbatches of equal size, unbiased but for the ratio."""

    grad_norm2: float
    """|G|^2. Of few examples it may come out below 0."""
    trace: float
    """tr(Sigma)."""
    noise_scale: float | None
    """In examples. None where |G|^2 is not told from 0: it, or it without some microbatch, came out at 0 or less."""
    standard_error: float | None
    """Of noise_scale, by the jackknife over microbatches."""


def noise_scale(products: Float[Tensor, "m m"], second_moments: Float[Tensor, "m"]) -> NoiseScale:
    """Under one density of t, from inner products of m microbatches' means, and their second moments under it.

    McCandlish et al. 2018, appendix A.1: batches of two sizes, one example and all of them. |G|^2 is then the mean
    product of two different microbatches. Raises ValueError for fewer than FEWEST_MICROBATCHES.
    """
    m = len(products)
    if m < FEWEST_MICROBATCHES:
        raise ValueError(f"{m} microbatches: the noise scale and its error take at least {FEWEST_MICROBATCHES}")
    norms, total, second = products.diagonal(), products.sum(), second_moments.sum()
    grad_norm2, trace = _moments(total - norms.sum(), second, m)
    pairs_without = total - norms.sum() - 2 * (products.sum(dim=1) - norms)
    norm2_without, trace_without = _moments(pairs_without, second - second_moments, m - 1)
    if float(grad_norm2) <= 0 or bool((norm2_without <= 0).any()):
        return NoiseScale(float(grad_norm2), float(trace), None, None)
    ratios = trace_without / norm2_without
    error = ((m - 1) / m * ((ratios - ratios.mean()) ** 2).sum()).sqrt()
    return NoiseScale(float(grad_norm2), float(trace), float(trace / grad_norm2), float(error))


def _moments(pairs: Tensor, second: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """|G|^2 and tr(Sigma) from sums over m microbatches: of products of two different ones, and of second moments."""
    grad_norm2 = pairs / (m * (m - 1))
    return grad_norm2, second / m - grad_norm2


def inner_products(gradients: Sequence[Float[Tensor, "p"]]) -> Float[Tensor, "m m"]:
    """Of each with each, summed in float64: |G|^2 is what is left of large numbers that cancel."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for first in range(0, len(gradients[0]), COLUMNS):
        part = torch.stack([gradient[first : first + COLUMNS] for gradient in gradients]).double()
        products += part @ part.T
    return products


def learned_density(
    config: LossSecondMomentConfig, objective: Objective, module: Module,
    examples: Callable[[Int64[Tensor, "b"]], Examples], *, seed: int, batch_size: int = 128,
    device: str | torch.device = "cpu",
) -> Float[Tensor, "T"]:  # fmt: skip
    """p(t) of a sampler by importance whose histories a pilot pass has filled, as training would at these weights.

    examples(index) gives those of the pass, index 0, 1, ...; their t and eps are not those that are measured.
    """
    sampler = LossSecondMomentSampler(config, objective.schedule.num_timesteps, device=device)
    number = 0
    while not sampler.is_warm:
        some = examples(torch.arange(number * batch_size, (number + 1) * batch_size, device=device))
        t, _ = sampler.sample(_uniforms(some, seed=seed, step=PILOT_PASS))
        with torch.no_grad():
            losses = objective(module, some, t=t, eps=_eps(some, seed=seed, step=PILOT_PASS)).objective
        sampler.update(t, losses)
        number += 1
    return sampler.probabilities()


def uniform_density(num_timesteps: int) -> Float[Tensor, "T"]:
    """p(t) where every t is as likely."""
    return torch.full((num_timesteps,), 1 / num_timesteps, dtype=torch.float64)


def _uniforms(examples: Examples, *, seed: int, step: int) -> PerExample:
    return uniform(seed=seed, stream=GRADIENT_TIMESTEP, step=step, index=examples.index, count=1)[:, 0]


def _eps(examples: Examples, *, seed: int, step: int) -> Images:
    shape = tuple(examples.x_start.shape[1:])
    return normal(seed=seed, stream=GRADIENT_NOISE, step=step, index=examples.index, shape=shape)
