"""Is the Inception Score the published one, and does its interval hold what as many other images would give?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.metrics.inception_score import inception_score, inception_score_interval

SEEDS = st.integers(0, 2**32)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@given(seed=SEEDS, n=st.integers(1, 50), classes=st.integers(2, 8), split=st.integers(1, 60))
def test_it_is_the_mean_over_splits_of_exp_of_the_mean_kl(seed, n, classes, split):
    p = softmax(2 * np.random.default_rng(seed).standard_normal((n, classes)))
    scores = []
    for first in range(0, n, split):
        part = p[first : first + split]
        scores.append(np.exp(np.mean((part * (np.log(part) - np.log(part.mean(axis=0)))).sum(axis=1))))
    assert inception_score(p, split_size=split) == pytest.approx(np.mean(scores), rel=1e-12)


@given(classes=st.integers(2, 20), each=st.integers(1, 5))
def test_sure_and_different_images_score_as_many_as_there_are_classes(classes, each):
    sure = np.tile(np.eye(classes), (each, 1))  # with zeros, whose logarithm the published code would multiply
    assert inception_score(sure) == pytest.approx(classes, rel=1e-12)
    assert inception_score(np.full((each, classes), 1 / classes)) == pytest.approx(1, rel=1e-12)
    assert inception_score(np.eye(classes)[[0] * each]) == pytest.approx(1, rel=1e-12)


def test_nine_of_ten_intervals_hold_the_mean_score_of_many_sets():
    rng = np.random.default_rng(0)
    sets = [softmax(3 * rng.standard_normal((300, 10))) for _ in range(200)]
    mean = np.mean([inception_score(p) for p in sets])
    intervals = [inception_score_interval(p, replicates=100, seed=number) for number, p in enumerate(sets)]
    held = sum(found.low <= mean <= found.high for found in intervals)
    assert held >= 180  # of 200; 95 % of them would be 190, +-3 standard deviations 9
    assert intervals[0].value == inception_score(sets[0])


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [(np.zeros((0, 3)), r"shape \(0, 3\)"), (np.array([[2.0, -1.0]]), "negative"), (np.array([[3.0, 4.0]]), "softmax"),
     (np.array([[np.nan, 1.0]]), "not finite")],
)  # fmt: skip
def test_what_are_no_probabilities_is_refused(probabilities, message):
    with pytest.raises(ValueError, match=message):
        inception_score(probabilities)
