"""Classifier guidance: the gradient it takes, where it adds it, and the distribution that it leads to."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import (
    DiffusionConfig,
    build_schedule,
    p_mean_variance,
    predict_eps_from_xstart,
    q_posterior_mean,
)
from diffusion.guidance import (
    classifier_guide,
    condition_mean,
    condition_score,
    eps_from_score,
    guided_eps,
    log_probability_gradient,
    score_from_eps,
)
from diffusion.sampling import SamplerConfig, ddim_step, sample, walk_back

STEPS = 200
SHAPE = (1, 2, 2)
MEANS = torch.tensor([-0.6, 0.6])
SCALE = 0.2
CONFIG = DiffusionConfig(num_timesteps=STEPS, loss="simple", variance="fixed_small", rescale_timesteps=False)
SCHEDULE = build_schedule(CONFIG)


def level(model_t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return SCHEDULE.alphas_cumprod[model_t.long()].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def classifier(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """log p(x_t | y) + constant, of images whose four pixels are all N(MEANS[y], SCALE^2), both classes as likely."""
    alpha = level(model_t, x_t)
    variance = alpha * SCALE**2 + 1 - alpha
    logits = [-((x_t - alpha.sqrt() * mean) ** 2 / (2 * variance)).flatten(1).sum(dim=1) for mean in MEANS]
    return torch.stack(logits, dim=1)


def unconditional(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] without the class: the score is the average of the classes' by their probability."""
    alpha = level(model_t, x_t)
    variance = alpha * SCALE**2 + 1 - alpha
    weight = torch.softmax(classifier(x_t, model_t), dim=1)
    score = sum(
        weight[:, y].reshape(-1, 1, 1, 1) * -(x_t - alpha.sqrt() * mean) / variance for y, mean in enumerate(MEANS)
    )
    return -(1 - alpha).sqrt() * score


