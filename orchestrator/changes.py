"""Does a row change our numbers as it changes the paper's? Against the row that the study holds it against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.experiment import Better, Column, Experiment
from orchestrator.verdicts import Measured, Outcome, judge

Measure = Callable[[str, str], Measured | None]
"""Row, metric -> its values; None when it has none."""


@dataclass(frozen=True)
class Change:
    """A row's number less that of the row it is held against."""

    row: str
    against: str
    metric: str
    paper: str
    ours: str
    """With its interval, or why there is none."""
    outcome: Outcome


def changes(experiment: Experiment[Any], measured: Measure) -> list[Change]:
    """Of each row that is held against another, and each column that both have a number of the paper's for."""
    pairs = [(row, other, column) for row, other in experiment.against.items() for column in experiment.columns]
    found = (_change(experiment, measured, row, other, column) for row, other, column in pairs)
    return [change for change in found if change is not None]


def _change(
    experiment: Experiment[Any], measured: Measure, row: str, other: str, column: Column
) -> Change | None:  # fmt: skip
    """None where nothing is said to be best, or the paper has no change."""
    theirs = [experiment.paper.get(one, {}).get(column.paper or "") for one in (row, other)]
    if column.best is None or theirs[0] is None or theirs[1] is None or theirs[0] == theirs[1]:
        return None
    better, worse = (row, other) if (theirs[0] < theirs[1]) == (column.best == "min") else (other, row)
    rows = {one: measured(one, column.metric) for one in (row, other)}
    verdict = judge(Better(text="", metric=column.metric, better=better, worse=worse), column, rows)
    ours = judge(Better(text="", metric=column.metric, better=row, worse=other), column, rows).why  # row less other
    shown = next(printed.format for printed in experiment.paper_columns if printed.key == column.paper)
    return Change(row, other, column.label, format(theirs[0] - theirs[1], f"+{shown}"), ours, verdict.outcome)
