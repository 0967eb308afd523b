"""Two rows side by side: their numbers, with what the difference shows, and their settings."""

from __future__ import annotations

import pytest

from orchestrator.compare import aligned, compare_rows, different_settings
from tests.unit.test_experiment import experiment
from tests.unit.test_table import table


def test_differences_over_seeds_are_paired() -> None:
    made = table({"shallow": [2.0, 3.0, 4.0], "deep": [1.8, 2.7, 3.6]})
    loss, distance = compare_rows(made, "shallow", "deep")
    assert loss == ("loss", "3.00 ± 2.48", "2.70 ± 2.24", "-0.30 ± 0.25", "deep is better")
    assert distance[0] == "FD"
    assert compare_rows(made, "deep", "shallow")[0][3:] == ("+0.30 ± 0.25", "deep is better")


def test_what_is_not_resolved_or_not_there_is_said() -> None:
    close = table({"shallow": [2.0], "deep": [1.9]})
    assert compare_rows(close, "shallow", "deep")[0][4] == "not resolved"
    lost = table({"shallow": [2.0], "deep": [1.9]}, failed=("deep",))
    assert compare_rows(lost, "shallow", "deep")[0][2:] == ("no result", "deep FAILED", "no verdict")
    apart = table({"shallow": [2.0], "deep": [1.0]}, protocol={"shallow": "100", "deep": "200"}, mixed_protocols="mark")
    assert compare_rows(apart, "shallow", "deep")[0][4] == "not comparable"


def test_only_settings_that_differ_are_listed() -> None:
    assert different_settings(experiment(), "shallow", "deep") == {"depth": (1, 4)}


def test_a_row_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="unknown row 'deeep'; did you mean 'deep'"):
        different_settings(experiment(), "shallow", "deeep")
    with pytest.raises(ValueError, match="unknown row 'deeep'; did you mean 'deep'"):
        compare_rows(table({"shallow": [2.0], "deep": [1.9]}), "deeep", "deep")


def test_columns_of_text_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([("", "a"), ("depth", "4")]) == "       a\ndepth  4"
