"""How far is the study, and how long will it still take? Read from what its steps leave on disk, nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from orchestrator.experiment import Trial
from orchestrator.step import Step, walk
from orchestrator.store import ArtifactStore


@dataclass(frozen=True)
class StepProgress:
    """What a running step last said of itself (its progress.json)."""

    done: float
    total: float
    unit: str
    facts: Mapping[str, object]
    time: float

    @classmethod
    def read(cls, directory: Path) -> StepProgress | None:
        """The progress a step left in its directory; None when it said nothing yet."""
        try:
            said = json.loads((directory / "progress.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**said)


@dataclass
class Cell:
    """One trial of the study, as the watcher sees it."""

    trial: Trial
    steps: list[Step]
    finished: set[str] = field(default_factory=set)
    failed: str | None = None
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Every step has its record."""
        return len(self.finished) == len(self.steps)

    @property
    def current(self) -> Step | None:
        """The first step without a record."""
        return next((step for step in self.steps if step.key not in self.finished), None)


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
        """Notice the steps that were finished since the last look."""
        for cell in self.cells:
            while (step := cell.current) is not None and (record := self._store.record(step)) is not None:
                cell.finished.add(step.key)
                self._seconds.setdefault(step.name, []).append(record.seconds)

    def running(self) -> list[tuple[Cell, Step, StepProgress]]:
        """Cells at work, with what their current step last said in this run."""
        found = []
        for cell in self.cells:
            step = cell.current
            if step is None or cell.failed is not None:
                continue
            progress = StepProgress.read(self._store.path(step))
            if progress is not None and progress.time >= self._began:
                cell.seen.setdefault(step.key, (progress.time, progress.done))
                found.append((cell, step, progress))
        return found

    def seconds_left(self) -> float | None:
        """Estimated seconds until the study ends; None until the steps have shown how long they take."""
        open_cells = [cell for cell in self.cells if not cell.is_done and cell.failed is None]
        known = [seconds for cell in open_cells if (seconds := self._cell_seconds_left(cell)) is not None]
        if open_cells and not known:
            return None
        # A cell whose steps nobody has timed yet is taken to be like those that are known.
        total = sum(known) + fmean(known or [0.0]) * (len(open_cells) - len(known))
        # Cells side by side end with the longest of them, however many may run at once.
        return max(total / self._concurrent, max(known, default=0.0))

    def step_seconds_left(self, cell: Cell, step: Step, progress: StepProgress) -> float | None:
        """Seconds left of a running step at the speed seen since this watcher first saw it; None without a speed."""
        first_time, first_done = cell.seen.get(step.key, (progress.time, progress.done))
        advanced, elapsed = progress.done - first_done, progress.time - first_time
        if advanced <= 0 or elapsed <= 0:
            return self._typical(step)
        return max(progress.total - progress.done, 0.0) * elapsed / advanced - (time.time() - progress.time)

    def _cell_seconds_left(self, cell: Cell) -> float | None:
        """Time of the cell's remaining steps, as far as they have been timed; None when none has been."""
        expected = [self._expected(cell, step) for step in cell.steps if step.key not in cell.finished]
        timed = [max(seconds, 0.0) for seconds in expected if seconds is not None]
        return sum(timed) if timed else None

    def _expected(self, cell: Cell, step: Step) -> float | None:
        progress = StepProgress.read(self._store.path(step)) if step is cell.current else None
        if progress is None or progress.time < self._began:
            return self._typical(step)
        return self.step_seconds_left(cell, step, progress)

    def _typical(self, step: Step) -> float | None:
        known = self._seconds.get(step.name)
        return fmean(known) if known else None
