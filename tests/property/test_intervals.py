"""Do the intervals hold what they say, and is the distance of infinitely many samples the true one?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion.metrics.frechet import Gaussian, frechet_distance, frechet_distance_of_features
from diffusion.metrics.frechet_uncertainty import frechet_estimates
from diffusion.metrics.intervals import dealt, jackknife, of_replicates, of_share, of_standard_error
from diffusion.metrics.stats import GaussianStats

DRAWS = 200


@given(seed=st.integers(0, 2**32), n=st.integers(2, 40))
def test_the_jackknife_of_a_mean_is_its_standard_error(seed, n):
    values = np.random.default_rng(seed).standard_normal(n)
    left_out = (values.sum() - values) / (n - 1)
    assert jackknife(left_out) == pytest.approx(values.std(ddof=1) / np.sqrt(n), rel=1e-9)


@given(count=st.integers(0, 50), total=st.integers(50, 100))
def test_a_share_has_the_interval_of_wilson(count, total):
    found = of_share(count, total)
    expected = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert found[2:] == pytest.approx((max(0, expected.low), min(1, expected.high)), abs=1e-12)


def test_an_interval_lies_around_the_number_although_replicates_lie_beside_it():
    replicates = 5 + np.random.default_rng(0).standard_normal(100_000)
    assert of_replicates(2.0, replicates) == pytest.approx((2, 1, 2 - 1.96, 2 + 1.96), abs=0.03)
    assert of_standard_error(2.0, 1.0, degrees_of_freedom=1e9) == pytest.approx((2, 1, 2 - 1.96, 2 + 1.96), abs=0.001)


def test_the_frechet_distance_of_infinitely_many_samples_is_found_from_few():
    rng = np.random.default_rng(1)
    d, n = 32, 1000
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0] * np.exp(-np.arange(d) / 8)
    other = axes + 0.05 * rng.standard_normal((d, d)) / np.sqrt(d)
    shift = 0.1 * rng.standard_normal(d) / np.sqrt(d)
    reference = GaussianStats(10**6, np.zeros(d), other @ other.T * (10**6 - 1))
    true = frechet_distance(GaussianStats(10**6, shift, axes @ axes.T * (10**6 - 1)), reference)
    known = Gaussian.of_stats(reference)
    found = [frechet_estimates(rng.standard_normal((n, d)) @ axes.T + shift, known) for _ in range(DRAWS)]
    of_n = np.mean([one.distance.value for one in found])
    assert of_n > true + 3 * np.std([one.distance.value for one in found]) / np.sqrt(DRAWS)  # biased, as FID is
    # 95 % of 200 are 190, +-3 standard deviations 9.
    assert sum(one.infinity.low <= true <= one.infinity.high for one in found) >= 181
    assert sum(one.distance.low <= of_n <= one.distance.high for one in found) >= 181
    assert np.mean([one.infinity.value for one in found]) == pytest.approx(true, abs=0.2 * (of_n - true))


@given(seed=st.integers(0, 2**32), n=st.integers(8, 60), d=st.integers(1, 40), groups=st.integers(2, 4))
def test_what_is_left_of_few_images_or_many_is_what_the_rest_gives_by_itself(seed, n, d, groups):
    rng = np.random.default_rng(seed)
    samples, reference = rng.standard_normal((n, d)), rng.standard_normal((20, d)) + 1
    found = frechet_estimates(samples, Gaussian.of_features(reference), groups=groups)
    rests = [samples[dealt(n, groups) != group] for group in range(groups)]
    left = np.array([frechet_distance_of_features(rest, reference) for rest in rests])
    value = frechet_distance_of_features(samples, reference)
    assert found.distance.value == pytest.approx(value, rel=1e-6)
    assert found.distance.standard_error == pytest.approx(jackknife(left), rel=1e-4, abs=1e-6)
    if n < 2 * d:
        assert found.infinity is None
    else:
        assert found.infinity.value == pytest.approx(groups * value - (groups - 1) * left.mean(), rel=1e-4, abs=1e-4)


def test_samples_that_stand_class_by_class_have_the_intervals_of_shuffled_ones():
    rng = np.random.default_rng(0)
    classes, n = 10, 2000
    centres, reference = 3 * rng.standard_normal((classes, 8)), rng.standard_normal((500, 8))
    in_turn = centres[np.arange(n) % classes] + rng.standard_normal((n, 8))
    known = Gaussian.of_features(centres[np.arange(500) % classes] + reference)
    ordered, shuffled = (frechet_estimates(x, known).distance for x in (in_turn, rng.permutation(in_turn)))
    assert ordered.value == pytest.approx(shuffled.value, rel=1e-9)
    # 19 degrees of freedom: a standard error is itself known to a fifth. Groups of one class each have tenfold.
    assert ordered.standard_error == pytest.approx(shuffled.standard_error, rel=0.8)


@given(count=st.integers(1, 200), groups=st.integers(1, 20))
def test_groups_are_as_even_as_they_can_be(count, groups):
    sizes = np.bincount(dealt(count, groups), minlength=groups)
    assert sizes.max() - sizes.min() <= 1


def test_more_groups_than_images_are_refused():
    with pytest.raises(ValueError, match="groups=7: at least 2, and at most half the 6 images"):
        frechet_estimates(np.zeros((6, 2)), Gaussian.of_features(np.eye(2)), groups=7)
