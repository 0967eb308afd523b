"""NLL: exact where the answer is known, and an estimator that agrees with the full loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.nll import PILOT_UNIFORM, nll_estimate, nll_full, pilot, prior_bpd, vlb_at
from diffusion.schedule import NoiseSchedule
from pipelines.nll import summary

STEPS = 60
SCALE = 0.3  # standard deviation of the toy data
CONFIG = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_small", schedule="cosine")
SCHEDULE = build_schedule(CONFIG)


def optimal(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] for x_0 ~ N(0, SCALE^2): linear in x_t."""
    t = (model_t * STEPS / 1000).round().long()
    alpha = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return (1 - alpha).sqrt() / (alpha * SCALE**2 + 1 - alpha) * x_t


def data(count: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = SCALE * torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def test_every_divergence_is_the_closed_form_of_the_gaussian_toy() -> None:
    x_start = data(400)
    found = nll_full(CONFIG, SCHEDULE, optimal, x_start=x_start, index=torch.arange(400), seed=1, clip_denoised=False)
    for t in (1, 10, 30, 58):
        alpha, variance = SCHEDULE.alphas_cumprod[t], SCHEDULE.posterior_variance[t]
        # mean difference = coef1 (x_0 - E[x_0 | x_t]), whose square has the posterior variance of x_0 as its mean.
        shrink = alpha.sqrt() * SCALE**2 / (alpha * SCALE**2 + 1 - alpha)
        left = (x_start * (1 - shrink * alpha.sqrt())) ** 2 + shrink**2 * (1 - alpha)
        expected = SCHEDULE.posterior_mean_coef1[t] ** 2 * left / (2 * variance) / math.log(2)
        # 6400 squared normals: relative standard error 0.018 of their mean.
        assert found.terms[:, t].mean().item() == pytest.approx(expected.mean().item(), rel=0.06)


def test_the_prior_is_the_divergence_of_the_last_step_from_pure_noise() -> None:
    x_start = data(3)
    alpha = SCHEDULE.alphas_cumprod[-1]
    expected = 0.5 * (alpha * x_start**2 + (1 - alpha) - 1 - torch.log(1 - alpha)).mean(dim=(1, 2, 3)) / math.log(2)
    torch.testing.assert_close(prior_bpd(SCHEDULE, x_start), expected, rtol=1e-9, atol=1e-12)


def test_the_total_is_the_sum_of_all_terms_and_the_prior() -> None:
    found = nll_full(CONFIG, SCHEDULE, optimal, x_start=data(2), index=torch.arange(2), seed=1)
    assert found.terms.shape == (2, STEPS)
    torch.testing.assert_close(found.total_bpd, found.terms.sum(dim=1) + found.prior_bpd)


def test_an_estimate_that_draws_every_term_once_is_the_whole_bound() -> None:
    # A network that finds x_start = 0 in whatever it sees: no term depends on the noise, and each can be compared.
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_small", prediction="x_start")
    schedule = NoiseSchedule.from_betas(torch.full((STEPS,), 0.01))  # the prior is a fifth of a bit
    x_start, index, even = data(5), torch.arange(5), torch.full((STEPS - 1,), 1 / (STEPS - 1), dtype=torch.float64)
    process = (config, schedule, lambda x_t, t: 0 * x_t)
    full = nll_full(*process, x_start=x_start, index=index, seed=1)
    estimate = nll_estimate(*process, x_start=x_start, index=index, seed=3, density=even, draws=STEPS - 1)
    torch.testing.assert_close(estimate, full.total_bpd)


def test_the_standard_error_is_the_spread_over_fresh_images_and_draws() -> None:
    density = pilot(CONFIG, SCHEDULE, optimal, x_start=data(8), seed=2)
    runs = []
    for seed in range(200):
        images, index = data(20, seed=seed), torch.arange(20)
        bpd = nll_estimate(CONFIG, SCHEDULE, optimal, x_start=images, index=index, seed=seed, density=density, draws=4)
        runs.append(summary(bpd.numpy()))
    spread = np.std([run["nll_bpd"] for run in runs], ddof=1)
    reported = np.sqrt(np.mean([run["nll_bpd_se"] ** 2 for run in runs]))
    # 200 runs know the spread to 5%.
    assert 0.85 * spread < reported < 1.15 * spread


def test_the_estimate_is_unbiased_for_the_pilots_density_and_for_one_that_is_far_off() -> None:
    x_start, index = data(200), torch.arange(200)
    full = nll_full(CONFIG, SCHEDULE, optimal, x_start=x_start, index=index, seed=1)
    bad = torch.linspace(1, 9, STEPS - 1, dtype=torch.float64)
    for density in (pilot(CONFIG, SCHEDULE, optimal, x_start=x_start[:8], seed=2), bad / bad.sum()):
        estimate = nll_estimate(
            CONFIG, SCHEDULE, optimal, x_start=x_start, index=index, seed=3, density=density, draws=20
        )
        noise = (estimate - full.total_bpd).std().item() / math.sqrt(200)
        assert estimate.mean().item() == pytest.approx(full.total_bpd.mean().item(), abs=4 * noise)


def test_an_images_estimate_does_not_depend_on_what_is_evaluated_with_it() -> None:
    x_start, index = data(10), torch.arange(10)
    density = pilot(CONFIG, SCHEDULE, optimal, x_start=x_start[:8], seed=2)

    def estimate(rows: slice, batch_size: int) -> torch.Tensor:
        return nll_estimate(
            CONFIG, SCHEDULE, optimal, x_start=x_start[rows], index=index[rows], seed=3, density=density, draws=5,
            batch_size=batch_size,
        )  # fmt: skip

    together = estimate(slice(None), 512)
    torch.testing.assert_close(torch.cat([estimate(slice(0, 3), 7), estimate(slice(3, 10), 1)]), together)


def test_every_term_drawn_for_an_image_has_noise_of_its_own() -> None:
    seen = []

    def listening(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x_t)
        return optimal(x_t, t)

    always_the_last = torch.zeros(STEPS - 1, dtype=torch.float64)
    always_the_last[-1] = 1
    nll_estimate(
        CONFIG, SCHEDULE, listening, x_start=data(2), index=torch.arange(2), seed=3, density=always_the_last, draws=4
    )
    pixels = torch.cat(seen)[:, 0, 0, 0]
    assert len(pixels) == len(set(pixels.tolist())) == 10


def test_a_term_can_enter_a_computation_that_has_gradients() -> None:
    x_start, t = data(2), torch.tensor([0, 9])
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    (weights * vlb_at(CONFIG, SCHEDULE, optimal, x_start=x_start, t=t, eps=0 * x_start)).sum().backward()
    assert weights.grad is not None


def test_the_pilots_density_is_a_density_and_reaches_every_term() -> None:
    density = pilot(CONFIG, SCHEDULE, optimal, x_start=data(8), seed=2)
    assert density.shape == (STEPS - 1,)
    assert density.sum().item() == pytest.approx(1.0)
    assert density.min().item() >= PILOT_UNIFORM / (STEPS - 1) * (1 - 1e-9)


def test_the_pilot_goes_by_the_root_of_the_mean_square_over_its_images() -> None:
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_small", prediction="x_start")
    x_start = torch.zeros(8, 1, 1, 1, dtype=torch.float64)

    def wrong(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
        """About every image to the same extent, but at the last step about one alone; never mind the noise."""
        error = torch.full_like(x_t, 0.5)
        error[1:] *= (model_t[1:] < SCHEDULE.model_t(torch.tensor([STEPS - 1]))).reshape(-1, 1, 1, 1)
        return error

    density = pilot(config, SCHEDULE, wrong, x_start=x_start, seed=2)
    learned = density - PILOT_UNIFORM / (STEPS - 1)
    terms = nll_full(config, SCHEDULE, wrong, x_start=x_start, index=torch.arange(8), seed=1).terms
    size = terms.square().mean(dim=0).sqrt()
    # The first and the last t are always among those the pilot looks at.
    assert (learned[-1] / learned[0]).item() == pytest.approx((size[-1] / size[1]).item(), rel=1e-9)
