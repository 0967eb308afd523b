"""The noise of a gradient: known exactly where the loss is linear, and smaller where t is drawn by importance."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.gradient_noise import (
    MicrobatchGradient,
    NoiseScale,
    inner_products,
    learned_density,
    microbatch_gradient,
    noise_scale,
    uniform_density,
)
from diffusion.objectives import DiffusionObjective, Examples, Measured
from diffusion.schedule import NoiseSchedule
from diffusion.timestep_sampler import LossSecondMomentConfig, LossSecondMomentSampler, TimestepSampler, UniformSampler

T = 200
SCHEDULE = build_schedule(DiffusionConfig(num_timesteps=T))
SHAPE = (1, 3, 4)
D = 12
MEAN = 0.5
SPREAD = 2.0
EVEN = torch.ones(T)
STEEP = 1 / torch.arange(1, T + 1).float()  # as terms of L_vlb are: a few t have nearly all of the second moment
BY_LOSS = LossSecondMomentConfig(history_per_term=1, uniform_prob=1e-6)
SAID = ("noise_scale", "standard_error")


@dataclass(frozen=True)
class Linear:
    """Loss scale(t) (1 + w . (MEAN + SPREAD eps)): at w = 0 it is scale(t), and its gradient is known."""

    scale: torch.Tensor
    schedule: NoiseSchedule = SCHEDULE

    def __call__(self, module, examples: Examples, *, t, eps) -> Measured:
        return Measured(self.scale[t] * (1 + module(MEAN + SPREAD * eps.flatten(1))), {})


def examples_at(index: torch.Tensor) -> Examples:
    return Examples(torch.zeros(len(index), *SHAPE), index)


def by_importance(scale: torch.Tensor) -> torch.Tensor:
    return learned_density(BY_LOSS, Linear(scale), lambda x: x @ torch.zeros(D), examples_at, seed=0)


def microbatches(scale: torch.Tensor, densities: list[torch.Tensor], *, count: int, size: int, seed: int = 0):
    w = torch.zeros(D, requires_grad=True)
    return [
        microbatch_gradient(
            Linear(scale), lambda x: x @ w, [w], examples_at(index), densities=torch.stack(densities), seed=seed
        )
        for index in torch.arange(size * count).split(size)
    ]  # fmt: skip


def scales(found: list[MicrobatchGradient]) -> list[NoiseScale]:
    products = inner_products([one.mean for one in found])
    return [noise_scale(products, second) for second in torch.stack([one.second_moments for one in found], dim=1)]


def test_the_scale_of_a_linear_model_is_recovered_whatever_the_microbatch() -> None:
    for size, count in ((4, 200), (20, 40)):
        (found,) = scales(microbatches(EVEN, [uniform_density(T)], count=count, size=size))
        # 800 examples, as good as 300 for their unequal weights, know |G|^2 to 2 SPREAD / sqrt(300 |G|^2) = 13 %.
        assert found.grad_norm2 == pytest.approx(D * MEAN**2, rel=0.4)
        assert found.trace == pytest.approx(D * SPREAD**2, rel=0.2)
        assert found.noise_scale == pytest.approx((SPREAD / MEAN) ** 2, abs=3 * found.standard_error)
        assert 0.05 < found.standard_error / found.noise_scale < 0.3


def test_the_standard_error_is_the_spread_of_what_other_seeds_find() -> None:
    found = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        examples = MEAN + SPREAD * torch.randn(24, 16, D, generator=generator, dtype=torch.float64)
        products = inner_products(list(examples.mean(dim=1)))
        found.append(noise_scale(products, examples.square().sum(dim=2).mean(dim=1)))
    estimates, errors = (torch.tensor([getattr(one, name) for one in found]) for name in SAID)
    # The spread of 300 estimates is itself known to 4 %; of a ratio a jackknife errs a little high.
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(estimates.std()), rel=0.2)


@pytest.fixture(scope="module")
def warm() -> LossSecondMomentSampler:
    sampler = LossSecondMomentSampler(BY_LOSS, T)
    sampler.update(torch.arange(T), STEEP)
    return sampler


@pytest.fixture(scope="module")
def steep(warm: LossSecondMomentSampler) -> list[MicrobatchGradient]:
    """4096 examples' gradients, and their noise with t drawn evenly and by importance."""
    return microbatches(STEEP, [uniform_density(T), warm.probabilities()], count=64, size=64)


