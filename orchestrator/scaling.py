"""Does a table follow a law of scaling? Power laws through its columns over compute, beside the paper's own.

A line of the table's axis is one size of model. The law goes through its last point, the longest training of each; what
was judged on the way there is drawn, not fitted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from orchestrator.experiment import Axis
from orchestrator.plots import COLOURS, MARKERS, WIDTH, save
from orchestrator.power_law import FittedLaw, Interval, PowerLaw, fit_with_intervals, without_largest
from orchestrator.table import ComparisonTable

SEED, REPLICATES = 0, 400
FEWEST_FREE = 2.0
"""Points more than parameters from which an interval is shown."""
PARAMETERS = ("exponent", "log_scale", "offset")
COLUMNS = (
    "metric", "with_offset", "what", "size", "compute_macs", "compute_flops", "value", "low", "high", "residual"
)  # fmt: skip


@dataclass(frozen=True)
class Points:
    """What a law goes through, in the order of the axis: one point for each size and seed."""

    compute: NDArray[np.float64]
    values: NDArray[np.float64]
    sizes: list[str]


@dataclass(frozen=True)
class Law:
    """A law of one column, or why there is none."""

    metric: str
    label: str
    with_offset: bool
    points: Points
    fitted: FittedLaw | str
    predicted: tuple[Interval, float] | str
    """Of the largest size from the others, and what was measured of it; or why not."""


def laws(table: ComparisonTable) -> list[Law]:
    """For every column of which the paper has a law: with an offset, and without."""
    axis = table.experiment.axis
    assert axis is not None  # Experiment has seen to it
    found = []
    for metric in table.experiment.laws:
        points, label = points_of(table, axis, metric), table.experiment.column(metric).label
        for with_offset in (True, False):
            fitted = _fitted(points, with_offset=with_offset)
            found.append(Law(metric, label, with_offset, points, fitted, _predicted(points, with_offset=with_offset)))
    return found


def points_of(table: ComparisonTable, axis: Axis, metric: str) -> Points:
    """The last point of every line, at every seed that was measured."""
    last: dict[str, tuple[float, str]] = {}
    for row, (line, x) in axis.points.items():
        last[line] = max(last.get(line, (x, row)), (x, row))
    compute, values, sizes = [], [], []
    for line, (x, row) in sorted(last.items(), key=lambda item: item[1]):
        measured = table.measured(row, metric)
        for value in measured.by_seed.values() if measured is not None else ():
            compute.append(x)
            values.append(value)
            sizes.append(line)
    return Points(np.array(compute, dtype=np.float64), np.array(values, dtype=np.float64), sizes)


def _fitted(points: Points, *, with_offset: bool) -> FittedLaw | str:
    try:
        return fit_with_intervals(
            points.compute, points.values, points.sizes, seed=SEED, with_offset=with_offset, replicates=REPLICATES
        )
    except ValueError as error:
        return str(error)


def _predicted(points: Points, *, with_offset: bool) -> tuple[Interval, float] | str:
    if len(set(points.sizes)) < 2:
        return "there is one size"
    largest = float(points.compute.max())
    compute, values, sizes = without_largest(points.compute, points.values, points.sizes)
    fitted = _fitted(Points(compute, values, sizes), with_offset=with_offset)
    if isinstance(fitted, str):
        return fitted
    return fitted.prediction(largest), float(points.values[points.compute == largest].mean())


HEADINGS = ("L(C) = E + (C/C0)^-a", "a", "ln C0", "E", "the largest from the others", "measured")


@dataclass(frozen=True)
class LawsTable:
    """The laws beside the paper's, and what the smaller sizes say of the largest, as text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """The last cells of a row may be missing."""
    notes: tuple[str, ...]


def in_words(found: Sequence[Law], papers: Mapping[str, PowerLaw]) -> LawsTable:
    """What a reader is told of them."""
    labels = {law.metric: law.label for law in found}
    printed = [
        (f"{labels[metric]}, the paper", f"{law.exponent:.3g}", f"{law.log_scale:.4g}", f"{law.offset:.4g}")
        for metric, law in papers.items()
    ]
    sizes = sorted({size for law in found for size in law.points.sizes})
    seeds = max((law.points.sizes.count(size) for law in found for size in law.points.sizes), default=0)
    how = (
        f"95 % intervals of a bootstrap; {len(sizes)} sizes, up to {seeds} seeds of each. C: compute of training as "
        f"the paper counts it, multiply-accumulates of forward and backward; floating-point operations are twice that."
    )
    unpredicted = [
        f"The largest is not predicted. {law.label}{'' if law.with_offset else ', E = 0'}: {law.predicted}"
        for law in found
        if isinstance(law.predicted, str) and not isinstance(law.fitted, str)
    ]
    return LawsTable(HEADINGS, (*map(_row, found), *printed), (how, *unpredicted))


