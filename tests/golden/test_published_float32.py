"""In float32 the formulas round as the published ones do: tables looked up as float32, sums in the published order.

The same formulas once more, in numpy's float32, from tables of our own; roots, exponentials and tanh are torch's in
both, since libraries differ by a last bit there. What is compared bit by bit would not be equal in any other order.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion.gaussian import DiffusionConfig, build_schedule, p_mean_variance, q_posterior, q_sample
from diffusion.guidance import condition_mean, condition_score
from diffusion.likelihood import discretized_gaussian_log_likelihood, gaussian_kl
from diffusion.losses import vlb_term
from diffusion.sampling import SamplerConfig, ancestral_step, ddim_step, ddim_step_up

T = 1000
STEPS = np.array([0, 1, T // 2, T - 1])
F32 = np.float32


def betas_of(schedule: str) -> np.ndarray:
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, T, dtype=np.float64)
    level = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    return np.array([min(1 - level[i + 1] / level[i], 0.999) for i in range(T)])


class Published:
    """Tables in float64, looked up as float32 of shape (b, 1, 1, 1)."""

    def __init__(self, schedule: str) -> None:
        betas = betas_of(schedule)
        bar = np.cumprod(1 - betas)
        before, after = np.append(1.0, bar[:-1]), np.append(bar[1:], 0.0)
        variance = betas * (1 - before) / (1 - bar)
        self.tables = {
            "bar": bar,
            "before": before,
            "after": after,
            "signal": np.sqrt(bar),
            "noise": np.sqrt(1 - bar),
            "recip": np.sqrt(1 / bar),
            "recipm1": np.sqrt(1 / bar - 1),
            "log_beta": np.log(betas),
            "log_variance": np.log(np.append(variance[1], variance[1:])),
            "coef1": betas * np.sqrt(before) / (1 - bar),
            "coef2": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tables[name][STEPS].astype(F32).reshape(-1, 1, 1, 1)


def torchs(function: str, x: np.ndarray) -> np.ndarray:
    return getattr(torch, function)(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def kl(mean1: np.ndarray, log1: np.ndarray, mean2: np.ndarray, log2: np.ndarray) -> np.ndarray:
    first = F32(-1) + log2 - log1 + torchs("exp", log1 - log2)
    difference = mean1 - mean2
    return F32(0.5) * (first + difference * difference * torchs("exp", -log2))


def cdf(x: np.ndarray) -> np.ndarray:
    return F32(0.5) * (F32(1) + torchs("tanh", F32(math.sqrt(2 / math.pi)) * (x + F32(0.044715) * (x * x * x))))


def decoder(x: np.ndarray, mean: np.ndarray, log_scale: np.ndarray) -> np.ndarray:
    centred, inverse = x - mean, torchs("exp", -log_scale)
    plus, minus = cdf(inverse * (centred + F32(1 / 255))), cdf(inverse * (centred - F32(1 / 255)))
    floor = F32(1e-12)
    middle = torchs("log", np.maximum(plus - minus, floor))
    bright, dark = torchs("log", np.maximum(F32(1) - minus, floor)), torchs("log", np.maximum(plus, floor))
    return np.where(x < -0.999, dark, np.where(x > 0.999, bright, middle))


class Case:
    """Inputs at four steps, and p(x_{t-1} | x_t) by both."""

    def __init__(self, schedule: str) -> None:
        self.table = Published(schedule)
        self.config = DiffusionConfig(num_timesteps=T, schedule=schedule)  # type: ignore[arg-type]
        self.schedule, self.t = build_schedule(self.config), torch.from_numpy(STEPS)
        random = np.random.default_rng(0)
        shape = (len(STEPS), 3, 4, 4)
        self.x_start = (random.integers(0, 256, shape) / 127.5 - 1).astype(F32)
        self.eps, said, self.noise, self.gradient = random.standard_normal((4, *shape)).astype(F32)
        self.x_t = self.table["signal"] * self.x_start + self.table["noise"] * self.eps
        self.said, self.v = self.eps + F32(0.02) * said, np.clip(said, -1, 1)
        self.clipped = np.clip(self.table["recip"] * self.x_t - self.table["recipm1"] * self.said, F32(-1), F32(1))
        self.mean = self.table["coef1"] * self.clipped + self.table["coef2"] * self.x_t
        fraction = (self.v + F32(1)) / F32(2)
        self.log_variance = fraction * self.table["log_beta"] + (F32(1) - fraction) * self.table["log_variance"]
        output = torch.cat([torch.from_numpy(self.said), torch.from_numpy(self.v)], dim=1)
        self.p = p_mean_variance(
            self.config, self.schedule, output, x_t=torch.from_numpy(self.x_t), t=self.t, clip_denoised=True
        )
        self.output = output
        self.not_last = (STEPS != 0).astype(F32).reshape(-1, 1, 1, 1)

    def eps_of(self, x_start: np.ndarray) -> np.ndarray:
        return (self.table["recip"] * self.x_t - x_start) / self.table["recipm1"]


@pytest.fixture(params=["linear", "cosine"], scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def same(ours: torch.Tensor, published: np.ndarray) -> None:
    assert ours.dtype == torch.float32
    assert published.dtype == F32
    np.testing.assert_array_equal(ours.numpy(), np.broadcast_to(published, ours.shape))


def test_noised_images_and_p_are_the_published_ones(case: Case) -> None:
    x_start, eps = torch.from_numpy(case.x_start), torch.from_numpy(case.eps)
    same(q_sample(case.schedule, x_start=x_start, t=case.t, eps=eps), case.x_t)
    same(case.p.pred_xstart, case.clipped)
    same(case.p.mean, case.mean)
    same(case.p.log_variance, case.log_variance)
    same(case.p.variance, torchs("exp", case.log_variance))


def test_divergences_are_summed_in_the_published_order(case: Case) -> None:
    x_start, x_t = torch.from_numpy(case.x_start), torch.from_numpy(case.x_t)
    true_mean, _, true_log_variance = q_posterior(case.schedule, x_start=x_start, x_t=x_t, t=case.t)
    published_mean = case.table["coef1"] * case.x_start + case.table["coef2"] * case.x_t
    expected = kl(
        published_mean, np.broadcast_to(case.table["log_variance"], case.x_t.shape), case.mean, case.log_variance
    )
    same(gaussian_kl(true_mean, true_log_variance, case.p.mean, case.p.log_variance), expected)


def test_the_decoder_rounds_as_published_down_to_its_floor(case: Case) -> None:
    x_start = torch.from_numpy(case.x_start)
    for log_variance in (-2.0, -8.0, -12.0):  # bins that hold much, little, and less than the floor
        logs = np.full_like(case.x_start, log_variance)
        ours = discretized_gaussian_log_likelihood(
            x_start, mean=torch.from_numpy(case.mean), log_variance=torch.from_numpy(logs)
        )
        same(ours, decoder(case.x_start, case.mean, F32(0.5) * logs))
    assert (ours == math.log(F32(1e-12))).any()


def test_a_term_of_the_bound_is_the_published_one(case: Case) -> None:
    clipped = case.table["recip"] * case.x_t - case.table["recipm1"] * case.said
    mean = case.table["coef1"] * clipped + case.table["coef2"] * case.x_t
    true_mean = case.table["coef1"] * case.x_start + case.table["coef2"] * case.x_t
    nats = kl(true_mean, np.broadcast_to(case.table["log_variance"], mean.shape), mean, case.log_variance)
    nats[0] = -decoder(case.x_start, mean, F32(0.5) * case.log_variance)[0]
    expected = nats.reshape(len(nats), -1).mean(axis=1) / F32(math.log(2))
    ours = vlb_term(
        case.config, case.schedule, case.output, x_start=torch.from_numpy(case.x_start),
        x_t=torch.from_numpy(case.x_t), t=case.t, clip_denoised=False,
    )  # fmt: skip
    # The mean over 48 pixels is summed in another order.
    np.testing.assert_allclose(ours.numpy(), expected, rtol=5e-7)


def test_sampling_steps_are_the_published_ones(case: Case) -> None:
    at = {"x_t": torch.from_numpy(case.x_t), "t": case.t}
    noise, table = torch.from_numpy(case.noise), case.table
    expected = case.mean + case.not_last * torchs("exp", F32(0.5) * case.log_variance) * case.noise
    same(ancestral_step(SamplerConfig(), case.schedule, case.p, noise=noise, **at), expected)
    eps = case.eps_of(case.clipped)
    for eta in (0.0, 0.5):
        spread = torchs("sqrt", (F32(1) - table["before"]) / (F32(1) - table["bar"]))
        sigma = F32(eta) * spread * torchs("sqrt", F32(1) - table["bar"] / table["before"])
        direction = torchs("sqrt", F32(1) - table["before"] - sigma**2) * eps
        mean = case.clipped * torchs("sqrt", table["before"]) + direction
        found = ddim_step(SamplerConfig(kind="ddim", eta=eta), case.schedule, case.p, noise=noise, **at)
        same(found, mean + case.not_last * sigma * case.noise)
    expected = case.clipped * torchs("sqrt", table["after"]) + torchs("sqrt", F32(1) - table["after"]) * eps
    same(ddim_step_up(case.schedule, case.p, **at), expected)


def test_guidance_is_the_published_one(case: Case) -> None:
    gradient = torch.from_numpy(case.gradient)
    same(condition_mean(case.p, gradient).mean, case.mean + torchs("exp", case.log_variance) * case.gradient)
    eps = case.eps_of(case.clipped) - torchs("sqrt", F32(1) - case.table["bar"]) * case.gradient
    x_start = case.table["recip"] * case.x_t - case.table["recipm1"] * eps
    guided = condition_score(case.schedule, case.p, x_t=torch.from_numpy(case.x_t), t=case.t, gradient=gradient)
    same(guided.pred_xstart, x_start)
    same(guided.mean, case.table["coef1"] * x_start + case.table["coef2"] * case.x_t)
