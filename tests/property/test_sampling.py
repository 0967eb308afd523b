"""Sampling: images that depend on seed and index alone, and follow the distribution they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig, Prediction, build_schedule, p_mean_variance, q_sample
from diffusion.randomness import SAMPLE_INIT, normal
from diffusion.sampling import (
    SamplerConfig,
    ancestral_step,
    ddim_step,
    decode,
    encode,
    sample,
    to_uint8,
    walk_back,
    walk_up,
)
from diffusion.schedule import NoiseSchedule, cosine, linear, respace

STEPS = 200
SCALE, MEAN = 0.4, 0.2
CONFIG = DiffusionConfig(num_timesteps=STEPS, loss="simple", variance="fixed_small")
SCHEDULE = build_schedule(CONFIG)
SHAPE = (1, 2, 2)
ENCODING_ERROR = 5.5  # times 1 over the steps; 4.5 to 5.0 of it are used at 50, 100 and 200 of them


def optimal(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, SCALE^2)."""
    t = (model_t * STEPS / 1000).round().long()
    alpha = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1).float()
    return (1 - alpha).sqrt() / (alpha * SCALE**2 + 1 - alpha) * (x_t - alpha.sqrt() * MEAN)


def said(
    config: SamplerConfig, diffusion: DiffusionConfig, schedule: NoiseSchedule, output: torch.Tensor, *,
    x_t: torch.Tensor, t: torch.Tensor,
) -> Prediction:  # fmt: skip
    return p_mean_variance(diffusion, schedule, output, x_t=x_t, t=t, clip_denoised=config.clip_denoised)


def draw(
    kind: Literal["ancestral", "ddim"], index: torch.Tensor, *, eta: float = 0.0, respacing: str = ""
) -> torch.Tensor:
    sampler = SamplerConfig(kind=kind, respacing=respacing, clip_denoised=False, eta=eta)
    return sample(sampler, CONFIG, SCHEDULE, optimal, index=index, seed=5, image_shape=SHAPE)


@pytest.mark.parametrize(
    ("kind", "eta", "respacing"),
    [("ancestral", 0.0, ""), ("ddim", 0.0, ""), ("ddim", 1.0, ""), ("ancestral", 0.0, "100")],
)
def test_samples_follow_the_data_when_the_model_is_perfect(
    kind: Literal["ancestral", "ddim"], eta: float, respacing: str
) -> None:
    x = draw(kind, torch.arange(4000), eta=eta, respacing=respacing).flatten().double()
    # 16,000 values: standard errors 0.0032 of the mean and 0.0022 of the deviation; the chain's length costs the rest.
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(SCALE, abs=0.02)


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_an_image_is_the_same_in_any_batch(kind: Literal["ancestral", "ddim"]) -> None:
    together = draw(kind, torch.arange(6), respacing="20")
    apart = torch.cat([draw(kind, torch.arange(0, 1), respacing="20"), draw(kind, torch.arange(1, 6), respacing="20")])
    assert torch.equal(together, apart)


