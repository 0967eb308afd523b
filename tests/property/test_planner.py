"""A plan adds up: what is shared counts once, and more places never make it slower."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner import Cost, Schedule, forecast, misses

STEPS = st.lists(st.integers(0, 9), max_size=4, unique=True)
CELLS = st.lists(STEPS, min_size=1, max_size=6)
SECONDS = st.lists(st.floats(0.1, 100.0), min_size=10, max_size=10)


def schedule_of(cells: list[list[int]]) -> Schedule[int, int]:
    return Schedule(dict(enumerate(cells)))


@given(CELLS, SECONDS)
def test_one_place_takes_the_sum_of_all_steps_each_once(cells: list[list[int]], seconds: list[float]) -> None:
    schedule, of = schedule_of(cells), dict(enumerate(seconds))
    steps = {step for cell in cells for step in cell}
    assert schedule.wall_seconds(of, at_once=1) == pytest.approx(sum(of[step] for step in steps))
    assert sorted(schedule.once()) == sorted(steps)


@given(CELLS, SECONDS, st.integers(1, 8))
def test_no_number_of_places_beats_the_longest_cell_nor_loses_to_one(
    cells: list[list[int]], seconds: list[float], places: int
) -> None:
    schedule, of = schedule_of(cells), dict(enumerate(seconds))
    longest = max(sum(of[step] for step in cell) for cell in cells)
    alone = schedule.wall_seconds(of, at_once=1)
    wall = schedule.wall_seconds(of, at_once=places)
    assert wall <= alone * (1 + 1e-9)
    # A cell may find all its steps run by others, but those took as long.
    assert wall >= max(of[step] for cell in cells for step in cell) * (1 - 1e-9) if any(cells) else wall == 0
    assert schedule.wall_seconds(of, at_once=len(cells)) <= max(alone, longest) * (1 + 1e-9)


@given(CELLS, SECONDS, st.floats(0.0, 10.0))
def test_what_a_cell_takes_besides_is_added_to_every_cell_that_runs(
    cells: list[list[int]], seconds: list[float], besides: float
) -> None:
    schedule, of = schedule_of(cells), dict(enumerate(seconds))
    apart = schedule.wall_seconds(of, at_once=1, cell_seconds=besides) - schedule.wall_seconds(of, at_once=1)
    assert apart == pytest.approx(besides * sum(bool(cell) for cell in cells), abs=1e-6)


def test_cells_are_to_train_to_evaluate_or_done() -> None:
    costs = {
        "train a": Cost("training", 10.0, 5),
        "nll a": Cost("likelihood", 2.0),
        "sample a": Cost("sampling", 4.0, 1),
    }
    cells = {"first": ["train a", "nll a"], "shares it": ["train a", "sample a"], "done": []}
    found = forecast(Schedule(cells), costs, at_once=2)
    assert (found.cells.to_train, found.cells.to_evaluate, found.cells.done) == (1, 1, 1)
    assert found.seconds == {"training": 10.0, "likelihood": 2.0, "sampling": 4.0}
    assert found.evaluation_share == pytest.approx(6 / 16)
    assert found.bytes == 6
    assert found.wall_seconds == 14.0  # the second waits for the first one's training


def test_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="at_once=0"):
        schedule_of([[1]]).wall_seconds({1: 1.0}, at_once=0)


def test_a_miss_is_a_share_of_what_it_took() -> None:
    assert misses({"training": 12.0, "sampling": 4.0}, {"training": 10.0, "sampling": 5.0}) == {
        "training": pytest.approx(0.2), "sampling": pytest.approx(-0.2), "all": pytest.approx(1 / 15),
    }  # fmt: skip
