"""The three losses: what each minimises, and which parameters learn from what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.losses import LossTerms, diffusion_losses, quartile_sums

STEPS = 400
timesteps = st.lists(st.integers(0, STEPS - 1), min_size=3, max_size=3)


class Fixed:
    """A "network" whose output is a tensor that can be differentiated."""

    def __init__(self, channels: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.output = torch.randn(3, channels, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.output


def losses(config: DiffusionConfig, t: list[int], model: Fixed) -> LossTerms:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (3, 2, 4, 4), generator=generator)
    eps = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    x_start = pixels.double() / 127.5 - 1
    return diffusion_losses(config, build_schedule(config), model, x_start=x_start, t=torch.tensor(t), eps=eps)


SIMPLE = DiffusionConfig(num_timesteps=STEPS, loss="simple", variance="fixed_large")
HYBRID = DiffusionConfig(num_timesteps=STEPS, loss="hybrid")
VLB = DiffusionConfig(num_timesteps=STEPS, loss="vlb")


@given(t=timesteps)
def test_hybrid_is_simple_plus_a_thousandth_of_the_bound_in_bits(t: list[int]) -> None:
    terms = losses(HYBRID, t, Fixed(4))
    assert terms.vlb is not None
    torch.testing.assert_close(terms.objective, terms.simple + 0.001 * STEPS * terms.vlb, rtol=1e-12, atol=0)


@given(t=timesteps)
def test_the_other_published_weight_leaves_the_term_as_it_is_and_at_a_thousand_steps_they_are_one(t: list[int]) -> None:
    terms = losses(replace(HYBRID, vlb_weight="1/T"), t, Fixed(4))
    assert terms.vlb is not None
    torch.testing.assert_close(terms.objective, terms.simple + terms.vlb, rtol=1e-12, atol=0)
    thousand = replace(HYBRID, num_timesteps=1000)
    torch.testing.assert_close(
        losses(replace(thousand, vlb_weight="1/T"), t, Fixed(4)).objective, losses(thousand, t, Fixed(4)).objective
    )


@given(t=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_quartiles_hold_every_loss_once_in_its_quarter_of_t(t: list[int], seed: int) -> None:
    rows = torch.rand(3, len(t), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, weights = rows[:2], rows[2]
    *sums, counts = quartile_sums(torch.tensor(t), values, weights, num_timesteps=STEPS)
    for quarter in range(4):
        inside = [i for i, step in enumerate(t) if quarter / 4 <= step / STEPS < (quarter + 1) / 4]
        for row, total in zip(values, sums, strict=True):
            assert total[quarter].item() == pytest.approx(sum(float(weights[i] * row[i]) for i in inside))
        assert counts[quarter].item() == pytest.approx(sum(float(weights[i]) for i in inside))


def test_a_loss_that_is_no_number_is_in_its_own_quarter_alone() -> None:
    values, weights = torch.tensor([[1.0, float("nan"), 3.0]]), torch.ones(3)
    sums, _ = quartile_sums(torch.tensor([0, STEPS // 2, STEPS - 1]), values, weights, num_timesteps=STEPS)
    assert sums.isnan().tolist() == [False, False, True, False]


@given(t=timesteps)
def test_the_mean_channels_of_hybrid_learn_exactly_what_simple_teaches(t: list[int]) -> None:
    hybrid = Fixed(4)
    simple = Fixed(4)
    losses(HYBRID, t, hybrid).objective.sum().backward()
    (losses(HYBRID, t, simple).simple).sum().backward()
    assert hybrid.output.grad is not None
    assert simple.output.grad is not None
    assert torch.equal(hybrid.output.grad[:, :2], simple.output.grad[:, :2])
    assert hybrid.output.grad[:, 2:].abs().sum() > 0


@given(t=timesteps)
def test_vlb_teaches_the_mean_too(t: list[int]) -> None:
    model = Fixed(4)
    terms = losses(VLB, t, model)
    assert terms.vlb is not None
    torch.testing.assert_close(terms.objective, STEPS * terms.vlb)
    terms.objective.sum().backward()
    assert model.output.grad is not None
    assert (model.output.grad[:, :2].flatten(1).abs().sum(dim=1) > 0).all()


def test_simple_is_the_mean_squared_error_of_eps_and_has_no_bound() -> None:
    model = Fixed(2)
    terms = losses(SIMPLE, [0, 10, 399], model)
    generator = torch.Generator().manual_seed(2)
    torch.randint(0, 256, (3, 2, 4, 4), generator=generator)
    eps = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(terms.simple, ((eps - model.output) ** 2).mean(dim=(1, 2, 3)))
    assert terms.vlb is None


@pytest.mark.parametrize("t", [1, 200, 399])
def test_a_perfect_prediction_with_the_posteriors_variance_has_no_divergence(t: int) -> None:
    config = DiffusionConfig(num_timesteps=STEPS, loss="vlb")
    schedule, at = build_schedule(config), torch.tensor([t])
    generator = torch.Generator().manual_seed(0)
    x_start = torch.rand(1, 2, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64)
    perfect = torch.cat([eps, torch.full_like(eps, -1.0)], dim=1)  # v = -1: the posterior's own variance
    terms = diffusion_losses(config, schedule, lambda x, s: perfect, x_start=x_start, t=at, eps=eps)
    assert terms.vlb is not None
    assert terms.vlb.abs().item() < 1e-9
