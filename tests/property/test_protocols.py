"""A fingerprint tells which numbers are comparable: by what decides them, and apart from that by their libraries."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocols import MEASURED_WITH, differences, measured_with, protocol_fingerprint

VALUES = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
PROTOCOLS = st.dictionaries(st.text(max_size=5).filter(lambda key: key != MEASURED_WITH), VALUES, max_size=5)
LIBRARIES = st.dictionaries(st.sampled_from(["sample", "features", "metrics"]), st.text(max_size=5))


def halves(protocol: dict[str, Any]) -> list[str]:
    return protocol_fingerprint(protocol).split("-")


@given(protocol=PROTOCOLS, libraries=LIBRARIES)
def test_the_order_of_keys_is_nothing(protocol: dict[str, Any], libraries: dict[str, str]) -> None:
    whole = {**protocol, MEASURED_WITH: libraries}
    assert protocol_fingerprint(whole) == protocol_fingerprint(dict(reversed(whole.items())))


@given(protocol=PROTOCOLS, first=LIBRARIES, second=LIBRARIES)
def test_libraries_move_the_second_half_alone(
    protocol: dict[str, Any], first: dict[str, str], second: dict[str, str]
) -> None:
    one, other = ({**protocol, MEASURED_WITH: libraries} for libraries in (first, second))
    assert halves(one)[0] == halves(other)[0]
    assert (halves(one)[1] == halves(other)[1]) == (first == second)
    assert differences(one, other) == {}


@given(first=PROTOCOLS, second=PROTOCOLS, libraries=LIBRARIES)
def test_the_first_half_is_the_same_exactly_where_nothing_that_decides_differs(
    first: dict[str, Any], second: dict[str, Any], libraries: dict[str, str]
) -> None:
    one, other = ({**protocol, MEASURED_WITH: libraries} for protocol in (first, second))
    without = {key: value for key, value in one.items() if value is not None}
    assert halves(one) == halves(without)
    assert (halves(one)[0] == halves(other)[0]) == (differences(one, other) == {})
    assert halves(one)[1] == halves(other)[1]


def test_libraries_that_all_rows_share_are_named_once_and_others_with_their_rows() -> None:
    rows = [(row, {MEASURED_WITH: {"features": "numpy 2", "nll": f"torch {number}"}}) for row, number in
            (("a", 1), ("a", 1), ("b", 2), ("c", 1))]  # fmt: skip
    assert measured_with(rows) == [
        "Measured with: features by numpy 2",
        "nll: not measured with the same libraries in all rows: torch 1 (a, c); torch 2 (b)",
    ]
    assert measured_with([("a", {"images": 360})]) == []
