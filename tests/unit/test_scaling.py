"""Laws through a table's points, of a table that follows one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import scaling
from orchestrator.experiment import Axis, Column, Experiment
from orchestrator.power_law import FittedLaw, PowerLaw
from orchestrator.scaling import in_words, laws, points_of, to_markdown
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable, FailedTrial, TrialResult
from orchestrator.views import Presentation, write_views
from pipelines.studies.catalogue import ALL
from pipelines.study import Selection

LAW = PowerLaw(exponent=0.17, log_scale=-np.log(3.0e-15), offset=3.40)


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well intervals cover is held elsewhere (docs/results/power_law.md)."""
    monkeypatch.setattr(scaling, "REPLICATES", 40)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    width: int = 0
    seed: int = 0


def table(computes: Sequence[float], *, seeds: int = 2, failed: Sequence[int] = ()) -> ComparisonTable:
    """Each size judged at half and at all of its training; what is judged on the way is far off the law."""
    points, variants = {}, {}
    for number, compute in enumerate(computes):
        for part, share in (("half", 0.5), ("whole", 1.0)):
            variants[f"{number} {part}"] = {"width": 2 * number + (part == "whole") + 1}
            points[f"{number} {part}"] = (f"size {number}", share * compute)
    experiment: Experiment[Any] = Experiment(
        name="law", title="Law", question="?", source="?", base=Config(), variants=variants, seeds=tuple(range(seeds)),
        columns=(Column(metric="nll", label="NLL", best="min"),), paper={}, laws={"nll": LAW},
        axis=Axis(label="compute", points=points, log=True),
    )  # fmt: skip
    rng, results = np.random.default_rng(0), []
    for row, (_, compute) in points.items():
        for seed in range(seeds):
            if row.endswith("whole") and int(row[0]) in failed:
                results.append(FailedTrial(row, seed, "lost"))
                continue
            value = float(LAW.at(compute)) + rng.normal(0, 1e-4) + (5.0 if row.endswith("half") else 0.0)
            results.append(TrialResult(row, seed, {"nll": value}, {}, ()))
    return ComparisonTable(experiment, results)


COMPUTES = np.geomspace(1e17, 5e19, 7).tolist()


def test_the_law_goes_through_the_longest_training_of_each_size_at_every_seed() -> None:
    made = table(COMPUTES)
    axis = made.experiment.axis
    assert axis is not None
    points = points_of(made, axis, "nll")
    assert points.compute.tolist() == [compute for compute in COMPUTES for _ in range(2)]
    assert points.sizes == [f"size {number}" for number in range(7) for _ in range(2)]
    assert points.values.max() < 9


def test_a_known_law_comes_out_with_intervals_that_hold_it_and_predicts_the_largest() -> None:
    with_offset, without = laws(table(COMPUTES))
    assert isinstance(with_offset.fitted, FittedLaw)
    exponent = with_offset.fitted.interval("exponent")
    assert exponent.low < 0.17 < exponent.high
    assert exponent.value == pytest.approx(0.17, rel=0.05)
    assert isinstance(with_offset.predicted, tuple)
    interval, measured = with_offset.predicted
    assert interval.low < float(LAW.at(COMPUTES[-1])) < interval.high
    assert measured == pytest.approx(float(LAW.at(COMPUTES[-1])), abs=1e-3)
    assert isinstance(without.fitted, FittedLaw)
    assert without.fitted.law.offset == 0.0


def test_too_few_sizes_are_told_in_place_of_a_law() -> None:
    text = to_markdown(in_words(laws(table(COMPUTES[:2], seeds=1)), {"nll": LAW}))
    assert "no law: 2 points at 2 different computes" in text
    assert "| NLL, the paper | 0.17 | 33.44 | 3.4 |" in text


def test_with_one_point_more_than_parameters_no_interval_is_shown() -> None:
    text = to_markdown(in_words(laws(table(COMPUTES[:4], seeds=1)), {"nll": LAW}))
    assert "(too few points for an interval)" in text


def test_numbers_that_follow_no_law_are_drawn_all_the_same(tmp_path: Path) -> None:
    made = table(COMPUTES[:2], seeds=1)
    files, unwritten = write_views(made, tmp_path, Presentation(), {}, ArtifactStore(str(tmp_path / "store")))
    assert not unwritten
    assert files["laws.png"].read_bytes().startswith(b"\x89PNG")


def test_a_size_that_failed_is_left_out_and_the_files_are_written(tmp_path: Path) -> None:
    made = table(COMPUTES, failed=(3,))
    files, unwritten = write_views(made, tmp_path, Presentation(), {}, ArtifactStore(str(tmp_path / "store")))
    assert not unwritten
    assert {"laws.md", "laws.csv", "laws.png", "lines.png"} <= files.keys()
    rows = list(csv.DictReader(files["laws.csv"].open()))
    sizes = {row["size"] for row in rows if row["what"] == "point"}
    assert sizes == {f"size {number}" for number in range(7) if number != 3}
    (first,) = {row["compute_flops"] for row in rows if row["size"] == "size 0"}
    assert float(first) == 2e17


def test_a_study_of_scaling_counts_compute_as_the_paper_does(tmp_path: Path) -> None:
    study = Selection(study="iddpm-scaling", preset="paper")
    experiment = study.build(ALL, ArtifactStore(str(tmp_path)), may_lack_images=True)
    assert experiment.axis is not None
    line, compute = experiment.axis.points["128 channels"]
    assert line == "128 channels"
    assert compute == pytest.approx(3 * 39.7e9 * 1_500_000 * 128, rel=2e-3)  # 2.3e19, of table 1's longest row
    of = {trial.variant: trial.config for trial in experiment.trials()}
    assert of["64 channels"].train.lr == pytest.approx(1e-4 * 2**0.5)
    assert of["128 channels (1/4)"].train.images == 375_000 * 128
    assert of["128 channels"].milestones == (375_000 * 128, 750_000 * 128)
