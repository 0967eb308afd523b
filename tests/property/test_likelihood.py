"""KL and the decoder against scipy and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from diffusion.likelihood import (
    Cdf,
    approximate_cdf,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    nats_to_bpd,
)

means = st.floats(-2, 2)
log_variances = st.floats(-6, 2)
PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
EDGES = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])


def log_likelihoods(mean: float, log_variance: float, *, cdf: Cdf = "approximate") -> torch.Tensor:
    """Of each of the 256 pixel values."""
    m, lv = (torch.tensor(value, dtype=torch.float64) for value in (mean, log_variance))
    return discretized_gaussian_log_likelihood(PIXELS, mean=m, log_variance=lv, cdf=cdf)


@given(m1=means, v1=log_variances, m2=means, v2=log_variances)
def test_kl_is_the_integral_it_stands_for(m1: float, v1: float, m2: float, v2: float) -> None:
    p, q = stats.norm(m1, math.exp(v1 / 2)), stats.norm(m2, math.exp(v2 / 2))
    spread = 12 * p.std()
    expected, _ = integrate.quad(
        lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), m1 - spread, m1 + spread, points=[m1], limit=200
    )
    ours = gaussian_kl(*(torch.tensor(value, dtype=torch.float64) for value in (m1, v1, m2, v2))).item()
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-8)


@given(m1=means, v1=log_variances, m2=means, v2=log_variances)
def test_kl_is_never_negative(m1: float, v1: float, m2: float, v2: float) -> None:
    kl = gaussian_kl(*(torch.tensor(value, dtype=torch.float64) for value in (m1, v1, m2, v2))).item()
    assert kl >= -1e-15 * (1 + abs(v1) + abs(v2))  # rounding, where the two are nearly one


@given(m=means, v=log_variances)
def test_kl_of_a_gaussian_with_itself_is_zero(m: float, v: float) -> None:
    # The published order of summing leaves the rounding of 1 + |log variance|.
    for dtype, rounding in ((torch.float32, 6e-8), (torch.float64, 1.2e-16)):
        mean, log_variance = torch.tensor(m, dtype=dtype), torch.tensor(v, dtype=dtype)
        assert abs(gaussian_kl(mean, log_variance, mean, log_variance).item()) <= rounding * (1 + abs(v))


@pytest.mark.parametrize("cdf", ["approximate", "exact"])
@given(mean=st.floats(-1.5, 1.5), log_variance=st.floats(-9, 3))
def test_the_probabilities_of_the_256_pixel_values_sum_to_one(cdf: Cdf, mean: float, log_variance: float) -> None:
    logs = log_likelihoods(mean, log_variance, cdf=cdf)
    # The bins share their edges, so the sum telescopes; each is kept above 1e-12.
    assert logs.exp().sum().item() == pytest.approx(1.0, abs=256e-12 + 1e-10)


@given(mean=st.floats(-1, 1), log_variance=st.floats(-8, 1))
def test_the_decoder_is_the_normal_distribution_over_bins(mean: float, log_variance: float) -> None:
    scale = math.exp(log_variance / 2)
    exact = np.diff(stats.norm.cdf(EDGES, loc=mean, scale=scale))
    ours = log_likelihoods(mean, log_variance).exp()
    # The approximate CDF is off by less than 2e-4 at each of two edges; HALF_BIN and the exact edges agree.
    np.testing.assert_allclose(ours.numpy(), exact, atol=4.1e-4)


@given(mean=st.floats(-1, 1), log_variance=st.floats(-8, 1))
def test_the_exact_decoder_is_the_normal_distribution_over_bins_to_rounding(mean: float, log_variance: float) -> None:
    scale = math.exp(log_variance / 2)
    exact = np.diff(stats.norm.cdf(EDGES, loc=mean, scale=scale))
    ours = log_likelihoods(mean, log_variance, cdf="exact").exp()
    upper = -np.diff(stats.norm.sf(EDGES, loc=mean, scale=scale))  # where scipy's cdf has lost its digits
    exact = np.where(EDGES[:-1] > mean, upper, exact)
    np.testing.assert_allclose(ours.numpy(), np.maximum(exact, 1e-12), rtol=1e-8, atol=0)


def test_the_approximate_cdf_is_within_its_known_error() -> None:
    x = np.linspace(-6, 6, 4001)
    assert np.abs(approximate_cdf(torch.from_numpy(x)).numpy() - stats.norm.cdf(x)).max() < 2e-4


def test_an_impossible_pixel_costs_a_finite_number_of_nats() -> None:
    log = discretized_gaussian_log_likelihood(PIXELS[:1], mean=torch.tensor(1.0), log_variance=torch.tensor(-12.0))
    assert log.item() == pytest.approx(math.log(1e-12), rel=1e-5)


def test_bits_per_dim_is_the_mean_over_an_image_in_bits() -> None:
    nats = torch.full((2, 3, 4, 4), math.log(2.0), dtype=torch.float64)
    assert nats_to_bpd(nats).tolist() == pytest.approx([1.0, 1.0])
