"""Schedules: the published betas, their derived tables, and respacing as data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.schedule import NoiseSchedule, cosine, kept_timesteps, linear, respace

lengths = st.integers(25, 400)


def test_linear_betas_are_the_published_ones() -> None:
    schedule = linear(4000)
    assert schedule.betas[0].item() == pytest.approx(2.5e-5, rel=1e-12)
    assert schedule.betas[-1].item() == pytest.approx(5e-3, rel=1e-12)
    np.testing.assert_allclose(linear(1000).betas.numpy(), np.linspace(1e-4, 0.02, 1000), rtol=1e-14)


def test_cosine_alphas_cumprod_follow_the_squared_cosine_up_to_the_clip() -> None:
    schedule = cosine(1000)
    f = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1].numpy(), np.array(f[1:-1]) / f[0], rtol=1e-9)
    assert schedule.betas[-1].item() == 0.999


@pytest.mark.parametrize("steps", [2, 19, 20])
def test_a_linear_chain_too_short_for_betas_below_one_says_how_long_it_must_be(steps: int) -> None:
    with pytest.raises(ValueError, match="at least 21 steps"):
        linear(steps)


@given(steps=lengths)
def test_the_tables_are_the_posterior_of_bayes_rule(steps: int) -> None:
    s = linear(steps)
    t = steps // 2
    alpha, beta, before = 1 - s.betas[t], s.betas[t], s.alphas_cumprod_prev[t]
    # q(x_{t-1} | x_t, x_0) is a product of N(x_t; sqrt(alpha) x_{t-1}, beta) and N(x_{t-1}; sqrt(before) x_0, 1-before)
    precision = alpha / beta + 1 / (1 - before)
    assert s.posterior_variance[t].item() == pytest.approx((1 / precision).item(), rel=1e-9)
    assert s.posterior_mean_coef1[t].item() == pytest.approx(
        (before.sqrt() / (1 - before) / precision).item(), rel=1e-9
    )
    assert s.posterior_mean_coef2[t].item() == pytest.approx((alpha.sqrt() / beta / precision).item(), rel=1e-9)


def test_the_first_posterior_variance_is_zero_and_its_clipped_logarithm_the_seconds() -> None:
    s = cosine(100)
    assert s.posterior_variance[0] == 0
    assert s.posterior_log_variance_clipped[0] == s.posterior_log_variance_clipped[1] == s.posterior_variance[1].log()
    assert s.fixed_large_log_variance[0] == s.posterior_variance[1].log()
    assert torch.equal(s.fixed_large_log_variance[1:], s.betas[1:].log())


@given(steps=lengths, make=st.sampled_from([linear, cosine]), data=st.data())
def test_respacing_keeps_alphas_cumprod_and_names_the_originals(
    steps: int, make: Callable[[int], NoiseSchedule], data: st.DataObject
) -> None:
    sections = data.draw(st.lists(st.integers(2, steps // 4), min_size=1, max_size=4))
    schedule = make(steps)
    for respacing in (sections, ",".join(map(str, sections)), f"ddim{data.draw(st.integers(2, 5))}"):
        spaced = respace(schedule, respacing)
        kept = spaced.timestep_map
        assert kept[0] == 0
        assert respacing[0] == "d" or (kept[-1] == steps - 1 and len(kept) == sum(sections))
        torch.testing.assert_close(spaced.alphas_cumprod, schedule.alphas_cumprod[kept], rtol=1e-12, atol=1e-15)
        assert torch.equal(spaced.model_t(torch.arange(len(kept))), schedule.model_t(kept))
        again = respace(spaced, "2")  # a chain like any other
        assert again.timestep_map.tolist() == [0, int(kept[-1])]
        torch.testing.assert_close(again.alphas_cumprod, schedule.alphas_cumprod[kept[[0, -1]]], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("steps", [100, 1000, 4000])
@pytest.mark.parametrize("make", [linear, cosine])
def test_respacing_to_every_step_changes_nothing(make: Callable[[int], NoiseSchedule], steps: int) -> None:
    schedule = make(steps)
    for spaced in (respace(schedule, ""), respace(schedule, str(steps)), respace(schedule, f"ddim{steps}")):
        for field in fields(NoiseSchedule):
            ours, theirs = getattr(spaced, field.name), getattr(schedule, field.name)
            # betas from alphas_cumprod: 1 minus a ratio near 1.
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
        assert torch.equal(spaced.model_t(torch.arange(steps)), schedule.model_t(torch.arange(steps)))


@pytest.mark.parametrize(
    ("steps", "counts"), [(4000, (25, 50, 100, 200, 250, 400, 1000)), (1000, (25, 50, 100, 250, 500))]
)
def test_the_papers_counts_are_evenly_spaced(steps: int, counts: tuple[int, ...]) -> None:
    for count in counts:
        assert kept_timesteps(steps, str(count)) == np.round(np.linspace(0, steps - 1, count)).astype(int).tolist()


# Stride 33.3 reaches 166.5, a tie that goes to the even 166, and after 15 additions a little more than its 499.5.
OF_1000 = [0, 33, 67, 100, 133, 166, 200, 233, 266, 300, 333, 366, 400, 433, 466, 500, 533, 566, 599, 633, 666, 699,
           733, 766, 799, 832, 866, 899, 932, 966, 999]  # fmt: skip
# Stride 133.3 reaches 666.5, again a tie, and after 15 additions a little less than its 1999.5.
OF_4000 = [0, 133, 267, 400, 533, 666, 800, 933, 1066, 1200, 1333, 1466, 1600, 1733, 1866, 1999, 2133, 2266, 2399, 2533,
           2666, 2799, 2933, 3066, 3199, 3333, 3466, 3599, 3732, 3866, 3999]  # fmt: skip


@pytest.mark.parametrize(("steps", "published"), [(1000, OF_1000), (4000, OF_4000)])
def test_ties_fall_as_in_the_published_sum_of_strides(steps: int, published: list[int]) -> None:
    assert kept_timesteps(steps, "31") == published


def test_sections_keep_their_first_and_last_step_and_earlier_ones_are_longer() -> None:
    kept = kept_timesteps(11, "2,3,1")  # sections of 4, 4 and 3 steps
    assert kept == [0, 3, 4, 6, 7, 8]  # the middle's stride 1.5 lands on 5.5, and half rounds to even
    assert kept_timesteps(1000, "90,60,60,20,20") == kept_timesteps(1000, [90, 60, 60, 20, 20])


def test_ddim_strides_from_zero_and_stops_short_of_the_end() -> None:
    assert kept_timesteps(1000, "ddim25") == list(range(0, 1000, 40))
    assert sum(_expressible(1000, count) for count in range(1, 1001)) == 62


def _expressible(steps: int, count: int) -> bool:
    return any(len(range(0, steps, stride)) == count for stride in range(1, steps))


@pytest.mark.parametrize(
    ("respacing", "complaint"),
    [
        ("ddim400", "no whole stride"),
        ("1001", "cannot keep 1001"),
        ("250,0,x", "write a count"),
        ("1", "at least 2"),
        ([], "at least one section"),
        ("250,0,0,0,0", "a section of 200 steps cannot keep 250"),
        ([-1, 3], "cannot keep -1"),
    ],
)
def test_a_respacing_that_cannot_be_is_refused(respacing: str | list[int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        respace(linear(1000), respacing)


@pytest.mark.parametrize("betas", [[0.1, float("nan")], [0.0, 0.1], [0.1, 1.0], [0.1]])
def test_betas_that_make_no_chain_are_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"strictly between 0 and 1|at least 2 steps"):
        NoiseSchedule.from_betas(torch.tensor(betas, dtype=torch.float64))


def test_the_model_is_told_a_thousandth_scale_only_when_rescaled() -> None:
    t = torch.tensor([0, 1, 3999])
    assert linear(4000).model_t(t).tolist() == [0.0, 0.25, 999.75]
    assert linear(4000, rescale_timesteps=False).model_t(t).tolist() == [0.0, 1.0, 3999.0]
