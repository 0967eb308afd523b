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
    q_mean_variance,
    q_posterior,
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
    _, variance, log_variance = split_output(LEARNED, schedule, output, x_t=x_t, t=at)
    low, high = schedule.posterior_log_variance_clipped[t], schedule.log_betas[t]
    expected = fraction * high + (1 - fraction) * low
    torch.testing.assert_close(log_variance, expected.expand_as(x_t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, expected.exp().expand_as(x_t))


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


@given(t=st.integers(1, STEPS - 1), seed=seeds)
def test_one_more_step_of_noise_leads_from_one_marginal_to_the_next(t: int, seed: int) -> None:
    schedule, x_start = cosine(STEPS), images(seed)
    before, after = (q_mean_variance(schedule, x_start=x_start, t=torch.tensor([s])) for s in (t - 1, t))
    beta = schedule.betas[t]
    torch.testing.assert_close(after[0], (1 - beta).sqrt() * before[0])
    torch.testing.assert_close(after[1], (1 - beta) * before[1] + beta)
    torch.testing.assert_close(after[2], after[1].log())


def test_the_posterior_at_the_first_step_is_x_start_itself_and_has_a_width_in_its_logarithm_alone() -> None:
    schedule = cosine(STEPS)
    mean, variance, log_variance = q_posterior(schedule, x_start=images(0), x_t=noise(0), t=torch.tensor([0]))
    torch.testing.assert_close(mean, images(0))
    assert (variance == 0).all()
    torch.testing.assert_close(log_variance[0, 0, 0, 0], schedule.posterior_variance[1].log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_16_bits_are_taken_up_into_float32_where_large_terms_cancel(dtype: torch.dtype) -> None:
    schedule, t = cosine(4000), torch.tensor([3999])
    assert schedule.sqrt_recip_alphas_cumprod[3999] > 2e4
    x_start, eps = images(1).to(dtype), noise(1).to(dtype)
    p = p_mean_variance(
        DiffusionConfig(loss="simple", variance="fixed_large"), schedule, eps, x_t=eps, t=t, clip_denoised=False
    )
    assert p.mean.dtype == torch.float32
    assert p.mean.isfinite().all()
    x_t = q_sample(schedule, x_start=x_start, t=t, eps=eps)
    back = predict_xstart_from_eps(schedule, x_t=x_t, t=t, eps=eps)
    # float32 rounds x_t, at most 4, and its product with 2.0e4 by half a last place each: 2.4e-7 * 2.0e4 and 3.9e-3,
    # with the rounding of q_sample's two products 0.02 in all. 16 bits would leave nothing.
    torch.testing.assert_close(back, x_start.float(), rtol=0, atol=0.04)


def test_a_variance_learned_in_16_bits_stays_between_its_bounds() -> None:
    schedule, t = cosine(4000), torch.arange(4000)
    x_t = torch.zeros(4000, 1, 1, 1)
    output = torch.stack([torch.zeros(4000), torch.linspace(-1, 1, 4000)], dim=1).reshape(4000, 2, 1, 1).bfloat16()
    config = DiffusionConfig()
    log_variance = p_mean_variance(config, schedule, output, x_t=x_t, t=t, clip_denoised=True).log_variance.flatten()
    assert log_variance.dtype == torch.float32
    assert (log_variance >= schedule.posterior_log_variance_clipped.float() - 1e-5).all()
    assert (log_variance <= schedule.log_betas.float() + 1e-5).all()


@pytest.mark.parametrize(("variance", "channels"), [("fixed_large", 4), ("learned_range", 2), ("learned", 3)])
def test_an_output_of_the_wrong_number_of_channels_is_refused(variance: str, channels: int) -> None:
    config = DiffusionConfig(variance=variance, loss="vlb")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"gives {channels} channels; diffusion.variance='{variance}'"):
        split_output(config, cosine(10), torch.zeros(1, channels, 3, 3), x_t=noise(0), t=torch.tensor([1]))


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
        ({"vlb_weight": float("nan")}, "vlb_weight=nan"),
        ({"loss": "simple", "variance": "learned"}, "no gradient"),
        ({"vlb_weight": 0.01, "loss": "vlb"}, "vlb_weight=0.01 changes nothing .* or set diffusion.loss='hybrid'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        DiffusionConfig(**settings)  # type: ignore[arg-type]
