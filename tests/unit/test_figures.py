"""A figure keeps every number in its CSV, and draws what is there of a curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.figures import BINS, Axis, Curve, Figure, binned

STEP = Axis(name="t", label="t")


def figure(*curves: Curve, scale: str = "linear", spread: str = "") -> Figure:
    y = Axis(name="loss", label="loss", scale=scale)  # type: ignore[arg-type]
    return Figure(title="a title", x=STEP, y=y, curves=curves, spread=spread)


def painted(file: Path) -> np.ndarray:
    """Whether a pixel has a colour, and not a shade of gray."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2) > 60


def test_the_csv_has_every_digit_of_every_point() -> None:
    x, y = np.arange(5), np.array([0.1, 1 / 3, 0.0, 2e-17, np.nan])
    rows = figure(Curve(label="one, two", x=x, y=y), scale="log").to_csv().splitlines()
    assert rows[0] == "curve,t,loss"
    assert rows[2] == f'"one, two",1,{1 / 3!r}'
    assert len(rows) == 6
    assert [float(row.rpartition(",")[2]) for row in rows[1:5]] == y[:4].tolist()


def test_bounds_are_columns_of_their_own() -> None:
    curve = Curve(label="a", x=np.array([1]), y=np.array([2.0]), low=np.array([1.5]), high=np.array([2.5]))
    assert figure(curve, spread="one standard error").to_csv().splitlines() == [
        "curve,t,loss,low,high",
        "a,1,2.0,1.5,2.5",
    ]


@pytest.mark.parametrize("count", [1, 3, 40, 1000])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_curves_of_any_length_are_drawn_with_their_spread(tmp_path: Path, count: int, scale: str) -> None:
    x = np.arange(count)
    y = 1 + np.sin(x / count)
    bounded = Curve(label="bounded", x=x, y=y, low=y - 0.5, high=y + 0.5)
    bare, wide = figure(Curve(label="bare", x=x, y=y), scale=scale), figure(bounded, scale=scale, spread="half")
    for one, name in ((bare, "bare"), (wide, "wide")):
        picture, numbers = one.write(tmp_path / "new" / "folder", name)
        assert painted(picture).any()
        assert len(numbers.read_text().splitlines()) == count + 1


def test_what_a_log_scale_has_no_place_for_leaves_a_gap_and_not_an_error(tmp_path: Path) -> None:
    x = np.array([0.0, 1.0, 10.0])
    on_log = Figure(
        title="", x=Axis(name="x", label="x", scale="log"), y=Axis(name="y", label="y", scale="log"),
        curves=[Curve(label="a", x=x, y=np.array([1.0, np.nan, 2.0])), Curve(label="b", x=x, y=np.full(3, np.nan))],
    )  # fmt: skip
    assert painted(on_log.write(tmp_path, "gaps")[0]).any()


def test_many_points_are_drawn_as_the_means_of_neighbours_and_those_apart_as_they_are() -> None:
    x = np.arange(1, 4001)
    noise = np.random.default_rng(0).standard_normal(len(x))
    shown = binned(Curve(label="a", x=x, y=x + noise, low=x - 1.0, high=x + 1.0), replace(STEP, scale="log"))
    assert len(shown.x) <= BINS
    assert shown.x[:10].tolist() == list(range(1, 11))
    assert shown.y[:10].tolist() == (x + noise)[:10].tolist()
    assert abs(shown.y - shown.x)[-10:].max() < 0.4  # means of more than 100 each
    assert shown.low is not None
    np.testing.assert_allclose(shown.x - shown.low, 1)