def _row(law: Law) -> tuple[str, ...]:
    name = law.label if law.with_offset else f"{law.label}, E = 0"
    if isinstance(law.fitted, str):
        return (name, f"no law: {law.fitted}")
    free = law.fitted.freedom
    parameters = [_interval(law.fitted.interval(of), free) for of in ("exponent", "log_scale")]
    offset = _interval(law.fitted.interval("offset"), free) if law.with_offset else ""
    if isinstance(law.predicted, str):
        return (name, *parameters, offset)
    return (name, *parameters, offset, _interval(law.predicted[0], free), f"{law.predicted[1]:.4g}")


def to_markdown(table: LawsTable) -> str:
    """For a README or a web page."""
    rows = [(*row, *[""] * (len(table.headings) - len(row))) for row in table.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.headings, *rows)]
    lines.insert(1, f"|---|{'---:|' * (len(table.headings) - 1)}")
    return "\n".join([*lines, "", *table.notes]) + "\n"


def _interval(interval: Interval, freedom: float) -> str:
    """With few points more than parameters Student's t says next to nothing, and that is said."""
    if freedom < FEWEST_FREE:
        return f"{interval.value:.4g} (too few points for an interval)"
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def to_csv(found: Sequence[Law]) -> str:
    """Every point with its law's value and residual, and every parameter with its interval."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["metric", "with_offset", "what", "size", "compute_macs", "compute_flops", "value", "low", "high", "residual"]
    )
    for law in found:
        if isinstance(law.fitted, str):
            continue
        for of in PARAMETERS:
            one = law.fitted.interval(of)
            writer.writerow([law.metric, law.with_offset, of, "", "", "", one.value, one.low, one.high, ""])
        points = zip(law.points.sizes, law.points.compute, law.points.values, law.fitted.residuals, strict=True)
        for size, compute, value, residual in points:
            writer.writerow([law.metric, law.with_offset, "point", size, compute, 2 * compute, value, "", "", residual])
    return stream.getvalue()


def draw(table: ComparisonTable, found: Sequence[Law], path: Path) -> None:
    """A row of panels a metric: all points over compute with the law; what is left above E, in logs; residuals."""
    axis = table.experiment.axis
    assert axis is not None
    metrics = list(dict.fromkeys(law.metric for law in found))
    figure, panels = plt.subplots(len(metrics), 3, figsize=(WIDTH, 3.6 * len(metrics) + 0.5), squeeze=False)
    for (over, above, rest), metric in zip(panels, metrics, strict=True):
        column = table.experiment.column(metric)
        lines = list(dict.fromkeys(line for line, _ in axis.points.values()))
        for number, line in enumerate(lines):
            rows = sorted((x, row) for row, (of, x) in axis.points.items() if of == line)
            ours = [(x, centre[0]) for x, row in rows if (centre := table.centre(row, metric)) is not None]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            if ours:
                over.plot(*zip(*ours, strict=True), linewidth=1.0, label=line, **style)
        fitted = [(law, law.fitted) for law in found if law.metric == metric and isinstance(law.fitted, FittedLaw)]
        for law, of_law in fitted:
            _draw_law(law, of_law, over, above, rest)
        paper = table.experiment.laws[metric]
        above.plot([], [], " ", label=f"the paper: a = {paper.exponent:g}, E = {paper.offset:g}")
        over.set(xscale="log", xlabel=axis.label, ylabel=column.label)
        above.set(xlabel=axis.label, ylabel=f"{column.label} less E")
        rest.set(xlabel=axis.label, ylabel="residual")
        if fitted:
            above.set(xscale="log", yscale="log")
            rest.set(xscale="log")
        else:  # there is nothing to see in them, and no logarithm of it
            for panel in (above, rest):
                panel.set(xticks=[], yticks=[])
                panel.text(0.5, 0.5, "no law goes through the points", transform=panel.transAxes, ha="center")
        rest.axhline(0, color="grey", linewidth=0.8)
        for panel in (over, above):
            panel.legend(frameon=False, fontsize=7)
        for panel in (over, above, rest):
            panel.grid(alpha=0.25, which="both")
    figure.suptitle(table.experiment.title)
    save(figure, path)


def _draw_law(law: Law, fitted: FittedLaw, over: Any, above: Any, rest: Any) -> None:
    compute = np.geomspace(law.points.compute.min(), law.points.compute.max(), 100)
    curve, dashes = fitted.law.at(compute), "-" if law.with_offset else "--"
    name = f"a = {fitted.law.exponent:.3g}, E = {fitted.law.offset:.3g}"
    over.plot(compute, curve, dashes, color="black", linewidth=1.4, label=name)
    above.plot(compute, curve - fitted.law.offset, dashes, color="black", linewidth=1.4, label=name)
    left = law.points.values - fitted.law.offset
    shown = left > 0
    above.plot(law.points.compute[shown], left[shown], "o" if law.with_offset else "x", color="black", markersize=4)
    rest.plot(law.points.compute, fitted.residuals, "o" if law.with_offset else "x", color="black", markersize=4)
