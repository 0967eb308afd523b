"""How far a study is can be read from its files, whoever runs it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.errors import StepFailed
from orchestrator.experiment import Trial
from orchestrator.lease import hold
from orchestrator.materialize import lease_of, materialize
from orchestrator.progress import StepProgress
from orchestrator.status import seconds_left, status, to_text
from orchestrator.step import Resources, Step, StepContext, write_progress
from orchestrator.store import ArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    row: str
    seed: int = 0


def work(config: Config, ctx: StepContext) -> None:
    ctx.progress(done=3, total=8, unit="img", loss=0.5)
    if config.row == "fails":
        raise RuntimeError("no luck\nat all")
    if config.row == "stopped":
        raise KeyboardInterrupt
    ctx.write_metrics({})


ROWS = ("done", "fails", "stopped", "at work", "waits")


def test_every_cell_is_in_the_state_its_files_say(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    plans = {
        Trial(row, 0, Config(row=row)): {
            "train": Step(name="train", version=1, config=Config(row=row), inputs={}, run=work)
        }
        for row in ROWS
    }
    steps = {trial.variant: of["train"] for trial, of in plans.items()}

    def run(row: str) -> None:
        materialize([steps[row]], store, backend=LocalBackend(), resources=Resources())

    run("done")
    with pytest.raises(StepFailed):
        run("fails")
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    (store.path(steps["at work"])).mkdir(parents=True)
    write_progress(
        store.path(steps["at work"]),
        done=100,
        total=400,
        unit="img",
        facts={"img/s": 0.5, "saved": 64, "recoveries": 1},
    )
    with hold(lease_of(steps["at work"], store), "step"):
        found = status(plans, store)
    assert {cell.trial.variant: cell.state for cell in found} == {
        "done": "done", "fails": "failed", "stopped": "stopped", "at work": "at work", "waits": "waiting",
    }  # fmt: skip
    said = {cell.trial.variant: cell.what for cell in found}
    assert said["fails"] == "train: RuntimeError: no luck"
    assert said["stopped"].startswith("train  3/8 img  loss 0.5  (said 0:00:0")
    assert said["at work"].startswith("train  100/400 img  img/s 0.5  saved 64  recoveries 1  ETA 0:")
    assert "ETA" not in said["stopped"]
    assert to_text(found).splitlines()[-1] == "5 cells: 1 done, 1 at work, 1 stopped, 1 failed, 1 waiting"


def test_the_time_left_is_that_of_the_speed_a_step_said_when_it_said_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_010.0)
    said = StepProgress(done=100, total=400, unit="img", facts={"img/s": 5.0}, time=1_000.0)
    assert seconds_left(said) == pytest.approx(300 / 5 - 10)
    assert seconds_left(replace(said, facts={})) is None
    assert seconds_left(replace(said, facts={"img/s": 0.0})) is None


def test_asking_touches_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    step = Step(name="train", version=1, config=Config(row="a"), inputs={}, run=work)
    status({Trial("a", 0, Config(row="a")): {"train": step}}, store)
    assert not store.root.exists()
