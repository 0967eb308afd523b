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


SHARED = {
    # study: (trainings of models, of classifiers) at one seed: what rows share is trained once
    "iddpm-sampling-steps": (2, 0),
    "adm-schedules": (1, 0),
    "adm-guidance": (2, 1),
    "adm-upsampling": (1, 1),
    "adm-architecture": (14, 0),  # seven networks, each in two parts
    "iddpm-imagenet64": (8, 0),  # two of the six go on
    "adm-state-of-the-art": (1, 1),
}


@pytest.mark.parametrize("study", SHARED)
def test_rows_that_share_a_model_train_it_once(study: str, tmp_path: Path) -> None:
    experiment = build(study, tmp_path)
    steps = {step.key: step.name for trial in experiment.trials() for step in walk(plan(trial.config).values())}
    guides = {
        plan(trial.config)["classifier"].key for trial in experiment.trials() if "classifier" in plan(trial.config)
    }
    assert (list(steps.values()).count("train"), len(guides)) == SHARED[study]


def test_images_that_only_the_user_has_must_be_named(tmp_path: Path) -> None:
    selection = Selection(study="iddpm-cifar10", preset="paper")
    with pytest.raises(ValueError, match=r"--preset paper of iddpm-cifar10 is of CIFAR-10: .* --data NAME$"):
        selection.build(ALL, ArtifactStore(str(tmp_path)))
    selection = Selection(study="adm-upsampling", preset="paper")
    with pytest.raises(ValueError, match=r"is of ImageNet at 64x64 and at 256x256: .* --data NAME and --large-data"):
        selection.build(ALL, ArtifactStore(str(tmp_path)))
    selection = Selection(study="iddpm-cifar10", large_data="faces")
    with pytest.raises(ValueError, match="--large-data faces: iddpm-cifar10 has no second stage"):
        selection.build(ALL, ArtifactStore(str(tmp_path)))


def test_the_papers_hyper_parameters_are_those_they_print(tmp_path: Path) -> None:
    cifar = build("iddpm-cifar10", tmp_path, preset="paper")
    of = {trial.variant: trial.config for trial in cifar.trials()}
    assert {row: config.model.dropout for row, config in of.items() if "simple" in row} == {
        "1K linear simple": 0.1, "4K linear simple": 0.1, "4K cosine simple": 0.3,
    }  # fmt: skip
    train = cifar.base.train
    assert (train.images, train.batch_size, train.lr, train.ema.rates) == (64_000_000, 128, 1e-4, (0.9999,))
    assert (cifar.base.sample.count, cifar.base.reference, train.flip) == (50_000, "train", False)
    assert of["4K cosine vlb"].train.timesteps.pools is None  # type: ignore[union-attr]
    table_1 = build("adm-architecture", tmp_path, preset="paper")
    changed = {row.variant: row.config.model for row in table_1.trials()}["narrower and deeper"]
    assert (changed.model_channels, changed.num_res_blocks) == (128, 4)
    attention = {row.variant: row.config.model.attention_resolutions for row in table_1.trials()}
    assert attention["attention at three sizes"] == (32, 16, 8)
    lengths = {row.config.train.images // 256 for row in table_1.trials()}
    assert lengths == {700_000, 1_200_000}
    guided = build("adm-guidance", tmp_path, preset="paper").base
    assert guided.classifier is not None
    assert guided.classifier.train.images == 500_000 * 256


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


def test_the_command_of_a_row_judged_on_the_way_is_that_of_the_row_that_trains_on() -> None:
    asked = Selection(study="iddpm-cifar10", milestones=(6_400,), seeds=2, set=("train.batch=64",))
    alone = (
        "python pipelines/ablation.py iddpm-cifar10 --preset tiny --seeds 2 --rows '4K cosine simple' "
        "--milestones 6400 --set train.batch=64"
    )
    assert asked.row_command("4K cosine simple, 6,400 images") == alone
    assert asked.row_command("4K cosine simple") == alone
