"""Which variance does a network choose between its two bounds, at each t (IDDPM eq. 15)?"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, as_output, q_sample, range_fraction
from diffusion.randomness import VARIANCE_NOISE, normal
from diffusion.schedule import NoiseSchedule
from diffusion.types import Images, Model, Steps


def check_learned_range(config: DiffusionConfig) -> None:
    """Raises ValueError for a variance that is not chosen between two bounds."""
    if config.variance != "learned_range":
        raise ValueError(
            f"diffusion.variance={config.variance!r}: only with diffusion.variance='learned_range' does a network "
            f"choose between the posterior variance and beta_t; set it so, or leave this model out"
        )


def variance_fractions(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, index: Int64[Tensor, "b"],
    steps: Int64[Tensor, "k"], seed: int, y: Int64[Tensor, "b"] | None = None, batch_size: int = 512,
) -> Float[Tensor, "b k"]:  # fmt: skip
    """Of each image at each of these t, the fraction v of log Sigma = v log beta_t + (1 - v) log of the posterior's.

    A mean over the image's dimensions (float64), usually in [0, 1]: the network is not kept there. index is the images'
    place in the data set: the noise is a function of (seed, index, t). Raises ValueError unless the variance is a
    learned_range.
    """
    check_learned_range(config)
    k, found = len(steps), []
    for pairs in torch.arange(len(x_start) * k, device=x_start.device).split(batch_size):
        which, t = pairs // k, steps[pairs % k]
        eps = normal(seed=seed, stream=VARIANCE_NOISE, step=t, index=index[which], shape=tuple(x_start.shape[1:]))
        found.append(
            _fraction_at(
                config, schedule, model, x_start=x_start[which], t=t, eps=eps, y=None if y is None else y[which]
            )
        )
    return torch.cat(found).reshape(-1, k)


def _fraction_at(
    config: DiffusionConfig, schedule: NoiseSchedule, model: Model, *, x_start: Images, t: Steps, eps: Images,
    y: Int64[Tensor, "b"] | None,
) -> Float[Tensor, "b"]:  # fmt: skip
    x_t, model_t = q_sample(schedule, x_start=x_start, t=t, eps=eps), schedule.model_t(t)
    with torch.no_grad():
        output = model(x_t, model_t) if y is None else model(x_t, model_t, y)
    v = as_output(config, output, channels=x_start.shape[1]).chunk(2, dim=1)[1]
    return range_fraction(v).double().flatten(1).mean(dim=1)
