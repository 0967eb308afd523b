"""How far a study is can be read from its files, whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.errors import StepFailed
from orchestrator.experiment import Trial
from orchestrator.lease import hold
from orchestrator.materialize import lease_of, materialize
from orchestrator.status import status, to_text
from orchestrator.step import Resources, Step, StepContext
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
    with hold(lease_of(steps["at work"], store), "step"):
        found = status(plans, store)
    assert {cell.trial.variant: cell.state for cell in found} == {
        "done": "done", "fails": "failed", "stopped": "stopped", "at work": "at work", "waits": "waiting",
    }  # fmt: skip
    said = {cell.trial.variant: cell.what for cell in found}
    assert said["fails"] == "train: RuntimeError: no luck"
    assert said["stopped"].startswith("train  3/8 img  loss 0.5  (said 0:00:0")
    assert to_text(found).splitlines()[-1] == "5 cells: 1 done, 1 at work, 1 stopped, 1 failed, 1 waiting"
