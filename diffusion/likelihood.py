"""How many bits does a prediction cost? KL between Gaussians, the discretised decoder, and the only nats -> bits."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.types import PerExample

Pixels = Float[Tensor, "*shape"]  # taken one by one, so of any shape

HALF_BIN = 1 / 255  # half the distance between two of the 256 pixel values in [-1, 1]
EDGE = 0.999  # beyond it a pixel is 0 or 255, whose bin reaches to infinity
SMALLEST_PROBABILITY = 1e-12


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) elementwise, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (-1.0 - ratio + torch.exp(ratio) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x_start: Pixels, *, mean: Tensor, log_variance: Tensor) -> Pixels:
    """Log probability of each 8-bit pixel under a Gaussian integrated over its bin, in nats (Ho et al. 2020, eq. 13).

    x_start must hold the 256 values k / 127.5 - 1. The normal CDF is the published tanh approximation.
    """
    precision = torch.exp(-0.5 * log_variance)
    upper = approximate_cdf(precision * (x_start - mean + HALF_BIN))
    lower = approximate_cdf(precision * (x_start - mean - HALF_BIN))
    probability = torch.where(x_start < -EDGE, upper, torch.where(x_start > EDGE, 1 - lower, upper - lower))
    return torch.log(probability.clamp(min=SMALLEST_PROBABILITY))


def approximate_cdf(x: Tensor) -> Tensor:
    """The standard normal CDF, to about 2e-4 (Page 1977); the published NLLs rest on it."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def nats_to_bpd(nats: Tensor) -> PerExample:
    """Mean over all but the first axis, in bits: bits per dimension."""
    return nats.flatten(1).mean(dim=1) / math.log(2.0)
