"""How far is a study, asked from another terminal? From what its steps leave on disk; nothing is touched."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.display import duration, step_facts
from orchestrator.experiment import Trial
from orchestrator.lease import is_at_work
from orchestrator.materialize import lease_of, pending
from orchestrator.progress import StepProgress, failure
from orchestrator.step import Step
from orchestrator.store import ArtifactStore

State = Literal["done", "at work", "stopped", "failed", "waiting"]


@dataclass(frozen=True)
class CellStatus:
    """One cell, as its files have it."""

    trial: Trial
    state: State
    what: str
    """The step it is at, and how far that is; why it failed; nothing of one that is done or waits."""


def status(plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore) -> list[CellStatus]:
    """Every cell in the study's order. stopped: begun, and nobody is at it now."""
    return [_status(trial, list(steps.values()), store) for trial, steps in plans.items()]


def _status(trial: Trial, steps: Sequence[Step], store: ArtifactStore) -> CellStatus:
    missing = pending(steps, store)
    if not missing:
        return CellStatus(trial, "done", "")
    at_work = next((step for step in missing if is_at_work(lease_of(step, store))), None)
    if at_work is not None:
        said = StepProgress.read(store.path(at_work))
        return CellStatus(trial, "at work", _far(at_work, said, None if said is None else seconds_left(said)))
    for step in missing:
        if (why := failure(store.path(step))) is not None:
            return CellStatus(trial, "failed", f"{step.name}: {why.partition(chr(10))[0]}")
    for step in missing:
        if (said := StepProgress.read(store.path(step))) is not None:
            return CellStatus(trial, "stopped", _far(step, said, None))
    return CellStatus(trial, "waiting", "")


def seconds_left(said: StepProgress) -> float | None:
    """Of a step at work, at the speed that it said; None where it said none."""
    speed = said.facts.get(f"{said.unit}/s")
    if not isinstance(speed, int | float) or speed <= 0:
        return None
    return (said.total - said.done) / speed - (time.time() - said.time)


def _far(step: Step, said: StepProgress | None, left: float | None) -> str:
    if said is None:
        return f"{step.name}  starting"
    return f"{step.name}  {step_facts(said, left)}  (said {duration(time.time() - said.time)} ago)"


def to_text(cells: Sequence[CellStatus]) -> str:
    """A line a cell, and one for all."""
    lines = [f"{cell.trial.name:<40} {cell.state:<8} {cell.what}".rstrip() for cell in cells]
    counts = {state: sum(cell.state == state for cell in cells) for state in get_args(State)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"{len(cells)} cells: {told}"])
