"""How is a paper's figure drawn? Curves on one pair of axes, as a PNG, and their numbers beside it as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from orchestrator.files import write_whole
from orchestrator.plots import COLOURS, DASHES, MARKERS, save

MANY = 12
"""Points beyond which a curve has few markers, and a band as its spread, not bars."""
MARKERS_A_CURVE = 8
BINS = 150
"""Equal parts of an axis, within each of which a curve of more points is drawn as their mean."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is along one side of a figure."""

    name: str
    """Its column in the CSV."""
    label: str
    """With its unit."""
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a figure, by ascending x. A y that is nan leaves a gap."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    """Where the y lie, from here to high; None: nothing is said of it."""
    high: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves that may be compared."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve]
    spread: str = ""
    """What low and high are, for the reader; empty where no curve has them."""

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Make name.png and name.csv, each whole or not at all; where they lie."""
        folder.mkdir(parents=True, exist_ok=True)
        picture, numbers = folder / f"{name}.png", folder / f"{name}.csv"
        self._draw(picture)
        write_whole(numbers, self.to_csv())
        return picture, numbers

    def to_csv(self) -> str:
        """Tidy: one line a point, with all digits. Points that a log scale has no place for are there, too."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["curve", self.x.name, self.y.name, *(["low", "high"] if self.spread else [])])
        for curve in self.curves:
            bounds = [curve.low, curve.high] if curve.low is not None and curve.high is not None else []
            for point in zip(curve.x, curve.y, *bounds, strict=True):
                writer.writerow([curve.label, *(value.item() for value in point)])
        return stream.getvalue()

    def _draw(self, path: Path) -> None:
        figure, axes = plt.subplots(figsize=(9, 5.2))
        axes.set_xscale(self.x.scale, **({"nonpositive": "mask"} if self.x.scale == "log" else {}))
        axes.set_yscale(self.y.scale, **({"nonpositive": "clip"} if self.y.scale == "log" else {}))
        for number, curve in enumerate(self.curves):
            shown = binned(curve, self.x)
            if len(shown.x) < len(curve.x):
                axes.plot(curve.x, curve.y, color=COLOURS[number % len(COLOURS)], alpha=0.2, linewidth=0.8)
            marked = _marked(shown, self.x, shift=number / len(self.curves))
            _draw_curve(axes, shown, number, marked)
        axes.set_xlabel(self.x.label)
        axes.set_ylabel(self.y.label + (f"\n{self.spread}" if self.spread else ""))
        axes.set_title(self.title, fontsize=11)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
        save(figure, path)


def binned(curve: Curve, axis: Axis) -> Curve:
    """The mean within each bin, where there are more points than bins: noise is seen, and does not hide its mean."""
    if len(curve.x) <= BINS:
        return curve
    places = _places(curve.x, axis)
    bins = np.where(np.isnan(places), -1, np.minimum(places * BINS, BINS - 1)).astype(np.int64)
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    counts = np.diff(starts, append=len(bins))

    def means(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.add.reduceat(values, starts) / counts

    x, y = np.add.reduceat(curve.x, starts) / counts, np.add.reduceat(curve.y, starts) / counts
    return Curve(label=curve.label, x=x, y=y, low=means(curve.low), high=means(curve.high))


def _draw_curve(axes: Axes, curve: Curve, number: int, marked: list[int]) -> None:
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(
        curve.x, curve.y, label=curve.label, color=colour, linestyle=DASHES[number % len(DASHES)], linewidth=1.5,
        marker=MARKERS[number % len(MARKERS)], markersize=5, markevery=marked,
    )  # fmt: skip
    if curve.low is None or curve.high is None:
        return
    if len(curve.x) > MANY:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    else:
        around = np.stack([curve.y - curve.low, curve.high - curve.y])
        axes.errorbar(curve.x, curve.y, yerr=around, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _places(x: np.ndarray, axis: Axis) -> np.ndarray:
    """Where points lie along an axis, from 0 to 1; nan where a log scale has no place for them."""
    along = np.log(np.where(x > 0, x, np.nan)) if axis.scale == "log" else x
    first, last = np.nanmin(along), np.nanmax(along)
    return (along - first) / (last - first) if last > first else along - first


def _marked(curve: Curve, axis: Axis, *, shift: float) -> list[int]:
    """Points that get a marker: all of few, otherwise some, spread over the axis, and elsewhere than other curves'."""
    if len(curve.x) <= MANY:
        return list(range(len(curve.x)))
    places = _places(curve.x, axis)
    wanted = (np.arange(MARKERS_A_CURVE) + shift) / MARKERS_A_CURVE
    return sorted({int(np.nanargmin(np.abs(places - place))) for place in wanted})
