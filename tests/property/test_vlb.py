"""Are p, the bound and the losses what the papers define? Asked pixel by pixel, from the betas and Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.gaussian import DiffusionConfig, build_schedule, p_mean_variance
from diffusion.losses import diffusion_losses, vlb_term

T = 400
STEPS = (0, 1, T // 2, T - 1)  # one image each: the decoder is the term of the first alone
SHAPE = (1, 3, 4)
CONFIGS = [
    DiffusionConfig(num_timesteps=T, schedule=schedule, prediction=prediction, variance=variance, loss="vlb")  # type: ignore[arg-type]
    for schedule, prediction, variance in product(
        ("linear", "cosine"), ("eps", "x_start", "x_prev"), ("fixed_small", "fixed_large", "learned", "learned_range")
    )
]
# Of what the network says: about the deviation of p at t = 0, where more would drive the decoder to its floor.
ERROR = 0.02
# 1 - alphas_cumprod is 2e-5 or more, which leaves float64 11 of its digits.
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Pixel:
    """One pixel of an image at one t, and what a network says of it: its error, and v."""

    prediction: str
    variance: str
    betas: list[float]
    t: int
    x_start: float
    eps: float
    error: float
    v: float

    @property
    def x_t(self) -> float:
        level = self.alpha_bar(self.t + 1)
        return math.sqrt(level) * self.x_start + math.sqrt(1 - level) * self.eps

    @property
    def target(self) -> float:
        return {"eps": self.eps, "x_start": self.x_start, "x_prev": self.posterior_mean(self.x_start)}[self.prediction]

    @property
    def said(self) -> float:
        return self.target + self.error

    def alpha_bar(self, steps: int) -> float:
        return math.prod(1 - beta for beta in self.betas[:steps])

    def posterior_variance(self, t: int) -> float:
        """Bayes: q(x_{t-1} | x_0) has precision 1 / (1 - alpha_bar); the step to x_t adds its own."""
        return 1 / (1 / (1 - self.alpha_bar(t)) + (1 - self.betas[t]) / self.betas[t])

    def posterior_mean(self, x_start: float) -> float:
        if self.t == 0:
            return x_start
        before, beta = self.alpha_bar(self.t), self.betas[self.t]
        weighted = math.sqrt(before) * x_start / (1 - before) + math.sqrt(1 - beta) * self.x_t / beta
        return self.posterior_variance(self.t) * weighted

    def p_mean(self, *, clip: bool) -> float:
        if self.prediction == "x_prev":
            return self.said
        x_start = self.said
        if self.prediction == "eps":
            level = self.alpha_bar(self.t + 1)
            x_start = (self.x_t - math.sqrt(1 - level) * self.said) / math.sqrt(level)
        return self.posterior_mean(min(1, max(-1, x_start)) if clip else x_start)

    def p_log_variance(self) -> float:
        """At t = 0 the posterior has no variance, and borrows that of t = 1; so does the large one."""
        small, beta = self.posterior_variance(max(self.t, 1)), self.betas[self.t]
        if self.variance == "learned":
            return self.v
        if self.variance == "learned_range":
            return math.log(beta) * (self.v + 1) / 2 + math.log(small) * (1 - self.v) / 2
        return math.log(beta if self.variance == "fixed_large" and self.t > 0 else small)

    def p_variance(self) -> float:
        if self.variance == "fixed_small" and self.t == 0:
            return 0.0
        return math.exp(self.p_log_variance())

    def bits(self, *, clip: bool) -> float:
        """The pixel's part of L_t."""
        mean, deviation = self.p_mean(clip=clip), math.exp(self.p_log_variance() / 2)
        if self.t == 0:
            above = cdf((self.x_start + 1 / 255 - mean) / deviation) if self.x_start < 0.999 else 1.0
            below = cdf((self.x_start - 1 / 255 - mean) / deviation) if self.x_start > -0.999 else 0.0
            return -math.log2(max(above - below, 1e-12))
        q = normal(self.posterior_mean(self.x_start), math.sqrt(self.posterior_variance(self.t)))
        return kl_divergence(q, normal(mean, deviation)).item() / math.log(2)


