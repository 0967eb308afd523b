"""The fraction of the range that a network chooses is what it said, and what its variance is made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig, build_schedule, p_mean_variance
from diffusion.variance_fraction import variance_fractions

T = 40
CONFIG = DiffusionConfig(num_timesteps=T)
SCHEDULE = build_schedule(CONFIG)
X_START = torch.linspace(-1, 1, 3 * 2 * 16).reshape(3, 2, 4, 4)
INDEX = torch.arange(3)


def saying(fraction):
    """A network whose variance channels say fraction(t) everywhere, t from 0 to 1."""

    def model(x_t, model_t):
        f = fraction(model_t / 1000).reshape(-1, 1, 1, 1).expand_as(x_t)
        return torch.cat([x_t, 2 * f - 1], dim=1)

    return model


def fractions(model, **changes):
    settings = {"x_start": X_START, "index": INDEX, "steps": torch.arange(T), "seed": 0, **changes}
    return variance_fractions(CONFIG, SCHEDULE, model, **settings)


@given(a=st.floats(-1, 2), b=st.floats(-1, 2))
def test_fractions_are_those_the_network_was_built_to_say_also_outside_0_to_1(a: float, b: float) -> None:
    found = fractions(saying(lambda u: a + (b - a) * u))
    u = torch.arange(T, dtype=torch.float64) / T
    torch.testing.assert_close(found, (a + (b - a) * u).expand(3, T), rtol=0, atol=1e-6)  # said in float32


def test_the_log_variance_lies_that_far_between_its_bounds() -> None:
    model = saying(lambda u: 0.2 + 0.6 * u)
    t = torch.arange(1, T)
    x_t = torch.zeros(len(t), 2, 4, 4)
    p = p_mean_variance(CONFIG, SCHEDULE, model(x_t, SCHEDULE.model_t(t)), x_t=x_t, t=t, clip_denoised=False)
    low, high = SCHEDULE.posterior_log_variance_clipped[t], SCHEDULE.log_betas[t]
    between = (p.log_variance[:, 0, 0, 0].double() - low) / (high - low)
    # float32 logarithms near -10, over a range that narrows to some hundredths
    torch.testing.assert_close(fractions(model, steps=t)[0], between, rtol=0, atol=1e-3)


def test_images_do_not_share_their_noise_and_do_not_depend_on_the_batch() -> None:
    def model(x_t, model_t):
        return torch.cat([x_t, x_t], dim=1)

    steps = torch.tensor([0, 7, 39])
    found = fractions(model, steps=steps)
    assert torch.equal(fractions(model, steps=steps, batch_size=2), found)
    assert torch.equal(fractions(model, steps=steps[1:], x_start=X_START[2:], index=INDEX[2:]), found[2:, 1:])
    same = fractions(model, steps=steps, x_start=X_START[:1].expand(3, -1, -1, -1))
    assert len(same[:, 2].unique()) == 3


def test_classes_are_told_to_a_network_that_asks_for_them() -> None:
    def model(x_t, model_t, y):
        return torch.cat([x_t, y.reshape(-1, 1, 1, 1) * torch.ones_like(x_t)], dim=1)

    found = fractions(model, y=torch.tensor([1, -1, 1]))
    assert torch.equal(found, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)[:, None].expand(3, T))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_a_variance_that_is_no_range_has_no_fraction(variance: str) -> None:
    loss = "vlb" if variance == "learned" else "simple"
    config = DiffusionConfig(num_timesteps=T, variance=variance, loss=loss)
    with pytest.raises(ValueError, match=rf"diffusion\.variance='{variance}'.*learned_range"):
        variance_fractions(config, SCHEDULE, saying(lambda u: u), x_start=X_START, index=INDEX, steps=INDEX, seed=0)
