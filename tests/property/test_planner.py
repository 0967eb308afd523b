"""What a plan says must add up, whatever cells share which steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.planner import TRAINING, Estimate, compare, plan_study, wall_seconds
from orchestrator.prices import Instance

KEYS = [f"step/{number}" for number in range(6)]
seconds_of = st.fixed_dictionaries({key: st.floats(0, 1000) for key in KEYS})
# As in a plan of steps: what two cells share, they have in the same order.
cells = st.lists(st.lists(st.sampled_from(KEYS), unique=True).map(sorted), max_size=6)
slots = st.integers(1, 8)


def estimate(seconds: float, *, kind: str = TRAINING, cpus: float = 1, gpus: float = 0) -> Estimate:
    return Estimate(kind=kind, seconds=seconds, cpus=cpus, gpus=gpus, bytes=10)


@given(cells=cells, seconds=seconds_of)
def test_with_one_cell_at_a_time_the_wall_time_is_the_sum_of_all_steps_each_once(
    cells: list[list[str]], seconds: dict[str, float]
) -> None:
    together = sum(seconds[key] for key in {key for cell in cells for key in cell})
    assert wall_seconds(cells, seconds, concurrent=1) == pytest.approx(together)


@given(cells=cells, seconds=seconds_of, concurrent=slots)
def test_no_number_of_cells_at_a_time_beats_the_work_shared_evenly_or_takes_longer_than_all_of_it(
    cells: list[list[str]], seconds: dict[str, float], concurrent: int
) -> None:
    together = sum(seconds[key] for key in {key for cell in cells for key in cell})
    longest_step = max((seconds[key] for cell in cells for key in cell), default=0.0)
    wall = wall_seconds(cells, seconds, concurrent=concurrent)
    assert max(longest_step, together / concurrent) <= wall * (1 + 1e-9) + 1e-9
    assert wall <= together * (1 + 1e-9) + 1e-9


@given(lengths=st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_with_room_for_all_cells_that_share_nothing_the_longest_is_the_wall_time(lengths: list[float]) -> None:
    seconds = {str(number): length for number, length in enumerate(lengths)}
    assert wall_seconds([[key] for key in seconds], seconds, concurrent=len(lengths)) == pytest.approx(max(lengths))


def test_a_step_that_two_cells_need_is_run_by_one_and_waited_for_by_the_other() -> None:
    seconds = {"shared": 10.0, "a": 1.0, "b": 2.0}
    assert wall_seconds([["shared", "a"], ["shared", "b"]], seconds, concurrent=2) == 12.0
    assert wall_seconds([["shared", "a"], ["shared", "b"], ["b"]], seconds, concurrent=3) == 11.0


@given(cells=cells, seconds=seconds_of, concurrent=slots)
def test_every_step_is_paid_and_stored_once(cells: list[list[str]], seconds: dict[str, float], concurrent: int) -> None:
    estimates = {key: estimate(value, cpus=2) for key, value in seconds.items()}
    instance = Instance(per_hour=7.2, cpus=4)
    plan = plan_study(cells, estimates, concurrent=concurrent, instance=instance)
    needed = {key for cell in cells for key in cell}
    assert plan.total_device_seconds == pytest.approx(sum(2 * seconds[key] for key in needed))
    assert plan.bytes == 10 * len(needed)
    assert plan.money == pytest.approx(sum(7.2 / 2 * seconds[key] / 3600 for key in needed))


def test_cells_are_counted_by_what_they_lack_and_what_is_done_costs_nothing() -> None:
    estimates = {"train": estimate(60), "nll": estimate(20, kind="likelihood")}
    plan = plan_study([["train", "nll"], ["nll"], []], estimates, concurrent=2)
    assert (plan.to_train, plan.to_evaluate, plan.done) == (1, 1, 1)
    assert plan.evaluation_share == 0.25
    over = plan_study([[], []], {}, concurrent=2, start_seconds=9.0, instance=Instance(per_hour=1, cpus=1))
    assert (over.wall_seconds, over.total_device_seconds, over.bytes, over.money) == (0.0, 0.0, 0, 0.0)
    assert over.evaluation_share == 0.0
    assert over.done == 2


def test_gpus_are_what_is_counted_where_a_step_takes_any() -> None:
    plan = plan_study([["train"]], {"train": estimate(3600, cpus=8, gpus=2)}, concurrent=1, start_seconds=5.0)
    assert plan.device_seconds == {TRAINING: 7200.0}
    assert plan.wall_seconds == 3605.0
    assert plan.money is None


def test_a_step_without_an_estimate_is_refused() -> None:
    with pytest.raises(ValueError, match="no estimate for nll"):
        plan_study([["nll"]], {}, concurrent=1)
    with pytest.raises(ValueError, match="concurrent=0"):
        wall_seconds([["nll"]], {"nll": 1.0}, concurrent=0)


def test_a_forecast_is_compared_for_the_steps_that_ran_alone() -> None:
    estimates = {"a": estimate(10), "b": estimate(30), "c": estimate(5, kind="likelihood", cpus=2)}
    training, likelihood, together = compare(estimates, {"a": 20.0, "c": 4.0})
    assert (training.what, training.forecast, training.actual, training.error) == (TRAINING, 10.0, 20.0, -0.5)
    assert (likelihood.what, likelihood.forecast, likelihood.actual, likelihood.error) == (
        "likelihood",
        10.0,
        8.0,
        0.25,
    )
    assert (together.forecast, together.actual) == (20.0, 28.0)
    assert compare(estimates, {})[-1].error is None
