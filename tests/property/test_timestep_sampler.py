"""Drawing t: unbiased whatever the density, uniform until it is warm, the same after a resume."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.timestep_sampler import (
    LossSecondMomentConfig,
    LossSecondMomentSampler,
    UniformConfig,
    UniformSampler,
    build_timestep_sampler,
)

T = 23
EVEN = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def warm(pools: int | None, *, seed: int = 0, history: int = 2) -> LossSecondMomentSampler:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(pools=pools, history_per_term=history), T)
    losses = torch.rand(T * history, generator=torch.Generator().manual_seed(seed)) * 10
    sampler.update(torch.arange(T).repeat(history), losses)
    return sampler


@given(pools=st.sampled_from([None, 1, 2, 5, 23, 40]), seed=st.integers(0, 1000))
def test_weighted_draws_estimate_the_uniform_mean_without_bias(pools: int | None, seed: int) -> None:
    sampler = warm(pools, seed=seed)
    values = torch.rand(T, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    t, weights = sampler.sample(EVEN)  # evenly spread uniforms integrate over the density
    # The quantile grid misplaces at most T boundaries by 1/200000, each weighted at most 1/(T p) <= 1/uniform_prob.
    assert (values[t] * weights).mean().item() == pytest.approx(values.mean().item(), abs=2e-3)
    p = sampler.probabilities()
    assert p.sum().item() == pytest.approx(1.0)
    assert p.min().item() >= 1e-3 / T * (1 - 1e-9)


def test_p_is_the_root_of_the_mean_square_of_the_last_losses() -> None:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(history_per_term=2), 3)
    sampler.update(torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([99.0, 3.0, 4.0, 1.0, 1.0, 0.0, 2.0]))
    w = torch.tensor([12.5, 1.0, 2.0], dtype=torch.float64).sqrt()  # 99 has been forgotten
    torch.testing.assert_close(sampler.probabilities(), 0.999 * w / w.sum() + 0.001 / 3)


@given(
    pools=st.sampled_from([None, 1, 6, 23]), size=st.integers(1, 4),
    batches=st.lists(st.lists(st.integers(0, T - 1), max_size=40), min_size=1, max_size=4),
)  # fmt: skip
def test_a_batch_teaches_what_its_losses_would_one_after_the_other(
    pools: int | None, size: int, batches: list[list[int]]
) -> None:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(pools=pools, history_per_term=size), T)
    pool_of = sampler._pool_of.tolist()
    history, seen = torch.zeros(max(pool_of) + 1, size, dtype=torch.float64), [0] * (max(pool_of) + 1)
    for number, batch in enumerate(batches):
        losses = torch.arange(len(batch)) + 100.0 * number
        sampler.update(torch.tensor(batch, dtype=torch.int64), losses)
        for t, loss in zip(batch, losses.tolist(), strict=True):
            pool = pool_of[t]
            history[pool, seen[pool] % size] = loss
            seen[pool] += 1
    assert torch.equal(sampler.state()["history"], history)
    assert sampler.state()["seen"].tolist() == seen


def test_draws_are_uniform_until_every_history_is_full() -> None:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(history_per_term=2), T)
    sampler.update(torch.arange(T - 1).repeat(3), torch.full((3 * (T - 1),), 5.0))
    sampler.update(torch.tensor([T - 1]), torch.tensor([5.0]))
    assert not sampler.is_warm
    torch.testing.assert_close(sampler.probabilities(), torch.full((T,), 1 / T, dtype=torch.float64))
    sampler.update(torch.tensor([T - 1]), torch.tensor([7.0]))
    assert sampler.is_warm


def test_pools_are_of_one_t_at_the_ends_and_of_more_between_and_share_what_they_learn() -> None:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(history_per_term=2, pools=6), T)
    # 12 steps from the start, in pools that begin at 13^(k/3) - 1, rounded: 0, 1, 5; 11 from the end: 0, 1, 4.
    sizes = [1, 4, 7, 7, 3, 1]
    cold = sampler.probabilities()
    # As likely as each other until they are full.
    expected = torch.cat([torch.full((size,), 1 / 6 / size, dtype=torch.float64) for size in sizes])
    torch.testing.assert_close(cold, expected)
    _, weights = sampler.sample(EVEN)
    assert weights.double().mean().item() == pytest.approx(1.0, abs=1e-3)
    losses = torch.arange(T).float()
    sampler.update(torch.cat([torch.arange(T), torch.tensor([0, T - 1])]), torch.cat([losses, losses[[0, T - 1]]]))
    assert sampler.is_warm
    p = sampler.probabilities().tolist()
    assert [len(list(same)) for _, same in groupby(p)] == sizes


@given(steps=st.integers(2, 300), pools=st.integers(1, 400))
def test_pools_part_the_chain_in_order_into_no_more_than_were_asked_for(steps: int, pools: int) -> None:
    p = LossSecondMomentSampler(LossSecondMomentConfig(pools=pools), steps).probabilities()
    assert len(p) == steps
    assert p.sum().item() == pytest.approx(1.0)
    assert p.min() > 0
    kept = LossSecondMomentSampler(LossSecondMomentConfig(pools=pools), steps).state()["seen"]
    assert 1 <= len(kept) <= pools


@given(seed=st.integers(0, 1000))
def test_importance_sampling_makes_the_loss_vary_less(seed: int) -> None:
    sampler = LossSecondMomentSampler(LossSecondMomentConfig(history_per_term=1), T)
    losses = torch.logspace(3, -3, T, dtype=torch.float64)
    sampler.update(torch.arange(T), losses)
    t, weights = sampler.sample(EVEN)
    assert (losses[t] * weights).var() < 0.01 * losses.var()


def test_a_sampler_that_goes_on_from_its_state_draws_the_same() -> None:
    first, second = warm(None), LossSecondMomentSampler(LossSecondMomentConfig(history_per_term=2), T)
    second.load(first.state())
    for sampler in (first, second):
        sampler.update(torch.tensor([1, 1, 4]), torch.tensor([8.0, 2.0, 5.0]))
    assert torch.equal(first.probabilities(), second.probabilities())


def test_a_state_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="history"):
        warm(None).load(warm(5).state())
    with pytest.raises(ValueError, match="no state"):
        UniformSampler(T).load(warm(None).state())


def test_uniform_draws_are_uniform_with_weight_one() -> None:
    t, weights = build_timestep_sampler(UniformConfig(), T).sample(EVEN)
    assert stats.chisquare(torch.bincount(t, minlength=T).numpy()).pvalue > 0.99
    assert (weights == 1).all()
