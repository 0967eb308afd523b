"""Keyed randomness: a function of its keys alone, and as random as it should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.randomness import SAMPLE_NOISE, TRAIN_NOISE, normal, random_uint32, uniform

seeds = st.integers(0, 2**64 - 1)
counters = st.integers(0, 2**32 - 1)


@given(seed=seeds, keys=st.lists(st.tuples(counters, counters), min_size=2, max_size=9))
def test_a_draw_does_not_depend_on_the_batch_it_is_drawn_in(seed: int, keys: list[tuple[int, int]]) -> None:
    def draw(step: int | torch.Tensor, index: list[int]) -> torch.Tensor:
        return normal(seed=seed, stream=TRAIN_NOISE, step=step, index=torch.tensor(index), shape=(2, 3))

    steps, indices = map(list, zip(*keys, strict=True))
    alone = [draw(step, [index]) for step, index in keys]
    assert torch.equal(draw(torch.tensor(steps), indices), torch.cat(alone))
    assert torch.equal(draw(steps[0], indices), draw(torch.full((len(keys),), steps[0]), indices))


@given(seed=seeds, step=counters, index=counters)
def test_every_key_changes_every_draw(seed: int, step: int, index: int) -> None:
    def draw(seed: int, stream: int, step: int, index: int) -> torch.Tensor:
        return random_uint32(seed=seed, stream=stream, step=step, index=torch.tensor([index]), count=8)

    here = draw(seed, TRAIN_NOISE, step, index)
    others = [
        draw(seed ^ 1, TRAIN_NOISE, step, index),
        draw(seed ^ (1 << 63), TRAIN_NOISE, step, index),
        draw(seed, SAMPLE_NOISE, step, index),
        draw(seed, TRAIN_NOISE, step ^ 1, index),
        draw(seed, TRAIN_NOISE, step, index ^ 1),
    ]
    assert all((here != other).any() for other in others)


def test_normals_are_normal_and_independent() -> None:
    values = normal(seed=3, stream=TRAIN_NOISE, step=0, index=torch.arange(1000), shape=(100,)).double()
    assert stats.kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
    correlations = torch.corrcoef(values.T) - torch.eye(100)
    # 4950 correlations of 1000 values each: standard deviation 0.032, the largest of them near 4 of those.
    assert correlations.abs().max() < 6 * 0.032


def test_uniforms_are_uniform_below_one() -> None:
    values = uniform(seed=3, stream=TRAIN_NOISE, step=0, index=torch.arange(20_000), count=2).flatten()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 2**64), ("step", 2**32), ("stream", -1)])
def test_a_key_that_does_not_fit_is_refused(name: str, value: int) -> None:
    keys = {"seed": 0, "stream": 0, "step": 0, name: value}
    with pytest.raises(ValueError, match=name):
        random_uint32(**keys, index=torch.arange(2), count=1)
