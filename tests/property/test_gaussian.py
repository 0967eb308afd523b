"""The forward and reverse process: conversions that invert each other, and variances in their range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from diffusion.gaussian import (
    DiffusionConfig,
    p_mean_variance,
    predict_eps_from_xstart,
    predict_xstart_from_eps,
    predict_xstart_from_xprev,
    q_posterior_mean,
    q_sample,
    split_output,
)
from diffusion.schedule import cosine, linear

STEPS = 1000
steps = st.integers(0, STEPS - 1)
seeds = st.integers(0, 2**31)
LARGE = DiffusionConfig(num_timesteps=STEPS, variance="fixed_large", loss="simple")
LEARNED = DiffusionConfig(num_timesteps=STEPS)


def images(seed: int, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("make", [linear, cosine])
@given(t=steps, seed=seeds)
def test_predicting_x_start_from_the_true_eps_recovers_it(make, t: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    schedule, at = make(STEPS), torch.tensor([t])
    x_start, eps = images(seed), noise(seed)
    x_t = q_sample(schedule, x_start=x_start, t=at, eps=eps)
    # float64 round-off of x_t, enlarged by 1/sqrt(alphas_cumprod): 2e4 at the end of the cosine schedule.
    tolerance = 1e-14 * schedule.sqrt_recip_alphas_cumprod[t].item() + 1e-12
    recovered = predict_xstart_from_eps(schedule, x_t=x_t, t=at, eps=eps)
    torch.testing.assert_close(recovered, x_start, rtol=0, atol=tolerance)
    if t < STEPS - 1:  # at the last step x_t is all noise
        again = predict_eps_from_xstart(schedule, x_t=x_t, t=at, pred_xstart=x_start)
        torch.testing.assert_close(again, eps, rtol=1e-7, atol=1e-9)


@given(t=st.integers(1, STEPS - 1), seed=seeds)
def test_the_posterior_mean_gives_back_its_x_start(t: int, seed: int) -> None:
    schedule, at, x_start, x_t = linear(STEPS), torch.tensor([t]), images(seed), noise(seed)
    x_prev = q_posterior_mean(schedule, x_start=x_start, x_t=x_t, t=at)
    recovered = predict_xstart_from_xprev(schedule, x_t=x_t, t=at, x_prev=x_prev)
    # coef2 / coef1 reaches 1e4 near the end, and multiplies the round-off.
    torch.testing.assert_close(recovered, x_start, rtol=0, atol=1e-10)


@given(t=steps, seed=seeds)
def test_all_predictions_of_the_same_x_start_give_the_same_mean(t: int, seed: int) -> None:
    schedule, at, x_start, eps = linear(STEPS), torch.tensor([t]), images(seed), noise(seed)
    x_t = q_sample(schedule, x_start=x_start, t=at, eps=eps)
    outputs = {"eps": eps, "x_start": x_start, "x_prev": q_posterior_mean(schedule, x_start=x_start, x_t=x_t, t=at)}
    means = []
    for prediction, output in outputs.items():
        config = DiffusionConfig(num_timesteps=STEPS, prediction=prediction, variance="fixed_large", loss="simple")  # type: ignore[arg-type]
        means.append(p_mean_variance(config, schedule, output, x_t=x_t, t=at, clip_denoised=False).mean)
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(means[2], means[0], rtol=0, atol=1e-9)


@given(t=steps, fraction=st.floats(0, 1))
def test_a_learned_variance_lies_between_the_posteriors_and_beta(t: int, fraction: float) -> None:
    schedule, at, x_t = cosine(STEPS), torch.tensor([t]), noise(0)
    output = torch.cat([noise(1), torch.full_like(x_t, 2 * fraction - 1)], dim=1)
    _, log_variance = split_output(LEARNED, schedule, output, x_t=x_t, t=at)
    low, high = schedule.posterior_log_variance_clipped[t], schedule.log_betas[t]
    expected = fraction * high + (1 - fraction) * low
    torch.testing.assert_close(log_variance, expected.expand_as(x_t), rtol=1e-12, atol=1e-12)


def test_clipping_bounds_x_start_and_the_mean_is_formed_from_the_bounded_one() -> None:
    schedule, at = linear(STEPS), torch.tensor([500])
    x_t = 5 * noise(0)
    p = p_mean_variance(LARGE, schedule, noise(1), x_t=x_t, t=at, clip_denoised=True)
    assert p.pred_xstart.abs().max() <= 1
    torch.testing.assert_close(p.mean, q_posterior_mean(schedule, x_start=p.pred_xstart, x_t=x_t, t=at))


def test_float32_images_stay_float32_and_agree_with_float64() -> None:
    schedule, at = cosine(4000), torch.tensor([2000])
    exact = q_sample(schedule, x_start=images(0), t=at, eps=noise(0))
    single = q_sample(schedule, x_start=images(0).float(), t=at, eps=noise(0).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=4e-7)


def test_a_shape_that_breaks_its_annotation_fails_a_test() -> None:
    with pytest.raises(TypeCheckError):
        q_sample(linear(STEPS), x_start=images(0, count=2), t=torch.tensor([5]), eps=images(1, count=2))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"loss": "hybrid", "variance": "fixed_large"}, "learned_range"),
        ({"loss": "simple"}, "no gradient"),
        ({"num_timesteps": 20, "schedule": "linear"}, "at least 21"),
        ({"num_timesteps": 1}, "at least 2"),
        ({"vlb_weight": 0.0}, "vlb_weight=0.0"),
        ({"vlb_weight": 0.01, "loss": "vlb"}, "vlb_weight=0.01 changes nothing .* or set diffusion.loss='hybrid'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DiffusionConfig(**settings)  # type: ignore[arg-type]
