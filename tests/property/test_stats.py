"""Are streamed moments those of all features at once?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics.stats import GaussianStats

MANY_BLOCKS = st.lists(st.integers(1, 30), min_size=2, max_size=6)


def features(sizes, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((size, 5)) * [1, 10, 0.1, 1, 3] + offset for size in sizes]


@given(sizes=MANY_BLOCKS, seed=st.integers(0, 2**32), data=st.data())
def test_blocks_merged_in_any_order_give_the_moments_of_all_features(sizes, seed, data):
    blocks = features(sizes, seed)
    parts = data.draw(st.permutations([GaussianStats.of(block) for block in blocks]))
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [parts[at].merge(parts[at + 1])]
    together = np.concatenate(blocks)
    assert parts[0].count == len(together)
    np.testing.assert_allclose(parts[0].mean, together.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(parts[0].cov, np.cov(together, rowvar=False), rtol=0, atol=1e-10)


def test_a_large_mean_does_not_swallow_a_small_variance():
    blocks = features([50, 70], seed=0, offset=1e6)
    merged = GaussianStats.of(blocks[0]).merge(GaussianStats.of(blocks[1]))
    # Features near 1e6 are themselves rounded to 1e-10, of spreads from 0.1 to 10.
    np.testing.assert_allclose(merged.cov, np.cov(np.concatenate(blocks), rowvar=False), rtol=1e-7, atol=1e-8)


def test_float32_features_are_summed_in_float64():
    wide = np.random.default_rng(0).standard_normal((10_000, 2)).astype(np.float32) + np.float32(1000)
    exact = GaussianStats.of(wide.astype(np.float64))
    assert np.array_equal(GaussianStats.of(wide).cov, exact.cov)


def test_moments_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        _ = GaussianStats.of(np.zeros((1, 3))).cov
    with pytest.raises(ValueError, match="at least one row"):
        GaussianStats.of(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="3-dimensional features with 4-dimensional"):
        GaussianStats.of(np.zeros((2, 3))).merge(GaussianStats.of(np.zeros((2, 4))))


@given(data=st.data(), seed=st.integers(0, 2**32), d=st.integers(1, 4))
def test_what_is_taken_away_again_leaves_the_rest(data, seed, d):
    rng = np.random.default_rng(seed)
    rest, part = (rng.standard_normal((data.draw(st.integers(1, 20)), d)) for _ in range(2))
    whole = GaussianStats.of(np.concatenate([rest, part]))
    left, expected = whole.without(GaussianStats.of(part)), GaussianStats.of(rest)
    assert left.count == expected.count
    assert left.mean == pytest.approx(expected.mean, abs=1e-12)
    assert left.scatter == pytest.approx(expected.scatter, abs=1e-11)


def test_more_than_there_is_cannot_be_taken_away():
    with pytest.raises(ValueError, match="5 of 5 feature vectors"):
        GaussianStats.of(np.zeros((5, 2))).without(GaussianStats.of(np.zeros((5, 2))))
