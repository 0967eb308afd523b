"""Sampling: images that depend on seed and index alone, and follow the distribution they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig, build_schedule, q_sample
from diffusion.sampling import SamplerConfig, ancestral_step, ddim_step, sample, to_uint8
from diffusion.schedule import NoiseSchedule, cosine, linear, respace

STEPS = 200
SCALE, MEAN = 0.4, 0.2
CONFIG = DiffusionConfig(num_timesteps=STEPS, loss="simple", variance="fixed_small")
SCHEDULE = build_schedule(CONFIG)
SHAPE = (1, 2, 2)


def optimal(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, SCALE^2)."""
    t = (model_t * STEPS / 1000).round().long()
    alpha = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1).float()
    return (1 - alpha).sqrt() / (alpha * SCALE**2 + 1 - alpha) * (x_t - alpha.sqrt() * MEAN)


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


def test_export_truncates_as_published() -> None:
    images = torch.tensor([-1.0, -0.9999, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(images).flatten().tolist() == [0, 0, 127, 254, 255, 255]
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
        step = ddim_step(config, diffusion, spaced, 0.1 * x_t, x_t=x_t, t=t, noise=x_t)
        assert step.isfinite().all(), count


def test_ddim_at_eta_1_is_the_ancestral_step_with_the_posterior_variance() -> None:
    """Song et al. 2020, section 4.1: the two agree wherever x_start is not clipped."""
    diffusion = DiffusionConfig(num_timesteps=50, loss="simple", variance="fixed_small")
    schedule = cosine(50)
    t = torch.arange(1, 50)
    x_t, output, noise = torch.randn(3, 49, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ddim = ddim_step(
        SamplerConfig(kind="ddim", eta=1.0, clip_denoised=False), diffusion, schedule, output, x_t=x_t, t=t, noise=noise
    )
    ancestral = ancestral_step(
        SamplerConfig(clip_denoised=False), diffusion, schedule, output, x_t=x_t, t=t, noise=noise
    )
    torch.testing.assert_close(ddim, ancestral, rtol=1e-9, atol=1e-9)


def test_the_last_step_adds_no_noise() -> None:
    diffusion, schedule = DiffusionConfig(num_timesteps=50), cosine(50)
    t, x_t, output = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    for config, step in (
        (SamplerConfig(), ancestral_step),
        (SamplerConfig(kind="ddim", eta=1.0), ddim_step),
    ):
        results = [
            step(config, diffusion, schedule, output, x_t=x_t, t=t, noise=value * torch.ones_like(x_t))
            for value in (-1.0, 5.0)
        ]
        assert torch.equal(*results)


@given(t=st.integers(1, 49), seed=st.integers(0, 1000))
def test_ddim_at_eta_0_keeps_a_true_eps_and_takes_no_noise(t: int, seed: int) -> None:
    diffusion, schedule, at = DiffusionConfig(num_timesteps=50), cosine(50), torch.tensor([t])
    x_start, eps, noise = torch.randn(3, 1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    output = torch.cat([eps, noise], dim=1)  # a learned variance plays no part
    x_prev = ddim_step(
        SamplerConfig(kind="ddim", clip_denoised=False), diffusion, schedule, output,
        x_t=q_sample(schedule, x_start=x_start, t=at, eps=eps), t=at, noise=noise,
    )  # fmt: skip
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
        return step(clipping, diffusion, schedule, eps, x_t=x_t, t=torch.tensor([t]), noise=x_t).item()

    assert walk(9.0, clip=True) == pytest.approx(walk(1.0, clip=True), rel=1e-12)
    assert abs(walk(9.0, clip=False) - walk(1.0, clip=False)) > 0.1
