"""Is the Frechet distance right: where it has a closed form, where covariances are singular, and beside clean-fid's?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics.frechet import frechet_distance, frechet_distance_of_features
from diffusion.metrics.inception import declare_missing_torchvision_operators
from diffusion.metrics.stats import GaussianStats

SEEDS = st.integers(0, 2**32)
DIMENSIONS = st.integers(1, 12)


def rotation(rng, d):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def gaussian(mean, cov, count=10):
    return GaussianStats(count, mean, cov * (count - 1))


@given(seed=SEEDS, d=DIMENSIONS, zeros=st.integers(0, 12))
def test_gaussians_with_common_axes_have_the_closed_form_singular_or_not(seed, d, zeros):
    rng = np.random.default_rng(seed)
    axes, means = rotation(rng, d), rng.standard_normal((2, d))
    spreads = rng.uniform(0.1, 3, (2, d))
    spreads[0, :zeros] = 0
    spreads[1, zeros // 2 :][:zeros] = 0
    stats = [gaussian(mean, axes * spread**2 @ axes.T) for mean, spread in zip(means, spreads, strict=True)]
    expected = np.square(means[0] - means[1]).sum() + np.square(spreads[0] - spreads[1]).sum()
    # An eigenvalue lost in rounding (d * 2e-16 of the largest, 9) costs at most twice its square root times 3.
    assert frechet_distance(*stats) == pytest.approx(expected, abs=1e-6)


@given(seed=SEEDS, n=st.integers(2, 40), m=st.integers(2, 40), d=DIMENSIONS)
def test_the_distance_from_moments_is_the_distance_from_features(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d)) @ rng.standard_normal((d, d)) + 1
    from_moments = frechet_distance(GaussianStats.of(x), GaussianStats.of(y))
    assert frechet_distance_of_features(x, y) == pytest.approx(from_moments, rel=1e-6, abs=1e-6)


@given(seed=SEEDS, n=st.integers(2, 30), d=DIMENSIONS)
def test_a_set_is_at_no_distance_from_itself_and_distances_are_symmetric(seed, n, d):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n + 3, d))
    assert frechet_distance_of_features(x, x) == pytest.approx(0, abs=1e-12 * d * n)
    assert frechet_distance_of_features(x, y) == pytest.approx(frechet_distance_of_features(y, x), rel=1e-10)


@given(seed=SEEDS, d=DIMENSIONS)
def test_only_the_mean_counts_where_the_shapes_are_equal(seed, d):
    rng = np.random.default_rng(seed)
    x, shift = rng.standard_normal((20, d)), rng.standard_normal(d)
    assert frechet_distance_of_features(x, x + shift) == pytest.approx(shift @ shift, rel=1e-9)


def test_clean_fid_gives_the_same_number_where_covariances_are_well_conditioned():
    declare_missing_torchvision_operators()
    from cleanfid.fid import frechet_distance as clean_fid_frechet_distance

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4000, 64)), rng.standard_normal((3000, 64)) * rng.uniform(0.5, 2, 64) + 0.3
    first, second = GaussianStats.of(x), GaussianStats.of(y)
    theirs = clean_fid_frechet_distance(first.mean, first.cov, second.mean, second.cov)
    # Conditioned better than 100, in float64: ten digits are safe in either algorithm.
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-10)
    assert frechet_distance_of_features(x, y) == pytest.approx(theirs, rel=1e-10)


def test_fewer_images_than_dimensions_lose_no_digits():
    rng = np.random.default_rng(1)
    d = 200
    # The two sets live in subspaces at right angles: the covariances' product is zero, the distance the sum of traces.
    x = np.concatenate([rng.standard_normal((40, d // 2)), np.zeros((40, d // 2))], axis=1)
    y = np.concatenate([np.zeros((30, d // 2)), rng.standard_normal((30, d // 2))], axis=1)
    axes = rotation(rng, d)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    assert frechet_distance_of_features(x @ axes, y @ axes) == pytest.approx(expected, rel=1e-12)
    # Through covariances, rounding of products near zero enters by its square root.
    assert frechet_distance(GaussianStats.of(x @ axes), GaussianStats.of(y @ axes)) == pytest.approx(expected, rel=1e-6)


def test_features_of_two_networks_are_not_compared():
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance_of_features(np.zeros((5, 3)), np.zeros((5, 4)))
