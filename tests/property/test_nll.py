"""NLL: exact where the answer is known, and an estimator that agrees with the full loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from diffusion.gaussian import DiffusionConfig, build_schedule, predict_xstart_from_eps, q_sample
from diffusion.nll import (
    FEWEST_IMAGES,
    PILOT_UNIFORM,
    NllEstimate,
    nll_estimate,
    nll_full,
    nll_within,
    pilot,
    prior_bpd,
    summarize,
    term_at,
)
from diffusion.schedule import NoiseSchedule, respace

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


def test_the_bound_is_the_closed_form_of_the_gaussian_toy() -> None:
    # A divergence is quadratic in x_0 and eps, so the four corners of one deviation each have its mean over both.
    x_start = SCALE * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    eps = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    betas, bar, expected = SCHEDULE.betas.tolist(), 1.0, 0.0
    for t in range(STEPS):
        before, bar = bar, bar * (1 - betas[t])
        if t == 0:
            continue  # the decoder's, which has tests of its own
        # KL = (difference of means)^2 / (2 posterior variance), of means that differ by coef1 (x_0 - E[x_0 | x_t]),
        # whose square has var[x_0 | x_t] as its mean.
        left = 1 / (1 / SCALE**2 + bar / (1 - bar))
        posterior_variance = 1 / (1 / (1 - before) + (1 - betas[t]) / betas[t])
        coef1 = posterior_variance * math.sqrt(before) / (1 - before)
        kl = coef1**2 * left / (2 * posterior_variance) / math.log(2)
        term = term_at(
            CONFIG, SCHEDULE, optimal, x_start=x_start, t=torch.full((4,), t), eps=eps, clip_denoised=False
        )  # fmt: skip
        assert term.vlb_bpd.mean().item() == pytest.approx(kl, rel=1e-8)
        assert term.xstart_mse.mean().item() == pytest.approx(left, rel=1e-8)
        expected += kl
    expected += 0.5 * (bar * SCALE**2 - bar - math.log(1 - bar)) / math.log(2)
    # The terms of a draw of its own, L_0 apart, and the prior: at the corners their mean is the whole.
    total = sum(
        term_at(
            CONFIG, SCHEDULE, optimal, x_start=x_start, t=torch.full((4,), t), eps=eps, clip_denoised=False
        ).vlb_bpd.mean().item()
        for t in range(1, STEPS)
    )  # fmt: skip
    assert total + prior_bpd(SCHEDULE, x_start).mean().item() == pytest.approx(expected, rel=1e-8)


def test_the_full_loop_is_within_its_noise_of_the_closed_form() -> None:
    x_start = data(400)
    found = nll_full(CONFIG, SCHEDULE, optimal, x_start=x_start, index=torch.arange(400), seed=1, clip_denoised=False)
    for t in (1, 10, 30, 58):
        alpha, variance = SCHEDULE.alphas_cumprod[t], SCHEDULE.posterior_variance[t]
        shrink = alpha.sqrt() * SCALE**2 / (alpha * SCALE**2 + 1 - alpha)
        left = (x_start * (1 - shrink * alpha.sqrt())) ** 2 + shrink**2 * (1 - alpha)
        expected = SCHEDULE.posterior_mean_coef1[t] ** 2 * left / (2 * variance) / math.log(2)
        # 6400 squared normals: relative standard error 0.018 of their mean.
        assert found.terms[:, t].mean().item() == pytest.approx(expected.mean().item(), rel=0.06)


def test_the_errors_behind_a_term_are_those_of_the_predicted_x_start_and_of_the_eps_it_stands_for() -> None:
    x_start, t = data(3), torch.tensor([0, 20, 59])
    eps = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x_t = q_sample(SCHEDULE, x_start=x_start, t=t, eps=eps)
    said = optimal(x_t, SCHEDULE.model_t(t))
    predicted = predict_xstart_from_eps(SCHEDULE, x_t=x_t, t=t, eps=said)
    for clip in (False, True):
        term = term_at(CONFIG, SCHEDULE, optimal, x_start=x_start, t=t, eps=eps, clip_denoised=clip)
        ours = predicted.clamp(-1, 1) if clip else predicted
        torch.testing.assert_close(term.xstart_mse, ((ours - x_start) ** 2).mean(dim=(1, 2, 3)))
        level = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        stands_for = (x_t - level.sqrt() * ours) / (1 - level).sqrt()
        torch.testing.assert_close(term.eps_mse, ((stands_for - eps) ** 2).mean(dim=(1, 2, 3)), rtol=1e-6, atol=1e-9)


def test_on_a_respaced_chain_the_bound_has_its_fewer_terms_and_the_network_hears_the_original_t() -> None:
    spaced, heard = respace(SCHEDULE, "15"), []

    def listening(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
        heard.extend(model_t.tolist())
        return optimal(x_t, model_t)

    found = nll_full(CONFIG, spaced, listening, x_start=data(2), index=torch.arange(2), seed=1)
    assert found.terms.shape == found.xstart_mse.shape == found.eps_mse.shape == (2, 15)
    assert heard[::2] == heard[1::2] == pytest.approx([t * 1000 / STEPS for t in spaced.timestep_map.tolist()])


@pytest.mark.parametrize("batch_size", [1, 7, 180])
def test_terms_do_not_depend_on_how_many_t_share_a_batch(batch_size: int) -> None:
    arguments = {"x_start": data(3), "index": torch.arange(3), "seed": 1}
    together = nll_full(CONFIG, SCHEDULE, optimal, **arguments)
    apart = nll_full(CONFIG, SCHEDULE, optimal, **arguments, batch_size=batch_size)
    for name in ("terms", "xstart_mse", "eps_mse"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name))


def test_the_prior_is_the_divergence_of_the_last_step_from_pure_noise() -> None:
    x_start = data(3)
    alpha = SCHEDULE.alphas_cumprod[-1]
    expected = 0.5 * (alpha * x_start**2 + (1 - alpha) - 1 - torch.log(1 - alpha)).mean(dim=(1, 2, 3)) / math.log(2)
    torch.testing.assert_close(prior_bpd(SCHEDULE, x_start), expected, rtol=1e-9, atol=1e-12)


def test_the_whole_bound_is_the_closed_form_where_no_term_depends_on_the_noise() -> None:
    # A network that finds the same x_start in whatever it sees. The means of a KL then differ by coef1 (x_0 - x_start),
    # and the decoder's is x_start itself.
    guess, x_start = 0.25, data(3)
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_large", prediction="x_start")
    betas, bar, bits = SCHEDULE.betas.tolist(), 1.0, np.zeros(3)
    pixels = x_start.reshape(3, -1).numpy()
    for t in range(STEPS):
        before, bar = bar, bar * (1 - betas[t])
        if t == 0:
            precision_1 = 1 / (1 - bar) + (1 - betas[1]) / betas[1]  # fixed_large at t = 0: the posterior's at t = 1
            edges = [np.sqrt(precision_1) * (pixels - guess + side / 255) for side in (1, -1)]
            above = np.where(pixels > 0.999, 1, scipy.stats.norm.cdf(edges[0]))
            below = np.where(pixels < -0.999, 0, scipy.stats.norm.cdf(edges[1]))
            nats = -np.log(np.maximum(above - below, 1e-12))
        else:
            true_variance = 1 / (1 / (1 - before) + (1 - betas[t]) / betas[t])
            coef1 = true_variance * math.sqrt(before) / (1 - before)
            ratio = true_variance / betas[t]
            nats = (ratio - 1 - math.log(ratio) + (coef1 * (pixels - guess)) ** 2 / betas[t]) / 2
        bits += nats.mean(axis=1) / math.log(2)
    bits += ((bar * pixels**2 - bar - math.log(1 - bar)) / 2).mean(axis=1) / math.log(2)
    found = nll_full(
        config, SCHEDULE, lambda x_t, t: torch.full_like(x_t, guess), x_start=x_start, index=torch.arange(3), seed=1,
        cdf="exact",
    )  # fmt: skip
    np.testing.assert_allclose(found.total_bpd.numpy(), bits, rtol=1e-6)


def test_the_decoders_term_of_the_gaussian_toy_is_its_mean_over_the_noise() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x_start = torch.full((40, 1, 1, 1), 50 / 127.5 - 1, dtype=torch.float64)
    eps = torch.from_numpy(nodes).reshape(40, 1, 1, 1)
    found = term_at(
        CONFIG, SCHEDULE, optimal, x_start=x_start, t=torch.zeros(40, dtype=torch.int64), eps=eps, clip_denoised=False,
        cdf="exact",
    )  # fmt: skip
    ours = (found.vlb_bpd.numpy() * weights).sum() / weights.sum()
    alpha, value = 1 - SCHEDULE.betas[0].item(), 50 / 127.5 - 1
    deviation = math.sqrt(1 / (1 / (1 - alpha) + (1 - SCHEDULE.betas[1].item()) / SCHEDULE.betas[1].item()))

    def bits(noise: float) -> float:
        x_t = math.sqrt(alpha) * value + math.sqrt(1 - alpha) * noise
        mean = math.sqrt(alpha) * SCALE**2 / (alpha * SCALE**2 + 1 - alpha) * x_t  # E[x_0 | x_t]
        edges = [(value - mean + side / 255) / deviation for side in (1, -1)]
        return -math.log2(max(scipy.stats.norm.cdf(edges[0]) - scipy.stats.norm.cdf(edges[1]), 1e-12))

    expected, _ = scipy.integrate.quad(lambda e: bits(e) * scipy.stats.norm.pdf(e), -9, 9, epsabs=1e-12)
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("said", [{"draws": 0}, {"draws": 3, "round": -1}])
def test_an_estimate_of_no_draws_is_refused(said: dict[str, int]) -> None:
    even = torch.full((STEPS - 1,), 1 / (STEPS - 1), dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 1 draw"):
        nll_estimate(CONFIG, SCHEDULE, optimal, x_start=data(2), index=torch.arange(2), seed=3, density=even, **said)


def test_the_estimate_shares_no_noise_with_the_full_loop() -> None:
    def seen_by(call: Callable[..., object], **arguments: object) -> set[float]:
        seen: list[float] = []

        def listening(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
            seen.extend(x_t[:, 0, 0, 0].tolist())
            return optimal(x_t, model_t)

        call(CONFIG, SCHEDULE, listening, x_start=data(2), index=torch.arange(2), seed=1, **arguments)
        return set(seen)

    even = torch.full((STEPS - 1,), 1 / (STEPS - 1), dtype=torch.float64)
    assert not seen_by(nll_full) & seen_by(nll_estimate, density=even, draws=STEPS - 1)


def test_an_estimate_that_draws_every_term_once_is_the_whole_bound() -> None:
    # A network that finds x_start = 0 in whatever it sees: no term depends on the noise, and each can be compared.
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_small", prediction="x_start")
    schedule = NoiseSchedule.from_betas(torch.full((STEPS,), 0.01))  # the prior is a fifth of a bit
    x_start, index, even = data(5), torch.arange(5), torch.full((STEPS - 1,), 1 / (STEPS - 1), dtype=torch.float64)
    process = (config, schedule, lambda x_t, t: 0 * x_t)
    full = nll_full(*process, x_start=x_start, index=index, seed=1)
    estimate = nll_estimate(*process, x_start=x_start, index=index, seed=3, density=even, draws=STEPS - 1)
    torch.testing.assert_close(estimate, full.total_bpd)


def test_the_standard_errors_are_the_spreads_over_fresh_draws_of_images_and_of_terms() -> None:
    density, index = pilot(CONFIG, SCHEDULE, optimal, x_start=data(8), seed=2), torch.arange(20)

    def estimate(images: torch.Tensor, seed: int) -> NllEstimate:
        rounds = [
            nll_estimate(
                CONFIG, SCHEDULE, optimal, x_start=images, index=index, seed=seed, density=density, draws=4,
                round=number,
            )
            for number in range(3)
        ]  # fmt: skip
        return summarize(torch.stack(rounds))

    fresh = [estimate(data(20, seed=seed), seed) for seed in range(150)]
    same = [estimate(data(20), seed) for seed in range(150)]
    # 150 runs know a spread to 6%.
    reported = np.sqrt(np.mean([run.standard_error**2 for run in fresh]))
    assert reported == pytest.approx(np.std([run.mean_bpd for run in fresh], ddof=1), rel=0.2)
    draws = np.sqrt(np.mean([run.standard_error_of_draws**2 for run in same]))
    assert draws == pytest.approx(np.std([run.mean_bpd for run in same], ddof=1), rel=0.2)


@pytest.mark.parametrize("interval_bpd", [1e-9, 0.4])
def test_the_interval_covers_what_the_full_loop_gives_also_when_it_ended_the_rounds(interval_bpd: float) -> None:
    # Terms that do not depend on the noise: the full loop is exact, and its mean the truth that an interval is about.
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb", variance="fixed_small", prediction="x_start")
    process = (config, NoiseSchedule.from_betas(torch.full((STEPS,), 0.01)), lambda x_t, t: 0 * x_t)
    x_start, index = data(FEWEST_IMAGES), torch.arange(FEWEST_IMAGES)
    truth = nll_full(*process, x_start=x_start, index=index, seed=1).total_bpd.mean().item()
    # Half of the draws where the terms are large: by uniform ones alone the errors would be far from normal.
    density = (1 / (STEPS - 1) + pilot(*process, x_start=data(8, seed=9), seed=0)) / 2
    covered, rounds_needed = 0, []
    for seed in range(200):
        estimate, rounds = nll_within(
            *process, x_start=x_start, index=index, seed=seed, density=density, draws=3, interval_bpd=interval_bpd,
            max_rounds=4,
        )  # fmt: skip
        rounds_needed.append(len(rounds))
        covered += abs(estimate.mean_bpd - truth) <= estimate.interval_of_draws
    assert set(rounds_needed) == {4} if interval_bpd < 1e-6 else min(rounds_needed) < 4
    # 190 are expected of 200, with a deviation of 3; stopping costs some.
    assert 180 <= covered <= 199


@pytest.mark.parametrize(
    "density",
    [torch.ones(STEPS - 1), torch.full((29,), 1 / 29), torch.eye(STEPS - 1)[0], torch.full((STEPS,), 1 / STEPS)],
    ids=["not normalised", "of a shorter chain", "with zeros", "one too many"],
)
def test_a_density_that_would_bias_the_estimate_is_refused(density: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=f"needed are {STEPS - 1}, all more than 0, that sum to 1"):
        nll_estimate(
            CONFIG, SCHEDULE, optimal, x_start=data(2), index=torch.arange(2), seed=3, density=density.double(), draws=2
        )


def test_rounds_go_on_until_the_interval_is_narrow_enough_and_no_longer() -> None:
    density, index = pilot(CONFIG, SCHEDULE, optimal, x_start=data(8), seed=2), torch.arange(20)
    arguments = {"x_start": data(20), "index": index, "seed": 3, "density": density, "draws": 4}
    widths: list[float] = []
    estimate, rounds = nll_within(
        CONFIG, SCHEDULE, optimal, **arguments, interval_bpd=0.05, max_rounds=500,
        on_round=lambda so_far: widths.append(so_far.interval_of_draws or math.inf),
    )  # fmt: skip
    assert estimate.interval_of_draws <= 0.05 < min(widths[:-1])
    assert len(widths) == estimate.rounds == len(rounds) > 2
    stopped, _ = nll_within(CONFIG, SCHEDULE, optimal, **arguments, interval_bpd=1e-6, max_rounds=2)
    assert stopped.interval_of_draws > 1e-6
    with pytest.raises(ValueError, match="at least 2 rounds"):
        nll_within(CONFIG, SCHEDULE, optimal, **arguments, interval_bpd=0.1, max_rounds=1)
    few = {**arguments, "x_start": data(5), "index": torch.arange(5)}
    with pytest.raises(ValueError, match=f"rounds of {FEWEST_IMAGES} images"):
        nll_within(CONFIG, SCHEDULE, optimal, **few, interval_bpd=0.1, max_rounds=4)


def test_the_choice_of_the_cdf_reaches_the_decoder_alone() -> None:
    arguments = {"x_start": data(3), "index": torch.arange(3), "seed": 1}
    ours, exact = (nll_full(CONFIG, SCHEDULE, optimal, **arguments, **cdf) for cdf in ({}, {"cdf": "exact"}))
    assert torch.equal(ours.terms[:, 1:], exact.terms[:, 1:])
    # The approximation is off by up to 2e-4 at each edge of bins that hold some 5 %, and far less in the tails.
    assert 0 < (ours.terms[:, 0] - exact.terms[:, 0]).abs().max() < 0.05


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

    always_the_last = torch.full((STEPS - 1,), 1e-9, dtype=torch.float64)
    always_the_last[-1] = 1 - 1e-9 * (STEPS - 2)
    nll_estimate(
        CONFIG, SCHEDULE, listening, x_start=data(2), index=torch.arange(2), seed=3, density=always_the_last, draws=4
    )
    pixels = torch.cat(seen)[:, 0, 0, 0]
    assert len(pixels) == len(set(pixels.tolist())) == 10


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
    terms = nll_full(config, SCHEDULE, wrong, x_start=x_start, index=torch.arange(8), seed=1, batch_size=8).terms
    size = terms.square().mean(dim=0).sqrt()
    # The first and the last t are always among those the pilot looks at.
    assert (learned[-1] / learned[0]).item() == pytest.approx((size[-1] / size[1]).item(), rel=1e-9)
