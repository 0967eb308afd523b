"""Power laws come out of points drawn on them, intervals hold what they should, and points of no law are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.power_law import PowerLaw, fit, fit_with_intervals, without_largest

COMPUTE = 2.3e19 * np.array([0.25, 0.56, 1.0, 2.25])  # Improved DDPM's four widths, about
FID = PowerLaw(exponent=0.22, log_scale=-np.log(2.5e-25), offset=4.00)  # figure 10
NLL = PowerLaw(exponent=0.17, log_scale=-np.log(3.0e-15), offset=3.40)


@pytest.mark.parametrize("law", [FID, NLL])
@pytest.mark.parametrize("relative", [False, True])
def test_the_papers_constants_come_out_of_points_on_its_curves(law: PowerLaw, relative: bool) -> None:
    compute = np.concatenate([COMPUTE, COMPUTE / 30])
    found = fit(compute, law.at(compute), relative=relative)
    assert found.exponent == pytest.approx(law.exponent, rel=1e-4)
    assert found.log_scale == pytest.approx(law.log_scale, rel=1e-4)
    assert found.offset == pytest.approx(law.offset, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(0.05, 1.5), scale=st.floats(-20, 20), offset=st.floats(0, 5), with_offset=st.booleans())
def test_any_law_comes_out_of_points_on_it(exponent: float, scale: float, offset: float, with_offset: bool) -> None:
    law = PowerLaw(exponent, scale, offset if with_offset else 0.0)
    compute = np.exp(scale) * np.geomspace(0.05, 50, 9)
    found = fit(compute, law.at(compute), with_offset=with_offset)
    beyond = np.exp(scale) * np.geomspace(0.02, 200, 5)
    assert found.at(beyond) == pytest.approx(law.at(beyond), rel=1e-3)
    assert with_offset or found.offset == 0.0


def test_one_run_gone_wrong_moves_the_law_little() -> None:
    compute = np.geomspace(1, 1e4, 12)
    law = PowerLaw(0.3, 0.0, 1.0)
    values = law.at(compute) + 0.002 * np.random.default_rng(0).standard_normal(12)
    values[5] += 1.0
    assert fit(compute, values).exponent == pytest.approx(0.3, abs=0.1)


def test_intervals_hold_the_law_and_narrow_with_more_seeds() -> None:
    law = PowerLaw(0.3, 0.0, 1.0)
    widths = []
    for seeds in (2, 16):
        compute = np.repeat(np.geomspace(1, 1e3, 8), seeds)
        noise = np.random.default_rng(3).standard_normal(len(compute))
        sizes = [str(size) for size in compute]
        found = fit_with_intervals(compute, law.at(compute) + 0.01 * noise, sizes, seed=0, replicates=100)
        for name in ("exponent", "log_scale", "offset"):
            interval = found.interval(name)
            assert interval.low < getattr(law, name) < interval.high
        predicted = found.prediction(1e4)
        assert predicted.low < law.at(1e4) < predicted.high
        widths.append(predicted.high - predicted.low)
    assert widths[1] < 0.6 * widths[0]


def test_what_sizes_deviate_by_is_not_taken_away_by_seeds() -> None:
    law = PowerLaw(0.3, 0.0, 1.0)
    compute = np.repeat(np.geomspace(1, 1e3, 8), 50)
    of_sizes = np.repeat(np.random.default_rng(1).standard_normal(8), 50)
    values = law.at(compute) + 0.05 * of_sizes + 0.001 * np.random.default_rng(2).standard_normal(400)
    together = fit_with_intervals(compute, values, [str(size) for size in compute], seed=0, replicates=100)
    apart = fit_with_intervals(compute, values, [str(number) for number in range(400)], seed=0, replicates=100)
    widths = [found.interval("offset").high - found.interval("offset").low for found in (together, apart)]
    assert widths[0] > 3 * widths[1]


def test_the_largest_size_is_foretold_by_the_others() -> None:
    compute, sizes = np.repeat(COMPUTE, 2), [size for size in "abcd" for _ in range(2)]
    values = NLL.at(compute)
    rest = without_largest(compute, values, sizes)
    assert rest[2] == ["a", "a", "b", "b", "c", "c"]
    assert fit(*rest[:2]).at(COMPUTE[3]) == pytest.approx(NLL.at(COMPUTE[3]), rel=1e-4)


@pytest.mark.parametrize(
    ("compute", "values", "said"),
    [
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "3 points"),
        ([1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 2.0, 2.0], "2 different computes"),
        ([1.0, 2.0, 3.0, 0.0], [3.0, 2.0, 1.0, 1.0], "more than 0"),
        ([1.0, 2.0, 3.0, 4.0], [3.0, 2.0, float("nan"), 1.0], "finite"),
        ([1.0, 2.0], [3.0], "shape"),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], "all values are 2"),
        ([1.0, 2.0, 4.0, 8.0, 16.0], [2.0, 2.3, 2.7, 3.1, 3.6], "do not fall"),
    ],
)
def test_points_through_which_no_one_law_goes_are_refused(compute: list, values: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(np.array(compute), np.array(values))


def test_no_interval_leaves_what_can_be() -> None:
    compute = np.repeat(np.geomspace(1, 30, 4), 2)
    law = PowerLaw(0.2, 0.0, 0.05)
    values = law.at(compute) * np.exp(0.03 * np.random.default_rng(0).standard_normal(8))
    found = fit_with_intervals(compute, values, [str(size) for size in compute], seed=0, replicates=100)
    assert found.interval("offset").low >= 0
    assert found.interval("exponent").low > 0
    assert found.prediction(1e6).low > 0
