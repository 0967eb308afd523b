"""What does the table look like as a picture? Two metrics against each other, and the curves of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from orchestrator.table import ComparisonTable

# Okabe and Ito's palette: distinguishable with any colour vision.
MARKERS = "osD^vP*X"  # and shapes, for points that lie on each other
DASHES = ("-", "--", "-.", ":")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DPI = 130
WIDTH = 11.0  # inches
SMOOTHED_OVER = 0.05  # of the curve's length


def look(number: int) -> tuple[str, str, str]:
    """Colour, marker and dashes of the row of that number: of up to 64, no two have both the first two in common."""
    turn = number // len(COLOURS)
    return (
        COLOURS[number % len(COLOURS)], MARKERS[(number + turn) % len(MARKERS)], DASHES[(number + turn) % len(DASHES)]
    )  # fmt: skip


def scatter(table: ComparisonTable, x: str, y: str, path: Path) -> None:
    """One point a row: ours on the left with error bars, the paper's on the right with axes of its own."""
    paper = _paper_points(table, x, y)
    lines_of_legend = -(-len(table.experiment.variants) // 3)
    height = 4.1 + 0.22 * lines_of_legend
    figure, axes = plt.subplots(1, 2 if paper else 1, figsize=(WIDTH, height), squeeze=False)
    ours = {variant: point for variant in table.experiment.variants if (point := _point(table, variant, x, y))}
    experiment = table.experiment
    rows = list(experiment.variants)
    _draw(axes[0][0], ours, rows, "ours", experiment.column(x).label, experiment.column(y).label)
    if paper:
        labels = {column.key: column.label for column in experiment.paper_columns}
        names = [labels[experiment.column(metric).paper or ""] for metric in (x, y)]
        _draw(axes[0][1], paper, rows, experiment.source, *names)
    figure.suptitle(experiment.title)
    handles = {
        name: handle for panel in axes[0] for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path, bottom=(0.6 + 0.22 * lines_of_legend) / height)


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, ylabel: str, title: str) -> None:
    """One curve a row over images seen: a running mean over the values as they were measured."""
    figure, axes = plt.subplots(figsize=(11, 4.6))
    for number, (label, points) in enumerate(lines.items()):
        if not points:
            continue  # it failed before its first
        colour, _, dashes = look(number)
        steps, values = np.array(points, dtype=float).T
        axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.6, linestyle=dashes, label=label)
    if all(value > 0 for points in lines.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xlabel("images seen")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, ncols=2)
    save(figure, path)


def lines(table: ComparisonTable, path: Path) -> None:
    """The rows as points of lines over the experiment's axis, a panel a column that says what is best.

    Raises ValueError for an experiment without an axis.
    """
    axis = table.experiment.axis
    if axis is None:
        raise ValueError(f"{table.experiment.name} has no axis over which lines could be drawn")
    columns = [column for column in table.experiment.columns if column.best is not None]
    across = min(len(columns), 3)
    down = -(-len(columns) // across)
    figure, panels = plt.subplots(down, across, figsize=(WIDTH, 3.6 * down + 0.6), squeeze=False)
    named: dict[str, Any] = {}
    for panel, column in zip(panels.flat, columns, strict=False):
        for number, line in enumerate(dict.fromkeys(line for line, _ in axis.points.values())):
            rows = sorted((x, row) for row, (of, x) in axis.points.items() if of == line)
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            ours = [(x, *centre) for x, row in rows if (centre := table.centre(row, column.metric)) is not None]
            if ours:
                xs, means, errors = zip(*ours, strict=True)
                named[line] = panel.errorbar(
                    xs, means, yerr=[error or 0.0 for error in errors], capsize=3, linestyle="-", **style
                )  # fmt: skip
        panel.set_xlabel(axis.label)
        panel.set_ylabel(column.label)
        if axis.log:
            panel.set_xscale("log")
        panel.grid(alpha=0.25, which="both")
    for unused in panels.flat[len(columns) :]:
        unused.set_visible(False)
    figure.suptitle(table.experiment.title)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save(figure, path)


def save(figure: Any, path: Path, *, bottom: float | None = None, box: Literal["tight"] | None = None) -> None:
    """Close a figure, and leave it as a PNG: whole, or not at all. A tight box is as large as all that is drawn."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    if bottom is not None:
        figure.subplots_adjust(bottom=bottom)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=DPI, format="png", bbox_inches=box)
    plt.close(figure)
    partial.replace(path)


def strips(pictures: Mapping[str, Path], path: Path, *, title: str) -> None:
    """One picture a row, under each other, with the row's name: the same seeds side by side are compared by eye."""
    shown = {label: plt.imread(file) for label, file in pictures.items()}
    across = max(picture.shape[1] / picture.shape[0] for picture in shown.values())
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(WIDTH, WIDTH / across * len(shown) + 0.6), squeeze=False, layout="constrained"
    )
    for axis, (label, picture) in zip(axes[:, 0], shown.items(), strict=True):
        axis.imshow(picture, cmap="gray", interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save(figure, path, box="tight")


Point = tuple[float, float, float, float]  # x, y, half widths of their error bars


def _draw(axes: Axes, points: Mapping[str, Point], rows: Sequence[str], title: str, xlabel: str, ylabel: str) -> None:
    for label, (x, y, dx, dy) in points.items():
        number = rows.index(label)  # a row looks the same in both panels, whichever others failed
        colour, marker, _ = look(number)
        axes.errorbar(x, y, xerr=dx or None, yerr=dy or None, fmt=marker, color=colour, label=label, capsize=3)
    if len(points) > 1 and max(p[1] for p in points.values()) > 3 * min(p[1] for p in points.values()) > 0:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, which="both")


def _point(table: ComparisonTable, variant: str, x: str, y: str) -> Point | None:
    across, up = table.centre(variant, x), table.centre(variant, y)
    if across is None or up is None:
        return None
    return across[0], up[0], across[1] or 0.0, up[1] or 0.0


def _paper_points(table: ComparisonTable, x: str, y: str) -> dict[str, Point]:
    """The paper's numbers of the same two columns, of the rows that have both."""
    experiment = table.experiment
    across, up = experiment.column(x).paper, experiment.column(y).paper
    if across is None or up is None:
        return {}
    return {
        row: (numbers[across], numbers[up], 0.0, 0.0)
        for row in experiment.variants
        if {across, up} <= (numbers := experiment.paper.get(row, {})).keys()
    }


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(1, int(len(values) * SMOOTHED_OVER))
    sums = np.cumsum(np.concatenate([np.zeros(1), values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
