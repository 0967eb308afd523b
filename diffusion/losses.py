"""What is a network trained to make small? L_simple, L_vlb or L_hybrid, one number an example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.gaussian import (
    DiffusionConfig,
    Prediction,
    as_output,
    p_mean_variance,
    q_posterior,
    q_posterior_mean,
    q_sample,
)
from diffusion.likelihood import Cdf, discretized_gaussian_log_likelihood, gaussian_kl, nats_to_bpd
from diffusion.schedule import NoiseSchedule
from diffusion.types import Images, Model, ModelOutput, PerExample, Steps


@dataclass(frozen=True)
class LossTerms:
    """The terms of one example's loss at its t."""

    simple: PerExample  # mean squared error of what the network predicts (Ho et al. 2020, eq. 14)
    vlb: PerExample | None  # L_t of L_vlb in bits/dim; None when it is not part of the loss
    objective: PerExample  # what is minimised


def diffusion_losses(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, t: Steps, eps: Images
) -> LossTerms:
    """The loss at step t of each example (IDDPM eq. 16 for L_hybrid).

    For t uniform, the mean of T * vlb is L_vlb without its prior. So L_vlb is estimated by T * vlb, and L_hybrid by
    simple + vlb_weight * T * vlb, whose vlb sees the mean channels detached: they learn from L_simple alone. On a
    respaced schedule T is its own number of steps. Raises ValueError for an output with the wrong number of channels.
    """
    x_t = q_sample(schedule, x_start=x_start, t=t, eps=eps)
    output = as_output(config, model(x_t, schedule.model_t(t)), channels=x_start.shape[1])
    mean_part = output.chunk(2, dim=1)[0] if config.learns_variance else output
    target = _target(config, schedule, x_start=x_start, x_t=x_t, t=t, eps=eps)
    simple = ((target - mean_part) ** 2).flatten(1).mean(dim=1)
    if config.loss == "simple":
        return LossTerms(simple, None, simple)
    if config.loss == "vlb":
        vlb = vlb_term(config, schedule, output, x_start=x_start, x_t=x_t, t=t, clip_denoised=False)
        return LossTerms(simple, vlb, schedule.num_timesteps * vlb)
    frozen = torch.cat([mean_part.detach(), output.chunk(2, dim=1)[1]], dim=1)
    vlb = vlb_term(config, schedule, frozen, x_start=x_start, x_t=x_t, t=t, clip_denoised=False)
    return LossTerms(simple, vlb, simple + _weight_of_term(config, schedule) * vlb)


def _weight_of_term(config: DiffusionConfig, schedule: NoiseSchedule) -> float:
    """lambda T: what weights the one term of L_vlb that was drawn."""
    return 1.0 if config.vlb_weight == "1/T" else config.vlb_weight * schedule.num_timesteps


def quartile_sums(
    t: Steps, values: Float[Tensor, "k b"], weights: PerExample, *, num_timesteps: int
) -> Float[Tensor, "k_and_1 4"]:
    """Weighted values, and in the last row the weights, summed over the examples of each quarter of 0..T-1.

    Sums, so that batches can be added up; their ratio is the quarter's mean, however t was drawn.
    """
    in_quarter = (4 * t // num_timesteps)[:, None] == torch.arange(4, device=t.device)
    weighted = torch.cat([values * weights, weights[None]])
    # Not a product with zeros: a value that is nan would be in all four quarters.
    return torch.where(in_quarter, weighted[:, :, None], 0).sum(dim=1)


def vlb_term(
    config: DiffusionConfig, schedule: NoiseSchedule, output: ModelOutput, *,
    x_start: Images, x_t: Images, t: Steps, clip_denoised: bool,
) -> PerExample:  # fmt: skip
    """L_t in bits/dim: the KL to the true posterior for t > 0, the decoder's negative log likelihood at t = 0.

    IDDPM eq. 5 and 6. Raises ValueError for an output with the wrong number of channels.
    """
    p = p_mean_variance(config, schedule, output, x_t=x_t, t=t, clip_denoised=clip_denoised)
    return vlb_of(schedule, p, x_start=x_start, x_t=x_t, t=t)


def vlb_of(
    schedule: NoiseSchedule, p: Prediction, *, x_start: Images, x_t: Images, t: Steps, cdf: Cdf = "approximate"
) -> PerExample:
    """vlb_term, in bits/dim, of a prediction that is already there, by a choice of the decoder's normal CDF."""
    true_mean, _, true_log_variance = q_posterior(schedule, x_start=x_start, x_t=x_t, t=t)
    kl = nats_to_bpd(gaussian_kl(true_mean, true_log_variance, p.mean, p.log_variance))
    log_likelihood = discretized_gaussian_log_likelihood(x_start, mean=p.mean, log_variance=p.log_variance, cdf=cdf)
    decoder = nats_to_bpd(-log_likelihood)
    return torch.where(t == 0, decoder, kl)


def _target(
    config: DiffusionConfig, schedule: NoiseSchedule, *, x_start: Images, x_t: Images, t: Steps, eps: Images
) -> Images:
    if config.prediction == "x_start":
        return x_start
    if config.prediction == "x_prev":
        return q_posterior_mean(schedule, x_start=x_start, x_t=x_t, t=t)
    return eps
