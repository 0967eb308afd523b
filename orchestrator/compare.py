"""In what do two rows of a table differ: in their numbers, and in their settings?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config import diff, override
from orchestrator.experiment import Better, Experiment
from orchestrator.table import ComparisonTable
from orchestrator.verdicts import judge


def compare_rows(table: ComparisonTable, first: str, second: str) -> list[tuple[str, ...]]:
    """(metric, the first row's value, the second's, second less first, what that shows) of every column.

    Where rows share seeds the differences are paired: they share their noise. Raises ValueError for a row that is none.
    """
    experiment = table.experiment
    experiment.only([first, second])
    found: list[tuple[str, ...]] = []
    for column in experiment.columns:
        rows = {row: table.measured(row, column.metric) for row in (first, second)}
        values = [_value(table, row, column.metric, column.format) for row in (first, second)]
        if column.best is None:
            found.append((column.label, *values, "", ""))
            continue
        verdict = judge(Better(text="", metric=column.metric, better=second, worse=first), column, rows)
        winner = {"shown": second, "not shown": first}.get(verdict.outcome)
        outcome = verdict.outcome if winner is None else f"{winner} is better"
        found.append((column.label, *values, verdict.why, outcome))
    return found


def _value(table: ComparisonTable, row: str, metric: str, shown: str) -> str:
    centre = table.centre(row, metric)
    if centre is None:
        return "no result"
    mean, half_width = centre
    return format(mean, shown) + ("" if half_width is None else f" ± {format(half_width, shown)}")


def different_settings(experiment: Experiment[Any], first: str, second: str) -> Mapping[str, tuple[Any, Any]]:
    """Dotted key -> its values in the two rows, where they differ; None where a row's choice has no such key.

    Raises ValueError for a row that is none.
    """
    experiment.only([first, second])
    return diff(*(override(experiment.base, experiment.variants[row]) for row in (first, second)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