def test_export_truncates_as_published_or_rounds() -> None:
    images = torch.tensor([-1.0, -0.9999, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(images).flatten().tolist() == [0, 0, 127, 254, 255, 255]
    assert to_uint8(images, rounding="nearest").flatten().tolist() == [0, 0, 128, 255, 255, 255]


def test_rounded_export_gives_every_grey_level_back() -> None:
    levels = torch.arange(256)
    images = (levels.float() / 127.5 - 1).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(images, rounding="nearest").flatten(), levels.to(torch.uint8))


def test_a_trajectory_ends_in_the_sample_and_names_its_steps() -> None:
    index = torch.arange(3)
    sampler = SamplerConfig(kind="ancestral", respacing="20", clip_denoised=True)
    seen: list[tuple[int, int]] = []
    image = sample(
        sampler, CONFIG, SCHEDULE, optimal, index=index, seed=5, image_shape=SHAPE,
        on_step=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    x_T = normal(seed=5, stream=SAMPLE_INIT, step=0, index=index, shape=SHAPE)
    visits = list(walk_back(sampler, CONFIG, SCHEDULE, optimal, x_T=x_T, index=index, seed=5))
    assert [visit.t for visit in visits] == list(reversed(range(20)))
    assert torch.equal(visits[-1].x, image)
    assert max(visit.pred_xstart.abs().max().item() for visit in visits) <= 1.0
    assert seen == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize("respacing", ["", "100", "ddim50"])
def test_what_is_encoded_and_decoded_again_comes_back(respacing: str) -> None:
    sampler = SamplerConfig(kind="ddim", respacing=respacing, clip_denoised=False)
    x_start = draw("ddim", torch.arange(50), respacing=respacing)
    x_T = encode(sampler, CONFIG, SCHEDULE, optimal, x_start=x_start)
    back = decode(sampler, CONFIG, SCHEDULE, optimal, x_T=x_T, index=torch.arange(50), seed=9)
    # Both walk the same ODE in steps of first order.
    error = (back - x_start).abs().max().item()
    assert error < ENCODING_ERROR / respace(SCHEDULE, respacing).num_timesteps
    assert x_T.std().item() == pytest.approx(1.0, abs=0.2)
    assert [v.t for v in walk_up(sampler, CONFIG, SCHEDULE, optimal, x_start=x_start)][:3] == [0, 1, 2]


@pytest.mark.parametrize("config", [SamplerConfig(), SamplerConfig(kind="ddim", eta=0.5)])
def test_a_walk_with_noise_cannot_be_walked_up(config: SamplerConfig) -> None:
    with pytest.raises(ValueError, match="only DDIM with eta=0"):
        encode(config, CONFIG, SCHEDULE, optimal, x_start=torch.zeros(1, *SHAPE))


def test_the_shape_of_an_export_has_its_channels_last() -> None:
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("settings", [{"eta": 0.5}, {"kind": "ddim", "eta": 1.5}])
def test_an_eta_that_means_nothing_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="eta"):
        SamplerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", [cosine(4000), linear(1000)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_stays_finite_at_every_number_of_steps(schedule: NoiseSchedule, eta: float) -> None:
    config = SamplerConfig(kind="ddim", eta=eta)
    diffusion = DiffusionConfig(loss="simple", variance="fixed_large")
    for count in range(2, 60):
        spaced = respace(schedule, str(count))
        t = torch.arange(count)
        x_t = torch.ones(count, 1, 1, 1)
        p = said(config, diffusion, spaced, 0.1 * x_t, x_t=x_t, t=t)
        step = ddim_step(config, spaced, p, x_t=x_t, t=t, noise=x_t)
        assert step.isfinite().all(), count


def test_ddim_at_eta_1_is_the_ancestral_step_with_the_posterior_variance() -> None:
    """Song et al. 2020, section 4.1: the two agree wherever x_start is not clipped."""
    diffusion = DiffusionConfig(num_timesteps=50, loss="simple", variance="fixed_small")
    schedule = cosine(50)
    t = torch.arange(1, 50)
    x_t, output, noise = torch.randn(3, 49, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(kind="ddim", eta=1.0, clip_denoised=False)
    p = said(config, diffusion, schedule, output, x_t=x_t, t=t)
    ddim = ddim_step(config, schedule, p, x_t=x_t, t=t, noise=noise)
    ancestral = ancestral_step(SamplerConfig(clip_denoised=False), schedule, p, x_t=x_t, t=t, noise=noise)
    torch.testing.assert_close(ddim, ancestral, rtol=1e-9, atol=1e-9)


def test_the_last_step_adds_no_noise() -> None:
    diffusion, schedule = DiffusionConfig(num_timesteps=50), cosine(50)
    t, x_t, output = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    for config, step in (
        (SamplerConfig(), ancestral_step),
        (SamplerConfig(kind="ddim", eta=1.0), ddim_step),
    ):
        p = said(config, diffusion, schedule, output, x_t=x_t, t=t)
        results = [step(config, schedule, p, x_t=x_t, t=t, noise=value * torch.ones_like(x_t)) for value in (-1.0, 5.0)]
        assert torch.equal(*results)


@given(t=st.integers(1, 49), seed=st.integers(0, 1000))
def test_ddim_at_eta_0_keeps_a_true_eps_and_takes_no_noise(t: int, seed: int) -> None:
    diffusion, schedule, at = DiffusionConfig(num_timesteps=50), cosine(50), torch.tensor([t])
    x_start, eps, noise = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    output = torch.cat([eps, noise], dim=1)  # a learned variance plays no part
    config, x_t = SamplerConfig(kind="ddim", clip_denoised=False), q_sample(schedule, x_start=x_start, t=at, eps=eps)
    p = said(config, diffusion, schedule, output, x_t=x_t, t=at)
    x_prev = ddim_step(config, schedule, p, x_t=x_t, t=at, noise=noise)
    # 1 / sqrt(alphas_cumprod) reaches 1e3 at the end, and multiplies float64's rounding.
    torch.testing.assert_close(x_prev, q_sample(schedule, x_start=x_start, t=at - 1, eps=eps), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("config", "step"), [(SamplerConfig(), ancestral_step), (SamplerConfig(kind="ddim"), ddim_step)]
)
def test_how_far_x_start_lies_beyond_its_bound_matters_only_without_clipping(
    config: SamplerConfig, step: Callable[..., torch.Tensor]
) -> None:
    diffusion, schedule, t = DiffusionConfig(num_timesteps=50, loss="simple", variance="fixed_small"), cosine(50), 20
    x_t = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)

    def walk(x_start: float, *, clip: bool) -> float:
        level = schedule.alphas_cumprod[t]
        eps = (x_t - level.sqrt() * x_start) / (1 - level).sqrt()  # the prediction that means this x_start
        clipping = replace(config, clip_denoised=clip)
        p = said(clipping, diffusion, schedule, eps, x_t=x_t, t=torch.tensor([t]))
        return step(clipping, schedule, p, x_t=x_t, t=torch.tensor([t]), noise=x_t).item()

    assert walk(9.0, clip=True) == pytest.approx(walk(1.0, clip=True), rel=1e-12)
    assert abs(walk(9.0, clip=False) - walk(1.0, clip=False)) > 0.1
