"""How many bits does a prediction cost? KL between Gaussians, the discretised decoder, and the only nats -> bits."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.types import PerExample

Pixels = Float[Tensor, "*shape"]  # taken one by one, so of any shape
PerPixel = Float[Tensor, "*#shape"]  # of the same shape, or broadcast to it

HALF_BIN = 1 / 255  # half the distance between two of the 256 pixel values in [-1, 1]
EDGE = 0.999  # beyond it a pixel is 0 or 255, whose bin reaches to infinity
SMALLEST_PROBABILITY = 1e-12
Cdf = Literal["approximate", "exact"]
"""The normal CDF in the decoder."""


def gaussian_kl(mean1: Pixels, log_variance1: Pixels, mean2: Pixels, log_variance2: Pixels) -> Pixels:
    """KL(N1 || N2) of each pixel, in nats: (-1 + lv2 - lv1 + exp(lv1 - lv2) + (m1 - m2)^2 exp(-lv2)) / 2.

    Summed in the published order: in float32 small ones are mostly rounding.
    """
    return 0.5 * (
        -1.0
        + log_variance2
        - log_variance1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def approximate_cdf(x: Pixels) -> Pixels:
    """The standard normal CDF, to about 2e-4: (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Page 1977)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(
    x_start: Pixels, *, mean: PerPixel, log_variance: PerPixel, cdf: Cdf = "approximate"
) -> Pixels:
    """Log probability of each 8-bit pixel under a Gaussian integrated over its bin, in nats (Ho et al. 2020, eq. 13).

    x_start must hold the 256 values k / 127.5 - 1; the outer two bins reach to infinity. A probability counts as at
    least 1e-12. Published NLLs rest on the approximate CDF; the exact one is the likelihood of that Gaussian itself.
    """
    precision = torch.exp(-0.5 * log_variance)
    upper, lower = precision * (x_start - mean + HALF_BIN), precision * (x_start - mean - HALF_BIN)
    darkest, brightest, between = (_published_bins if cdf == "approximate" else _exact_bins)(lower, upper)
    probability = torch.where(x_start < -EDGE, darkest, torch.where(x_start > EDGE, brightest, between))
    return torch.log(probability.clamp(min=SMALLEST_PROBABILITY))


def _published_bins(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities below upper, above lower, between them: in the published order, whose rounding shows in tails."""
    below_upper, below_lower = approximate_cdf(upper), approximate_cdf(lower)
    return below_upper, 1 - below_lower, below_upper - below_lower


def _exact_bins(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the exact CDF. The right tail is taken as the left one's mirror image, where no digits cancel."""
    right = lower > 0
    from_, to = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    return _exact_cdf(upper), _exact_cdf(-lower), _exact_cdf(to) - _exact_cdf(from_)


def _exact_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-x / math.sqrt(2.0))  # torch.special.ndtr keeps six digits at x = -7


def nats_to_bpd(nats: Float[Tensor, "b *shape"]) -> PerExample:
    """Mean over all but the first axis, in bits: bits per dimension."""
    return nats.flatten(1).mean(dim=1) / math.log(2.0)