def cdf(x: float) -> float:
    """The normal CDF by the published approximation."""
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normal(mean: float, deviation: float) -> Normal:
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64))


class Batch:
    """The same images for the code and, as pixels, for the papers."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config, self.schedule = config, build_schedule(config)
        generator = torch.Generator().manual_seed(0)
        levels = torch.randint(0, 256, (len(STEPS), *SHAPE), generator=generator)
        levels[..., 0], levels[..., 1] = 0, 255  # their bins are unbounded, and clipping changes them
        self.x_start = levels.double() / 127.5 - 1
        self.eps, error, v = torch.randn(3, *self.x_start.shape, generator=generator, dtype=torch.float64)
        betas = self.schedule.betas.tolist()
        columns = torch.stack([self.x_start, self.eps, ERROR * error, v], dim=-1).reshape(len(STEPS), -1, 4).tolist()
        self.pixels = [
            [Pixel(config.prediction, config.variance, betas, t, *of_pixel) for of_pixel in of_image]
            for t, of_image in zip(STEPS, columns, strict=True)
        ]
        self.t = torch.tensor(STEPS)
        self.x_t = self.each(lambda pixel: pixel.x_t)
        said = self.each(lambda pixel: pixel.said)
        self.output = torch.cat([said, v], dim=1) if config.learns_variance else said

    def each(self, of: Callable[[Pixel], float]) -> torch.Tensor:
        values = [[of(pixel) for pixel in image] for image in self.pixels]
        return torch.tensor(values, dtype=torch.float64).reshape(self.x_start.shape)

    def mean(self, of: Callable[[Pixel], float]) -> torch.Tensor:
        return self.each(of).mean(dim=(1, 2, 3))


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: f"{c.schedule}-{c.prediction}-{c.variance}")
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


@pytest.mark.parametrize("clip", [False, True])
def test_p_is_the_papers_gaussian(batch: Batch, clip: bool) -> None:
    p = p_mean_variance(batch.config, batch.schedule, batch.output, x_t=batch.x_t, t=batch.t, clip_denoised=clip)
    torch.testing.assert_close(p.mean, batch.each(lambda pixel: pixel.p_mean(clip=clip)), **CLOSE)
    torch.testing.assert_close(p.log_variance, batch.each(Pixel.p_log_variance), **CLOSE)
    torch.testing.assert_close(p.variance, batch.each(Pixel.p_variance), **CLOSE)


@pytest.mark.parametrize("clip", [False, True])
def test_a_term_of_the_bound_is_the_divergence_of_p_from_the_posterior_or_the_decoders_cost(
    batch: Batch, clip: bool
) -> None:
    term = vlb_term(
        batch.config, batch.schedule, batch.output,
        x_start=batch.x_start, x_t=batch.x_t, t=batch.t, clip_denoised=clip,
    )  # fmt: skip
    torch.testing.assert_close(term, batch.mean(lambda pixel: pixel.bits(clip=clip)), **CLOSE)


def test_a_loss_is_the_error_of_what_is_predicted_the_unclipped_bound_or_both(batch: Batch) -> None:
    simple = batch.mean(lambda pixel: pixel.error**2)
    bound = T * batch.mean(lambda pixel: pixel.bits(clip=False))
    expected = {"vlb": bound}
    expected |= {"hybrid": simple + 1e-3 * bound} if batch.config.learns_variance else {"simple": simple}
    for loss, objective in expected.items():
        config = replace(batch.config, loss=loss)  # type: ignore[arg-type]
        terms = diffusion_losses(
            config, batch.schedule, lambda x_t, t: batch.output, x_start=batch.x_start, t=batch.t, eps=batch.eps
        )
        torch.testing.assert_close(terms.simple, simple, **CLOSE)
        torch.testing.assert_close(terms.objective, objective, **CLOSE)