@given(seed=st.integers(0, 1000), t=st.integers(0, STEPS - 1))
def test_the_gradient_is_that_of_finite_differences(seed: int, t: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)
    y, model_t, step = torch.tensor([0, 1]), torch.full((2,), float(t)), 1e-6
    gradient = log_probability_gradient(classifier, x_t=x_t, model_t=model_t, y=y)

    def log_p(x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(classifier(x, model_t), dim=1)[torch.arange(2), y]

    for row, column in ((0, 0), (1, 1)):
        change = torch.zeros_like(x_t)
        change[:, 0, row, column] = step
        numeric = (log_p(x_t + change) - log_p(x_t - change)) / (2 * step)
        torch.testing.assert_close(gradient[:, 0, row, column], numeric, rtol=1e-5, atol=1e-7)


def test_each_image_has_the_gradient_it_would_have_alone_and_no_graph_is_left() -> None:
    x_t, model_t, y = (
        torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)),
        torch.ones(3),
        torch.arange(3) % 2,
    )
    with torch.inference_mode():
        together = classifier_guide(classifier, y=y, guidance_scale=2.0)(x_t, model_t)
        apart = [
            classifier_guide(classifier, y=y[i : i + 1], guidance_scale=2.0)(x_t[i : i + 1], model_t[:1])
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(apart))
    assert not together.requires_grad
    assert x_t.grad is None


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_a_conditional_model_is_guided_too_and_only_the_classifier_keeps_a_graph(
    kind: Literal["ancestral", "ddim"],
) -> None:
    index = torch.arange(600)
    y, graphs = index % 2, {"model": set(), "classifier": set()}

    def conditional(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
        """E[eps | x_t, y], of a model whose caller has bound the labels."""
        graphs["model"].add(torch.is_grad_enabled())
        alpha = level(model_t, x_t)
        mean = MEANS[y].reshape(-1, 1, 1, 1)
        return (1 - alpha).sqrt() / (alpha * SCALE**2 + 1 - alpha) * (x_t - alpha.sqrt() * mean)

    def listening(x_t: torch.Tensor, model_t: torch.Tensor) -> torch.Tensor:
        graphs["classifier"].add(torch.is_grad_enabled() and x_t.requires_grad)
        return classifier(x_t, model_t)

    sampler = SamplerConfig(kind=kind, respacing="50", clip_denoised=False)
    plain, guided = (
        sample(
            sampler, CONFIG, SCHEDULE, conditional, index=index, seed=3, image_shape=SHAPE,
            guide=classifier_guide(listening, y=y, guidance_scale=scale),
        )
        for scale in (0.0, 3.0)
    )  # fmt: skip
    assert graphs == {"model": {False}, "classifier": {True}}
    # The classes are drawn as they are; guidance on top moves each further to its own side.
    for label, mean in enumerate(MEANS.tolist()):
        assert plain[y == label].mean().item() == pytest.approx(mean, abs=0.03)
    assert guided[y == 1].mean() > plain[y == 1].mean() + 0.01
    assert guided[y == 0].mean() < plain[y == 0].mean() - 0.01


def test_a_label_without_a_logit_is_refused() -> None:
    guide = classifier_guide(classifier, y=torch.tensor([0, 2]), guidance_scale=1.0)
    with pytest.raises(ValueError, match="labels 0 to 2; the classifier knows 0 to 1"):
        guide(torch.zeros(2, *SHAPE), torch.zeros(2))
    with pytest.raises(ValueError, match="3 images, but 2 labels"):
        guide(torch.zeros(3, *SHAPE), torch.zeros(3))


def test_at_the_last_step_of_guided_ddim_the_image_is_the_guided_x_start() -> None:
    index, x_T = torch.arange(2), torch.ones(2, *SHAPE)
    walk = walk_back(
        SamplerConfig(kind="ddim", respacing="5"), CONFIG, SCHEDULE, unconditional, x_T=x_T, index=index, seed=1,
        guide=lambda x_t, model_t: torch.full_like(x_t, 0.5),
    )  # fmt: skip
    *_, last = walk
    torch.testing.assert_close(last.x, last.pred_xstart)


def test_the_mean_is_shifted_by_the_models_own_variance_and_by_none_where_that_is_zero() -> None:
    t, x_t = torch.tensor([0, 100]), torch.zeros(2, *SHAPE, dtype=torch.float64)
    gradient = torch.ones_like(x_t)
    p = p_mean_variance(CONFIG, SCHEDULE, x_t, x_t=x_t, t=t, clip_denoised=True)
    guided = condition_mean(p, gradient)
    shift = (guided.mean - p.mean)[:, 0, 0, 0]
    assert torch.equal(guided.pred_xstart, p.pred_xstart)
    assert shift.tolist() == pytest.approx([0.0, SCHEDULE.posterior_variance[100].item()])
    learned = DiffusionConfig(num_timesteps=STEPS, rescale_timesteps=False)
    output = torch.cat([x_t, torch.full_like(x_t, 0.4)], dim=1)
    p = p_mean_variance(learned, SCHEDULE, output, x_t=x_t, t=t, clip_denoised=True)
    torch.testing.assert_close(condition_mean(p, gradient).mean - p.mean, p.log_variance.exp())


@given(t=st.integers(0, STEPS - 1), seed=st.integers(0, 1000))
def test_guidance_adds_the_gradient_to_the_score(t: int, seed: int) -> None:
    eps, gradient = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = torch.tensor([t])
    guided = guided_eps(SCHEDULE, eps, t=at, gradient=gradient)
    torch.testing.assert_close(
        score_from_eps(SCHEDULE, guided, t=at), score_from_eps(SCHEDULE, eps, t=at) + gradient, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(eps_from_score(SCHEDULE, score_from_eps(SCHEDULE, eps, t=at), t=at), eps)


def test_ddim_shifts_eps_after_clipping_and_does_not_clip_again() -> None:
    t, x_t = torch.tensor([100]), torch.full((1, *SHAPE), 3.0, dtype=torch.float64)
    config = SamplerConfig(kind="ddim", clip_denoised=True)
    p = p_mean_variance(CONFIG, SCHEDULE, -x_t, x_t=x_t, t=t, clip_denoised=True)
    assert (p.pred_xstart == 1).all()
    gradient = torch.full_like(x_t, 5.0)
    guided = condition_score(SCHEDULE, p, x_t=x_t, t=t, gradient=gradient)
    found = ddim_step(config, SCHEDULE, guided, x_t=x_t, t=t, noise=x_t)
    alpha, before = SCHEDULE.alphas_cumprod[100], SCHEDULE.alphas_cumprod_prev[100]
    eps = predict_eps_from_xstart(SCHEDULE, x_t=x_t, t=t, pred_xstart=p.pred_xstart) - (1 - alpha).sqrt() * gradient
    x_start = (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    assert (x_start > 1).all()
    torch.testing.assert_close(guided.pred_xstart, x_start)
    torch.testing.assert_close(guided.mean, q_posterior_mean(SCHEDULE, x_start=x_start, x_t=x_t, t=t))
    torch.testing.assert_close(found, before.sqrt() * x_start + (1 - before).sqrt() * eps)


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_a_perfect_classifier_makes_an_unconditional_model_draw_its_class(kind: Literal["ancestral", "ddim"]) -> None:
    index = torch.arange(2000)
    y = index % 2
    sampler = SamplerConfig(kind=kind, clip_denoised=False)
    x = sample(
        sampler, CONFIG, SCHEDULE, unconditional, index=index, seed=3, image_shape=SHAPE,
        guide=classifier_guide(classifier, y=y, guidance_scale=1.0),
    )  # fmt: skip
    for label, mean in enumerate(MEANS.tolist()):
        of_class = x[y == label]
        # 4000 values: standard error 0.003; the chain's length costs the rest.
        assert of_class.mean().item() == pytest.approx(mean, abs=0.02)
        assert of_class.std().item() == pytest.approx(SCALE, abs=0.02)


def test_a_larger_scale_draws_images_that_the_classifier_is_surer_of() -> None:
    index, y = torch.arange(300), torch.ones(300, dtype=torch.int64)
    means = [
        sample(
            SamplerConfig(respacing="50", clip_denoised=False), CONFIG, SCHEDULE, unconditional, index=index, seed=3,
            image_shape=SHAPE, guide=classifier_guide(classifier, y=y, guidance_scale=scale),
        ).mean().item()
        for scale in (1.0, 6.0)
    ]  # fmt: skip
    assert means[1] > means[0]
