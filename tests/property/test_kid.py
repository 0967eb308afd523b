"""Is KID the kernel distance it is defined as, and does its error say how far off it may be?"""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics.kid import ROWS_AT_ONCE, kid, squared_mmd

SEEDS = st.integers(0, 2**32)


def brute_force(x, y):
    """The unbiased estimate, pair by pair."""

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(rows):
        return np.mean([kernel(rows[i], rows[j]) for i, j in permutations(range(len(rows)), 2)])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a, b in product(x, y)])


@given(seed=SEEDS, n=st.integers(2, 8), m=st.integers(2, 8), d=st.integers(1, 4))
def test_the_estimate_is_the_mean_over_pairs_of_different_images(seed, n, m, d):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 0.5
    assert squared_mmd(x, y) == pytest.approx(brute_force(x, y), rel=1e-9, abs=1e-9)


@given(seed=SEEDS, n=st.integers(3, 8), d=st.integers(1, 4))
def test_subsets_as_large_as_the_sets_leave_only_the_images_to_chance(seed, n, d):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d)) + 0.5
    value, error = kid(x, y, subsets=3, subset_size=n, seed=0)
    assert value == pytest.approx(brute_force(x, y), rel=1e-9, abs=1e-9)
    without_x = [brute_force(np.delete(x, i, axis=0), y) for i in range(n)]
    without_y = [brute_force(x, np.delete(y, i, axis=0)) for i in range(n)]
    jackknife = (n - 1) * (np.var(without_x) + np.var(without_y))
    assert error == pytest.approx(np.sqrt(jackknife), rel=1e-6, abs=1e-9)


def test_the_result_is_a_function_of_the_seed_and_touches_no_other_generator():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 4))
    before = np.random.get_state()[1].tobytes()
    assert kid(x, y, subsets=5, subset_size=10, seed=1) == kid(x, y, subsets=5, subset_size=10, seed=1)
    assert kid(x, y, subsets=5, subset_size=10, seed=1) != kid(x, y, subsets=5, subset_size=10, seed=2)
    assert np.random.get_state()[1].tobytes() == before


def test_sets_larger_than_a_block_of_rows_are_summed_whole():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2 * ROWS_AT_ONCE + 52, 2)), rng.standard_normal((7, 2))
    own_x, own_y, across = (x @ x.T / 2 + 1) ** 3, (y @ y.T / 2 + 1) ** 3, (x @ y.T / 2 + 1) ** 3
    within = [(own.sum() - np.trace(own)) / (len(own) * (len(own) - 1)) for own in (own_x, own_y)]
    assert squared_mmd(x, y) == pytest.approx(sum(within) - 2 * across.mean(), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("drawn", [{"subsets": 20, "subset_size": 50}, {"subsets": 2, "subset_size": 5}])
def test_the_error_is_the_spread_over_fresh_draws_of_images_and_subsets_and_not_optimistic(shift, drawn):
    rng = np.random.default_rng(0)
    runs = [
        kid(rng.standard_normal((60, 3)), rng.standard_normal((80, 3)) + shift, **drawn, seed=seed)
        for seed in range(400)
    ]
    spread = np.std([run.value for run in runs], ddof=1)
    reported = np.sqrt(np.mean([run.standard_error**2 for run in runs]))
    # 400 runs know the spread to 5%. The jackknife overstates: up to sqrt(2) where the true distance is zero.
    assert 0.9 * spread < reported < 1.6 * spread


def test_the_mean_over_fresh_draws_from_one_distribution_is_zero():
    rng = np.random.default_rng(1)
    values = [
        kid(rng.standard_normal((20, 3)), rng.standard_normal((25, 3)), subsets=4, subset_size=15, seed=seed).value
        for seed in range(500)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subsets": 1}, "subsets=1"),
        ({"subset_size": 11}, "subset_size=11: must be at least 2 and at most 10"),
        ({"subset_size": 1}, "subset_size=1"),
        ({"second": np.zeros((10, 5))}, r"\(12, 4\) and \(10, 5\)"),
        ({"second": np.zeros((2, 4)), "subset_size": 2}, "at least 3"),
    ],
)
def test_a_kernel_distance_without_a_meaning_is_refused(changes, message):
    arguments = {"first": np.zeros((12, 4)), "second": np.zeros((10, 4)), "subsets": 3, "subset_size": 5, "seed": 0}
    arguments.update(changes)
    with pytest.raises(ValueError, match=message):
        kid(arguments.pop("first"), arguments.pop("second"), **arguments)
