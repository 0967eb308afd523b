"""Do other people's evaluators give the same numbers of the same features?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.metrics.frechet import frechet_distance
from diffusion.metrics.inception import declare_missing_torchvision_operators
from diffusion.metrics.inception_score import inception_score
from diffusion.metrics.kid import kid
from diffusion.metrics.precision_recall import precision_recall
from diffusion.metrics.stats import GaussianStats

N, D = 1500, 64


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Of samples and reference, float32, positive and correlated as pooled features are."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((D, D)) * np.exp(-np.arange(D) / 16)
    samples, reference = (np.abs(rng.standard_normal((N, D)) @ mixing + shift) for shift in (0.1, 0.0))
    return samples.astype(np.float32), reference.astype(np.float32)


@pytest.fixture(scope="module")
def fidelity() -> None:
    """torch-fidelity and clean-fid can be imported."""
    declare_missing_torchvision_operators()


def test_clean_fid_has_the_same_frechet_distance(features, fidelity):
    from cleanfid.fid import frechet_distance as clean_fid_frechet_distance

    first, second = map(GaussianStats.of, features)
    theirs = clean_fid_frechet_distance(first.mean, first.cov, second.mean, second.cov)
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-8)


def test_torch_fidelity_has_the_same_frechet_distance(features, fidelity):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    theirs = fid_statistics_to_metric(
        *(fid_features_to_statistics(torch.from_numpy(x).double()) for x in features), False
    )
    ours = frechet_distance(*map(GaussianStats.of, features))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_torch_fidelity_has_the_same_kid_of_all_images(features, fidelity):
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = (torch.from_numpy(x).double() for x in features)
    theirs = kid_features_to_metric(first, second, kid_subsets=2, kid_subset_size=N, verbose=False)
    ours = kid(*features, subsets=2, subset_size=N, seed=0)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_torch_fidelity_has_the_same_inception_score(features, fidelity):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(features[0])
    theirs = isc_features_to_metric(logits, splits=3, shuffle=False)["inception_score_mean"]
    probabilities = logits.double().softmax(dim=1).numpy()
    assert inception_score(probabilities, split_size=N // 3) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_torch_fidelity_has_the_same_precision_and_recall(features, fidelity, k):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    theirs = calculate_precision_recall_full(*(torch.from_numpy(x).double() for x in features), neighborhood=k)
    ours = precision_recall(*features, k=k)
    assert (ours.precision.value, ours.recall.value) == pytest.approx(theirs, abs=1e-6)  # theirs is a float32 mean
