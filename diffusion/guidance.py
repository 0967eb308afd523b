"""How does a classifier steer sampling? By the gradient of log p(y | x_t), added to the mean or to the score (ADM).

A Guide is all that a sampler knows of it: a function of x_t and of what the network is told of t. The network itself
may be conditional or not; whoever makes the model binds its labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.gaussian import Prediction, predict_eps_from_xstart, predict_xstart_from_eps, q_posterior_mean
from diffusion.schedule import NoiseSchedule
from diffusion.types import Images, PerExample, Steps, check_label_kind, check_labels

Classifier = Callable[[Tensor, Tensor], Tensor]
"""classifier(x_t, model_t): logits of shape (b, classes)."""
Guide = Callable[[Images, PerExample], Images]
"""guide(x_t, model_t): the gradient of guidance_scale * log p(y | x_t) with respect to x_t."""


def classifier_guide(classifier: Classifier, *, y: Int64[Tensor, "b"], guidance_scale: float) -> Guide:
    """Guidance towards class y of each example. The gradient is taken at x_t (ADM, algorithms 1 and 2).

    The guide raises ValueError for another number of images than labels, and for a label that has no logit.
    """
    check_label_kind(y, images=y.numel())
    smallest, largest = int(y.min()), int(y.max())  # once: looking at them makes the host wait for a GPU

    def checked(x_t: Tensor, model_t: Tensor) -> Tensor:
        logits = classifier(x_t, model_t)
        if smallest < 0 or largest >= logits.shape[1]:
            raise ValueError(f"y has labels {smallest} to {largest}; the classifier knows 0 to {logits.shape[1] - 1}")
        return logits

    def guide(x_t: Images, model_t: PerExample) -> Images:
        if len(x_t) != len(y):
            raise ValueError(f"{len(x_t)} images, but {len(y)} labels to guide them to")
        return guidance_scale * log_probability_gradient(checked, x_t=x_t, model_t=model_t, y=y)

    return guide


def log_probability_gradient(
    classifier: Classifier, *, x_t: Images, model_t: PerExample, y: Int64[Tensor, "b"]
) -> Images:
    """The gradient of log p(y | x_t) with respect to x_t, in the dtype of x_t: one backward pass of the classifier.

    Raises ValueError for labels that are not one an image, whole, and, on the CPU, among those the classifier knows.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        logits = classifier(x, model_t.clone())
        check_labels(y, images=len(x_t), num_classes=logits.shape[1])
        log_p = torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
        # Summed: examples do not depend on each other, so each gets its own gradient.
        chosen = log_p.gather(1, y.long()[:, None].clone()).sum()
        (gradient,) = torch.autograd.grad(chosen, x)
    return gradient


def condition_mean(p: Prediction, gradient: Images) -> Prediction:
    """p(x_{t-1} | x_t, y): the mean shifted by the variance times the gradient (ADM, algorithm 1).

    The variance is the model's own; that of fixed_small is 0 at t = 0, and then nothing is shifted. pred_xstart stays
    what the model said.
    """
    return replace(p, mean=p.mean + p.variance * gradient)


def condition_score(schedule: NoiseSchedule, p: Prediction, *, x_t: Images, t: Steps, gradient: Images) -> Prediction:
    """The same by the score (ADM, algorithm 2): pred_xstart, not clipped again, and the mean follow the shifted eps."""
    eps = predict_eps_from_xstart(schedule, x_t=x_t, t=t, pred_xstart=p.pred_xstart)
    eps = guided_eps(schedule, eps, t=t, gradient=gradient)
    pred_xstart = predict_xstart_from_eps(schedule, x_t=x_t, t=t, eps=eps)
    return replace(p, mean=q_posterior_mean(schedule, x_start=pred_xstart, x_t=x_t, t=t), pred_xstart=pred_xstart)


def guided_eps(schedule: NoiseSchedule, eps: Images, *, t: Steps, gradient: Images) -> Images:
    """The eps of the score of p(x_t | y): eps - sqrt(1 - alphas_cumprod) * gradient (ADM, algorithm 2)."""
    # The root of the looked-up value, as published: in float32 at t = 0 it is a thousandth off.
    return eps - (1 - schedule.gather(schedule.alphas_cumprod, t, eps)).sqrt() * gradient


def score_from_eps(schedule: NoiseSchedule, eps: Images, *, t: Steps) -> Images:
    """The score, the gradient of log p(x_t): -eps / sqrt(1 - alphas_cumprod) (ADM, eq. 11)."""
    return -eps / schedule.gather(schedule.sqrt_one_minus_alphas_cumprod, t, eps)


def eps_from_score(schedule: NoiseSchedule, score: Float[Tensor, "b c h w"], *, t: Steps) -> Images:
    """The eps that stands for a score; the inverse of score_from_eps."""
    return -score * schedule.gather(schedule.sqrt_one_minus_alphas_cumprod, t, score)
