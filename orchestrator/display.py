"""What does a person see while a study runs? One line for each cell at work, one for the study, with the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.experiment import Experiment
from orchestrator.progress import Cell, StepProgress, TimeLeft, Watcher
from orchestrator.step import Step

LINES_SECONDS = 10.0


class _Lines:
    """Lines that are redrawn on a terminal; elsewhere (a job's log) they are printed every ten seconds."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live: Live | None = None
        self._printed = -math.inf

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._live = Live(console=Console(file=self._stream), refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream, flush=True)

    def _show(self, lines: Callable[[], str], *, now: bool = False) -> None:
        if self._live is not None:
            self._live.update(Text(lines()))
        elif now or time.monotonic() - self._printed >= LINES_SECONDS:
            self.say(lines())
            self._printed = time.monotonic()


class Display(_Lines):
    """A study's: also when a cell ends."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        super().__init__(stream)
        self._ended = 0
        self._began = time.monotonic()

    def begin(self, experiment: Experiment[Any], *, total: int, waiting: int) -> None:
        """Say what is about to run."""
        done = f", {total - waiting} done before" if waiting < total else ""
        self.say(f"{experiment.name}: {waiting} of {total} cells to run{done}")

    def show(self, watcher: Watcher, *, last: bool = False) -> None:
        """Show the state of the study, if it is time to."""
        ended = sum(cell.is_done or cell.failed is not None for cell in watcher.cells)
        self._show(lambda: "\n".join(self._lines(watcher)), now=last or ended > self._ended)
        self._ended = ended

    def _lines(self, watcher: Watcher) -> list[str]:
        running, left = watcher.running(), watcher.time_left()
        lines = [
            cell_line(cell, step, said, watcher.step_seconds_left(cell, step, said)) for cell, step, said in running
        ]
        failed = [cell for cell in watcher.cells if cell.failed is not None]
        lines += [f"  {cell.trial.name:<34} FAILED: {cell.failed}" for cell in failed]
        done = sum(cell.is_done for cell in watcher.cells)
        lines.append(
            f"study: {done}/{len(watcher.cells)} cells done, {len(running)} at work, "
            f"{f'{len(failed)} failed, ' if failed else ''}"
            f"{duration(time.monotonic() - self._began)} so far, "
            f"{_left(left)}"
        )
        return lines


class StepDisplay(_Lines):
    """One line for a step that runs by itself."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        super().__init__(stream)
        self._printed = time.monotonic()  # a short step needs none
        self._first: tuple[str, float, float] | None = None
        """Step, time and how far it was when it was first seen at work."""

    def show(self, step: Step, said: StepProgress | None) -> None:
        """Show how far the step is, if it is time to."""
        if said is not None:
            left = self._seconds_left(step, said)
            self._show(lambda: f"{step.name:<9} {step_facts(said, left)}")

    def _seconds_left(self, step: Step, said: StepProgress) -> float | None:
        if self._first is None or self._first[0] != step.key:
            self._first = (step.key, said.time, said.done) if said.total else None
            return None
        seconds, done = said.time - self._first[1], said.done - self._first[2]
        return seconds / done * (said.total - said.done) if done > 0 else None


def step_facts(said: StepProgress, seconds_left: float | None) -> str:
    """How far a step is, such as "12800/76800 img  loss 0.41  img/s 310  saved 12160  ETA 0:00:42"."""
    facts = [f"{said.done:.0f}/{said.total:.0f} {said.unit}" if said.total else "starting"]
    facts += [f"{key} {value}" for key, value in said.facts.items()]
    facts += [] if seconds_left is None else [f"ETA {duration(seconds_left)}"]
    return "  ".join(facts)


def cell_line(cell: Cell, step: Step, said: StepProgress, seconds_left: float | None) -> str:
    """One cell at work, such as "  4K cosine hybrid · seed 0  train 12800/76800 img  loss 0.41  ETA 0:42"."""
    return f"  {cell.trial.name:<34} {step.name:<9} {step_facts(said, seconds_left)}"


def _left(left: TimeLeft | None) -> str:
    if left is None:
        return "time left not known yet"
    return f"{'at least' if left.is_lower_bound else 'about'} {duration(left.seconds)} left"


def duration(seconds: float) -> str:
    """h:mm:ss without fractions."""
    return str(timedelta(seconds=round(max(seconds, 0.0))))
