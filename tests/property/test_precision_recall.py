"""Are precision and recall what they are defined as, by whatever blocks, and do their intervals hold?"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics import precision_recall as module
from diffusion.metrics.intervals import dealt
from diffusion.metrics.precision_recall import precision_recall

SEEDS = st.integers(0, 2**32)


def brute_force(samples, reference, k):
    """Point by point, from the definition."""

    def covered(points, centres):
        distance = np.linalg.norm(centres[:, None] - centres, axis=2)
        radii = np.sort(distance, axis=1)[:, k]
        return np.mean([(np.linalg.norm(centres - point, axis=1) <= radii).any() for point in points])

    return covered(samples, reference), covered(reference, samples)


@given(seed=SEEDS, n=st.integers(12, 40), m=st.integers(7, 40), d=st.integers(1, 6), k=st.integers(1, 5))
def test_both_are_the_shares_they_are_defined_as(seed, n, m, d, k):
    rng = np.random.default_rng(seed)
    samples, reference = rng.standard_normal((n, d)) + 0.7, rng.standard_normal((m, d))
    found = precision_recall(samples, reference, k=k)
    assert (found.precision.value, found.recall.value) == pytest.approx(brute_force(samples, reference, k), abs=1e-12)


@given(seed=SEEDS, n=st.integers(12, 60), m=st.integers(7, 60), rows=st.integers(1, 70), columns=st.integers(1, 70))
def test_blocks_change_nothing(seed, n, m, rows, columns):
    rng = np.random.default_rng(seed)
    samples, reference = rng.standard_normal((n, 3)) + 0.5, rng.standard_normal((m, 3))
    whole = precision_recall(samples, reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT_BLOCK", (rows, columns))
        assert precision_recall(samples, reference) == whole


@given(seed=SEEDS, n=st.integers(12, 60))
def test_what_is_left_when_a_group_is_taken_away_is_what_the_rest_gives_by_itself(seed, n):
    rng = np.random.default_rng(seed)
    samples, reference = rng.standard_normal((n, 2)), rng.standard_normal((30, 2))
    own = dealt(n, min(module.GROUPS, n // 4))
    # All close neighbours of these points are in their own group: their radius is then looked for among all others.
    samples[own == 0] = samples[0] + 1e-3 * rng.standard_normal(((own == 0).sum(), 2))
    ours, theirs, way = torch.from_numpy(samples), torch.from_numpy(reference), module._exact(reference)
    radii = module._radii_without(ours, 3, torch.from_numpy(own), way)
    _, covered = module._inside(theirs, ours, module._radii(theirs, 3, way), radii, way)
    for group in range(own.max() + 1):
        rest = samples[own != group]
        assert covered[1 + group].double().mean() == pytest.approx(brute_force(rest, reference, 3)[1], abs=1e-12)


def test_a_set_covers_itself_and_nothing_that_is_far():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8))
    same, far = precision_recall(x, x), precision_recall(x, x + 1000)
    assert (same.precision.value, same.recall.value) == (1, 1)
    assert (far.precision.value, far.recall.value) == (0, 0)
    assert 0 == far.precision.low < far.precision.high < 0.01


def in_float16(samples, reference, k):
    """The published arithmetic, in numpy's own float16: one block, of reference by samples, says both."""

    def distances(u, v):
        u, v = u.astype(np.float16), v.astype(np.float16)
        norms = [np.square(rows).astype(np.float32).sum(axis=1).astype(np.float16) for rows in (u, v)]
        product = (u.astype(np.float32) @ v.astype(np.float32).T).astype(np.float16)
        return np.maximum(norms[0][:, None] - np.float16(2) * product + norms[1], np.float16(0))

    radii_of_reference, radii_of_samples = (np.sort(distances(x, x), axis=1)[:, k] for x in (reference, samples))
    block = distances(reference, samples)
    precision = (block <= radii_of_reference[:, None]).any(axis=0).mean()
    return precision, (block <= radii_of_samples).any(axis=1).mean()


def test_float16_moves_them_as_published_and_not_where_it_would_overflow():
    rng = np.random.default_rng(0)
    samples, reference = rng.standard_normal((500, 64)) * 1.05, rng.standard_normal((500, 64))
    exact = precision_recall(samples, reference)
    published = precision_recall(samples, reference, distances="published")
    assert published.recall.value != exact.recall.value
    assert (published.precision.value, published.recall.value) == in_float16(samples, reference, 3)
    large = precision_recall(100 * samples, 100 * reference, distances="published")
    assert large.precision.value == exact.precision.value
    assert large.recall.value == exact.recall.value


@pytest.mark.parametrize(
    ("samples", "reference", "k", "message"),
    [((20, 3), (20, 4), 3, "needs .n, d. and .m, d."), ((20, 3), (3, 3), 3, "k=3 with 20 samples and 3"),
     ((7, 3), (20, 3), 3, "at least 8 samples"), ((20, 3), (20, 3), 0, "k=0")],
)  # fmt: skip
def test_sets_that_are_too_small_or_do_not_fit_are_refused(samples, reference, k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(np.zeros(samples), np.zeros(reference), k=k)
