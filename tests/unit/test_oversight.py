"""Before a study runs it is asked for on a terminal alone; afterwards its forecast is set beside what it took."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.budget import BudgetReached, Cap
from orchestrator.experiment import Trial
from orchestrator.planner import Estimate, plan_study
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines import oversight
from pipelines.calibration import Calibration
from pipelines.forecast import Forecast
from pipelines.oversight import Declined, Limits, StudyOversight
from tests.unit.test_experiment import Config

DATA = Step(name="dataset", version=1, config=Config(), inputs={}, run=lambda config, ctx: None)
ONE, TWO = (
    Step(name="train", version=1, config=Config(depth=depth), inputs={"dataset": DATA}, run=lambda config, ctx: None)
    for depth in (1, 2)
)
MISSING = {Trial("one", 0, Config(depth=1)): [ONE], Trial("two", 0, Config(depth=2)): [TWO]}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Launcher:
    concurrent, backend, start_seconds = 1, None, None


def forecast_of(*_: Any, **__: Any) -> Forecast:
    estimates = {
        step.key: Estimate(kind="training", seconds=seconds, cpus=1, gpus=0, bytes=1)
        for step, seconds in ((ONE, 10.0), (TWO, 20.0))
    }
    calibration = Calibration(
        timings={}, tried=frozenset(), worker_start_seconds=1, training_start_seconds=1, assumed=(), side_by_side=1,
        seconds=1,
    )  # fmt: skip
    return Forecast(
        plan=plan_study([[ONE.key], [TWO.key]], estimates, concurrent=1), estimates=estimates, calibration=calibration,
        steps={ONE.key: ONE, TWO.key: TWO}, work={}, unknown=("other",), concurrent=1, resources=Resources(),
        price=None,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def begin(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyOversight]:
    monkeypatch.setattr(oversight, "planned", forecast_of)

    def begun(typed: io.StringIO, *, yes: bool = False, cap: Cap | None = None) -> StudyOversight:
        monkeypatch.setattr("sys.stdin", typed)
        one = StudyOversight(
            [ONE, TWO], store, Resources(), Limits(cap=cap or Cap()), folder=tmp_path / "study", yes=yes
        )
        one.begin(MISSING, Launcher())  # type: ignore[arg-type]
        one.end()
        return one

    return begun


@pytest.mark.parametrize(
    ("answer", "runs"), [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_on_a_terminal_nothing_but_yes_runs_the_study(
    answer: str, runs: bool, begin: Callable[..., StudyOversight], capsys: pytest.CaptureFixture
) -> None:
    if runs:
        begin(Terminal(answer))
    else:
        with pytest.raises(Declined, match="nothing was run"):
            begin(Terminal(answer))
    said = capsys.readouterr().err
    assert said.index("2 to train") < said.index("Run it? [y/N]")
    assert "not in the plan, since nothing is known of them: other" in said


def test_elsewhere_and_with_yes_the_plan_is_told_and_nothing_asked(
    begin: Callable[..., StudyOversight], capsys: pytest.CaptureFixture
) -> None:
    begin(io.StringIO())
    begin(Terminal(), yes=True)
    said = capsys.readouterr().err
    assert said.count("2 to train") == 2
    assert "Run it?" not in said


def test_a_cap_that_earlier_runs_have_reached_stops_before_anything_is_tried(
    store: ArtifactStore, begin: Callable[..., StudyOversight], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.path(ONE).mkdir(parents=True)
    store.commit(ONE, seconds=3600.0, provenance={}, spent={"seconds": 7200.0, "cpus": 1, "gpus": 0})
    monkeypatch.setattr(oversight, "planned", lambda *_, **__: pytest.fail("it was tried"))
    with pytest.raises(BudgetReached, match=r"2\.000 CPU-hours are spent"):
        begin(Terminal(), cap=Cap(device_hours=1.5))


def test_what_ran_is_compared_and_every_run_is_kept(
    store: ArtifactStore, begin: Callable[..., StudyOversight], tmp_path: Path
) -> None:
    for step, seconds in ((ONE, 12.5), (TWO, 20.0)):
        store.path(step).mkdir(parents=True)
        store.commit(step, seconds=seconds, provenance={})
        told = begin(io.StringIO()).told()
    assert told.splitlines()[2].split() == ["all", "30s", "32s", "-8%"]
    first, second = json.loads((tmp_path / "study" / "forecast.json").read_text())
    assert [(row["what"], row["forecast"], row["actual"]) for row in first["compared"]] == [
        ("training", 10.0, 12.5), ("all", 10.0, 12.5),
    ]  # fmt: skip
    assert [row["what"] for row in second["compared"]] == ["training", "all", "time"]
    assert second["plan"]["device_seconds"] == {"training": 30.0}


def test_where_nothing_was_to_run_nothing_is_told(store: ArtifactStore, tmp_path: Path) -> None:
    one = StudyOversight([ONE], store, Resources(), Limits(cap=Cap()), folder=tmp_path, yes=False)
    assert one.told() == ""
    assert list(tmp_path.iterdir()) == []
