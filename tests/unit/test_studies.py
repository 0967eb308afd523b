"""Every table can be planned at every scale it has, and its rows share what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.experiment import Experiment
from orchestrator.step import walk
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.plan import plan
from pipelines.studies.catalogue import ALL
from pipelines.study import Selection

AT_SCALE = [(name, preset) for name, study in ALL.items() for preset in study.scales]


def build(study: str, place: Path, *, preset: str = "tiny", **asked: Any) -> Experiment[RunConfig]:
    selection = Selection(study=study, preset=preset, **asked)
    return selection.build(ALL, ArtifactStore(str(place)), may_lack_images=True)


@pytest.mark.parametrize(("study", "preset"), AT_SCALE)
def test_every_study_builds_at_every_scale(study: str, preset: str, tmp_path: Path) -> None:
    experiment = build(study, tmp_path, preset=preset, seeds=2)
    assert experiment.name == study
    plans = [plan(trial.config) for trial in experiment.trials()]
    judged = {steps["metrics"].key for steps in plans} | {steps["nll"].key for steps in plans}
    assert len(judged) > len(plans)  # no row is another one under another name


def test_a_table_of_objectives_trains_every_cell_for_itself(tmp_path: Path) -> None:
    experiment = build("iddpm-cifar10", tmp_path, seeds=2)
    keys = {step.key for trial in experiment.trials() for step in plan(trial.config).values()}
    # train, sample, features, metrics and nll; the data and its features are everybody's
    assert len(keys) == 5 * 2 * len(experiment.variants) + 2


def test_rows_that_are_judged_on_the_way_train_nothing_besides(tmp_path: Path) -> None:
    rows = ("4K cosine simple", "4K cosine hybrid")
    whole = build("iddpm-cifar10", tmp_path, rows=rows)
    often = build("iddpm-cifar10", tmp_path, rows=rows, milestones=(6_400, 12_800))
    assert list(often.variants)[:3] == [f"{rows[0]}, 6,400 images", f"{rows[0]}, 12,800 images", rows[0]]
    trained = {step.key for trial in often.trials() for step in walk([plan(trial.config)["train"]])}
    assert len(trained) == 1 + 2 * 3  # the data, and for each row three parts that go on from each other
    assert whole.claims == often.claims
    with pytest.raises(ValueError, match=r"row '4K cosine simple, 6,401 images': train.images=6401"):
        build("iddpm-cifar10", tmp_path, rows=rows, milestones=(6_401,))
