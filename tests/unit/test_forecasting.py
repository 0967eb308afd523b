"""What a study takes is reckoned from its configs, and priced by a file that is read strictly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.budget import Budget, BudgetSpent
from orchestrator.config import override
from orchestrator.step import Resources, Step, walk
from orchestrator.store import ArtifactStore
from pipelines import probes
from pipelines.configs import RunConfig
from pipelines.estimate import chosen, macs_of, rate_of, work_of
from pipelines.forecasting import expected
from pipelines.plan import plan
from pipelines.presets import tiny, tiny_guided, tiny_upsampled
from pipelines.prices import Prices
from pipelines.probes import LikelihoodProbe, SamplingProbe, TrainingProbe, measured
from pipelines.studies.catalogue import ALL
from pipelines.study import Selection

PRICES = (
    """{"currency": "USD", "instances": {"gpu": {"per_hour": 2.0, "gpus": 4}, "cpu": {"per_hour": 1.0, "cpus": 8}}}"""
)


def units(config: RunConfig, role: str, store: ArtifactStore) -> dict[str, float]:
    """Of the step in that role: kind of probe -> units."""
    return {type(probe).__name__: count for probe, count in work_of(plan(config)[role], store).units}


def test_units_follow_from_the_config_alone(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    config = override(tiny(), {"nll.images": 100})
    assert units(config, "train", store) == {"TrainingProbe": 28_160 / 128}
    assert units(config, "sample", store) == {"SamplingProbe": 512 * 100}
    assert units(config, "nll", store) == {"LikelihoodProbe": 100 * 2 * 11 + 800}
    everything = override(config, {"nll.terms.kind": "all", "nll.respacing": "50"})
    assert units(everything, "nll", store) == {"LikelihoodProbe": 100 * 50}
    longer = override(config, {"train.images": 56_320, "milestones": [28_160]})
    assert units(longer, "train", store) == {"TrainingProbe": 28_160 / 128}  # the part that goes on


@pytest.mark.parametrize("preset", [tiny, tiny_guided, tiny_upsampled])
def test_every_kind_of_step_can_be_timed_here(preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SECONDS", 0.0)
    monkeypatch.setattr(probes, "FEWEST", 1)
    store, config = (
        ArtifactStore(str(tmp_path)),
        override(preset(), {"sample.count": 64, "metrics.kid_subset_size": 32}),
    )
    if config.classifier is not None:
        config = override(config, {"sample.guidance_scale": 1.0})
    steps = walk(plan(config).values())
    works = {step.name: work_of(step, store) for step in steps}
    wanted = {probe for work in works.values() for probe, _ in work.units}
    assert all(works[step.name].units for step in steps if step.name != "dataset")
    for probe in wanted:
        assert 0 < measured(probe, Resources()) < math.inf


def test_rows_that_take_the_same_steps_share_a_probe(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    rows = Selection(study="iddpm-cifar10").build(ALL, store).trials()
    trainings: set[Step] = {plan(row.config)["train"] for row in rows}
    found = {probe for step in trainings for probe, _ in work_of(step, store).units}
    assert len(trainings) == 6
    assert len(found) == 3  # simple, hybrid, vlb with its histories


def test_of_many_networks_some_are_timed_and_the_others_lie_between(tmp_path: Path) -> None:
    widths = [LikelihoodProbe(override(tiny(), {"model.model_channels": 32 * n}).model, tiny().diffusion)
              for n in range(1, 13)]  # fmt: skip
    timed = chosen(widths)
    assert len(timed) == 8
    assert {widths[0], widths[-1]} <= set(timed)
    rates = {probe: macs_of(probe) or 0.0 for probe in timed}
    for probe in widths:
        assert rate_of(probe, rates) == pytest.approx(macs_of(probe))
    assert not isinstance(widths[0], SamplingProbe | TrainingProbe)


def test_a_study_that_is_done_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path))
    experiment = Selection(study="iddpm-cifar10").build(ALL, store)
    monkeypatch.setattr(ArtifactStore, "is_done", lambda store, step: True)
    found = expected(experiment, store, Resources(), LocalBackend(), at_once=1)
    assert (found.forecast.cells.done, found.device_hours) == (6, 0.0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (PRICES.replace("currency", "curency"), "curency"),
        (PRICES.replace("2.0", "-2.0"), "per_hour=-2.0"),
        (PRICES.replace("per_hour", "perhour"), "perhour"),
        ("{", "Expecting"),
    ],
)
def test_prices_that_are_none_are_named(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(content)
    with pytest.raises(ValueError, match=rf"--prices .*prices.json: .*{complaint}"):
        Prices.read(tmp_path / "prices.json")


def test_an_hour_of_a_device_is_its_share_of_the_instance(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(PRICES)
    prices = Prices.read(tmp_path / "prices.json")
    assert prices.of_device_hour("gpu", gpu=True) == 0.5
    assert prices.of_device_hour("cpu", gpu=False) == 0.125
    with pytest.raises(ValueError, match="--instance gpuu: the prices have no such instance; did you mean 'gpu'"):
        prices.of_device_hour("gpuu", gpu=True)
    with pytest.raises(ValueError, match="--instance cpu: the prices give it no gpus"):
        prices.of_device_hour("cpu", gpu=True)


def test_a_budget_ends_when_all_devices_together_have_spent_it() -> None:
    budget = Budget(1.0, devices_per_cell=4)
    budget.spend(cells=2, seconds=400)
    with pytest.raises(BudgetSpent, match="--max-hours 1 are spent"):
        budget.spend(cells=2, seconds=50)
    with pytest.raises(ValueError, match="--max-hours 0"):
        Budget(0.0, devices_per_cell=1)
