"""The work of a study is really done for a moment, here, and what that takes becomes its plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.experiment import Trial
from orchestrator.materialize import materialize, pending
from orchestrator.planner import TRAINING
from orchestrator.prices import Instance, Price
from orchestrator.step import Resources, walk
from orchestrator.store import ArtifactStore
from pipelines import presets
from pipelines.calibration import calibrate
from pipelines.configs import RunConfig
from pipelines.forecast import Forecast, Missing, forecast, repetitions, sources_of, works_of
from pipelines.own_classifier import OwnClassifierConfig
from pipelines.plan import plan
from pipelines.timed import Timed

PRICE = Price(name="small", currency="USD", instance=Instance(per_hour=1.0, cpus=2))


def missing(store: ArtifactStore, *configs: RunConfig) -> Missing:
    trials = [Trial(f"row {number}", 0, config) for number, config in enumerate(configs)]
    return {trial: pending(plan(trial.config).values(), store) for trial in trials}


def planned(store: ArtifactStore, *configs: RunConfig) -> Forecast:
    lacks = missing(store, *configs)
    with sources_of(lacks, store, Resources()) as sources:
        works = works_of(lacks, store, sources, Resources())
        return forecast(lacks, works, backend=None, concurrent=2, resources=Resources(), price=PRICE, start_seconds=5.0)


def repeated(store: ArtifactStore, *configs: RunConfig) -> dict[Timed, float]:
    lacks = missing(store, *configs)
    with sources_of(lacks, store, Resources()) as sources:
        return repetitions(works_of(lacks, store, sources, Resources()))


def short(config: RunConfig) -> RunConfig:
    """The same things, done less often."""
    sample = replace(config.sample, count=64, sampler=replace(config.sample.sampler, respacing="4"))
    return replace(
        config, train=replace(config.train, images=256), nll=replace(config.nll, images=16), sample=sample,
        metrics=replace(config.metrics, kid_subset_size=32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("calibration") / "store"))


def test_every_kind_of_work_takes_some_time_and_nothing_is_written(store: ArtifactStore) -> None:
    guided = short(presets.tiny_guided())
    found = planned(
        store,
        replace(guided, sample=replace(guided.sample, guidance_scale=1.0)),
        short(presets.tiny_upsampled()),
        replace(short(presets.tiny()), features=OwnClassifierConfig(images=1280)),
    )
    assert all(
        0 < timing.each < math.inf and 0 <= timing.once < math.inf for timing in found.calibration.timings.values()
    )
    assert set(found.plan.device_seconds) == {TRAINING, "likelihood", "sampling", "features and metrics"}
    assert all(0 < seconds < math.inf for seconds in found.plan.device_seconds.values())
    assert 0 < found.plan.evaluation_share < 1
    assert found.unknown == ()
    assert not store.root.exists()
    said = found.to_text()
    assert "3 to train, 0 to evaluate only, 0 done; 2 at a time" in said
    assert "training of a classifier" in said
    assert "USD, of small" in said
    assert "a worker takes 3 s to start" in said


def test_rows_that_share_their_training_pay_it_once(store: ArtifactStore) -> None:
    base = presets.tiny()
    alone, both = repeated(store, base), repeated(store, base, replace(base, sample=replace(base.sample, seed=3)))
    assert {timed: both[timed] / alone[timed] for timed in both} == {
        timed: 2 if timed.group in ("sampling", "metrics") else (358 + 2 * 512) / (358 + 512)
        if timed.group == "features" else 1
        for timed in alone
    }  # fmt: skip


def test_networks_for_which_there_is_no_time_are_reckoned_from_another_by_flops(store: ArtifactStore) -> None:
    base = presets.tiny()
    wide = replace(base, model=replace(base.model, model_channels=64))
    work = repeated(store, base, wide)
    found = calibrate(
        work, backend=LocalBackend(), resources=Resources(), side_by_side=1, seconds=0.1, worker_start_seconds=1.0
    )
    assert len({timed.group for timed in found.tried}) == len(found.tried) == 5
    (tried,) = [timed for timed in found.tried if timed.group == TRAINING]
    (reckoned,) = [timed for timed in work if timed.group == TRAINING and timed not in found.tried]
    ratio = found.timings[reckoned].each / found.timings[tried].each
    assert ratio == pytest.approx(reckoned.flops / tried.flops)
    assert tried.flops > reckoned.flops  # where there is most to do


def test_a_plan_says_about_what_steps_leave(store: ArtifactStore, tmp_path: Path) -> None:
    small = short(presets.tiny())
    own = ArtifactStore(str(tmp_path / "own"))
    expected = planned(own, small)
    steps = list(plan(small).values())
    materialize(steps, own, backend=LocalBackend(), resources=Resources())
    folders = [own.path(step) for step in walk(steps) if step.inputs]
    left = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    assert left / 2 < expected.plan.bytes < left * 2
    done = missing(own, small)
    assert not any(done.values())