def test_drawing_t_by_importance_takes_away_the_noise_of_t_and_no_other(steep: list[MicrobatchGradient]) -> None:
    even, drawn = scales(steep)
    mean, square = float(STEEP.mean()), float(STEEP.square().mean())
    # 3 standard errors of the trace: 4096 draws, of which every 60th is the t = 0 that carries two thirds of it.
    assert even.trace == pytest.approx(square * D * (MEAN**2 + SPREAD**2) - mean**2 * D * MEAN**2, rel=0.3)
    # Weighted by 1 / (T p), every t has the same loss: the noise of eps is left.
    assert drawn.trace == pytest.approx(mean**2 * D * SPREAD**2, rel=0.1)
    assert drawn.grad_norm2 == even.grad_norm2 == pytest.approx(mean**2 * D * MEAN**2, rel=0.3)
    assert drawn.noise_scale + 5 * drawn.standard_error < even.noise_scale - 2 * even.standard_error


def test_both_samplers_of_training_give_the_mean_and_the_noise_that_were_measured(
    steep: list[MicrobatchGradient], warm: LossSecondMomentSampler
) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 400_000
    samplers: tuple[TimestepSampler, ...] = (UniformSampler(T), warm)
    for sampler, one in zip(samplers, scales(steep), strict=True):
        t, weights = sampler.sample(torch.rand(draws, generator=generator, dtype=torch.float64))
        eps = torch.randn(draws, D, generator=generator)
        gradients = (weights * STEEP[t])[:, None] * (MEAN + SPREAD * eps)
        assert float(gradients.var(dim=0).sum()) == pytest.approx(one.trace, rel=0.3)
        # Means of 400,000 and of 4096 draws, the latter known to SPREAD mean(STEEP) / sqrt(4096) = 0.001
        torch.testing.assert_close(
            torch.stack([each.mean for each in steep]).mean(dim=0), gradients.mean(dim=0), rtol=0, atol=5e-3
        )


def test_what_is_learned_of_the_losses_is_their_share_of_all_losses() -> None:
    torch.testing.assert_close(by_importance(STEEP), (STEEP / STEEP.sum()).double(), rtol=1e-3, atol=0)


@given(seed=st.integers(0, 2**32), cut=st.integers(1, 7))
def test_an_examples_gradient_does_not_depend_on_its_microbatch(seed: int, cut: int) -> None:
    w = torch.zeros(D, requires_grad=True)

    def of(index: torch.Tensor) -> MicrobatchGradient:
        densities = uniform_density(T)[None]
        return microbatch_gradient(
            Linear(STEEP), lambda x: x @ w, [w], examples_at(index), densities=densities, seed=seed
        )

    whole, parts = of(torch.arange(8)), [of(torch.arange(cut)), of(torch.arange(cut, 8))]
    shares = (cut / 8, 1 - cut / 8)
    mean, second = (
        sum(share * getattr(part, name) for share, part in zip(shares, parts, strict=True))
        for name in ("mean", "second_moments")
    )
    # float32 sums of eight in another order
    torch.testing.assert_close(whole.mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.second_moments, second)


def test_a_gradient_that_noise_hides_has_no_scale() -> None:
    noise = torch.randn(8, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    products = inner_products(list(noise - noise.mean(dim=0)))  # whose mean is 0: products of two are below it
    found = noise_scale(products, torch.full((8,), 50.0, dtype=torch.float64))
    assert found.grad_norm2 < 0
    assert (found.noise_scale, found.standard_error) == (None, None)
    assert found.trace == 50 - found.grad_norm2


def test_two_microbatches_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        noise_scale(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("loss", ["simple", "vlb", "hybrid"])
def test_the_mean_estimates_the_gradient_of_each_loss_over_all_t(loss: str) -> None:
    variance = "fixed_large" if loss == "simple" else "learned_range"
    config = DiffusionConfig(num_timesteps=30, schedule="linear", loss=loss, variance=variance)
    objective, w = DiffusionObjective(config, build_schedule(config)), torch.tensor([0.3], requires_grad=True)
    images = torch.linspace(-1, 1, D).reshape(1, *SHAPE).expand(3000, -1, -1, -1)

    def network(x_t, model_t):
        return w * torch.cat([x_t] if loss == "simple" else [x_t, x_t], dim=1)

    density = uniform_density(30)[None]
    found = torch.cat(
        [
            microbatch_gradient(
                objective, network, [w], Examples(images[:8], index), densities=density, seed=0
            ).mean
            for index in torch.arange(512).split(8)
        ]
    )  # fmt: skip
    eps = torch.randn(3000, *SHAPE, generator=torch.Generator().manual_seed(1))
    t = torch.arange(30).repeat(100)
    losses = objective(network, Examples(images, torch.arange(3000)), t=t, eps=eps).objective
    (expected,) = torch.autograd.grad(losses.mean(), [w])
    error = float(found.std()) / len(found) ** 0.5
    # 3000 evenly spread t know it better than 512 drawn ones.
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * error)
    assert error < 0.2 * abs(float(expected))
