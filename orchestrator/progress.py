"""How far is the study, and how long will it still take? Read from what its steps leave on disk, nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.experiment import Trial
from orchestrator.step import FAILURE_FILE, PROGRESS_FILE, Step, walk
from orchestrator.store import ArtifactStore


@dataclass(frozen=True)
class StepProgress:
    """What a running step last said of itself (its progress.json); a total of 0 while it only starts."""

    done: float
    total: float
    unit: str
    facts: Mapping[str, object]
    time: float

    @classmethod
    def read(cls, directory: Path) -> StepProgress | None:
        """The progress a step left in its directory; None when it said nothing yet."""
        said = _said(directory / PROGRESS_FILE)
        return None if said is None else cls(**said)


@dataclass
class Cell:
    """One trial of the study, as the watcher sees it."""

    trial: Trial
    steps: list[Step]
    finished: set[str] = field(default_factory=set)
    failed: str | None = None
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Step -> (time, done) when it was first seen at work."""

    @property
    def is_done(self) -> bool:
        """Every step has its record."""
        return len(self.finished) == len(self.steps)

    @property
    def current(self) -> Step | None:
        """The first step without a record."""
        return next((step for step in self.steps if step.key not in self.finished), None)

    def to_do(self) -> list[Step]:
        """The steps that still have to run, in their order: none of a cell that failed."""
        return [] if self.failed is not None else [s for s in self.steps if s.key not in self.finished]


@dataclass(frozen=True)
class TimeLeft:
    """An estimate; a lower bound while some kind of step has not been seen at work."""

    seconds: float
    is_lower_bound: bool


class Watcher:
    """Follows the cells of a study through the store and estimates the time left."""

    def __init__(self, store: ArtifactStore, plans: Mapping[Trial, Sequence[Step]], *, concurrent: int) -> None:
        self._store = store
        self._concurrent = concurrent
        self._seconds: dict[str, list[float]] = {}
        self._began = time.time()
        self.cells = [Cell(trial, walk(steps)) for trial, steps in plans.items()]
        self.look()

    def look(self) -> None:
        """Notice the steps that finished or failed since the last look."""
        for cell in self.cells:
            while (step := cell.current) is not None and (record := self._store.record(step)) is not None:
                cell.finished.add(step.key)
                self._seconds.setdefault(step.name, []).append(record.seconds)
            cell.failed = None if step is None else self._failure(step)

    def running(self) -> list[tuple[Cell, Step, StepProgress]]:
        """Cells at work, with what their current step last said in this run."""
        found = []
        for cell in self.cells:
            step = cell.current
            if step is None or cell.failed is not None:
                continue
            progress = StepProgress.read(self._store.path(step))
            if progress is not None and progress.time >= self._began:
                if progress.total:
                    cell.seen.setdefault(step.key, (progress.time, progress.done))
                found.append((cell, step, progress))
        return found

    def time_left(self) -> TimeLeft | None:
        """Until the study ends, from how long steps took or will take; None when nothing is known of those to come."""
        running = {cell.trial: (step, progress) for cell, step, progress in self.running()}
        whole = self._whole_seconds()
        cells: list[float] = []
        unknown = 0
        for cell in self.cells:
            expected = [self._expected(cell, step, running.get(cell.trial), whole) for step in cell.to_do()]
            known = [max(seconds, 0.0) for seconds in expected if seconds is not None]
            unknown += len(expected) - len(known)
            cells.append(sum(known))
        if unknown and not any(cells):
            return None
        # Cells side by side end with the longest of them, however many may run at once.
        return TimeLeft(max(sum(cells) / self._concurrent, max(cells)), is_lower_bound=unknown > 0)

    def step_seconds_left(self, cell: Cell, step: Step, progress: StepProgress) -> float | None:
        """Seconds left of a running step at the speed seen since this watcher first saw it; None without a speed."""
        pace = _pace(cell, step, progress)
        if pace is None:
            return None
        return max(progress.total - progress.done, 0.0) * pace - (time.time() - progress.time)

    def _failure(self, step: Step) -> str | None:
        """Why a step failed in this run; None when it did not."""
        return failure(self._store.path(step), since=self._began)

    def _expected(
        self, cell: Cell, step: Step, running: tuple[Step, StepProgress] | None, whole: Mapping[str, float]
    ) -> float | None:
        """Seconds a step that is not done still takes."""
        if running is not None and running[0] is step:
            left = self.step_seconds_left(cell, *running)
            if left is not None:
                return left
        return whole.get(step.name)

    def _whole_seconds(self) -> dict[str, float]:
        """Seconds a whole step takes, by its name: as long as it took, else as long as those at work will take."""
        paces: dict[str, list[float]] = {}
        for cell, step, progress in self.running():
            pace = _pace(cell, step, progress)
            if pace is not None:
                paces.setdefault(step.name, []).append(pace * progress.total)
        return {name: fmean(seconds) for name, seconds in {**paces, **self._seconds}.items()}


def _pace(cell: Cell, step: Step, progress: StepProgress) -> float | None:
    """Seconds a unit since the step was first seen in this run; None when it has not advanced since."""
    first_time, first_done = cell.seen.get(step.key, (progress.time, progress.done))
    advanced, elapsed = progress.done - first_done, progress.time - first_time
    return elapsed / advanced if advanced > 0 and elapsed > 0 else None


def failure(directory: Path, *, since: float = 0.0) -> str | None:
    """Why a step last failed, where it did so since a time and has not begun again; else None."""
    said = _said(directory / FAILURE_FILE)
    return said["reason"] if said is not None and said["time"] >= since else None


def _said(file: Path) -> dict[str, Any] | None:
    """None where there is nothing, or what a power cut left of it: it is written without waiting for the disk."""
    try:
        said: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return said
