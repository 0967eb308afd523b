"""Where do metrics go first? To a file of their own, fsynced line by line; trackers read it at their leisure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import DamagedArtifact
from orchestrator.failpoints import failpoint
from orchestrator.files import naming
from orchestrator.lease import Fence, guarded


@dataclass(frozen=True)
class Point:
    """One value of one metric, with the time at which it was measured."""

    key: str
    value: float
    step: int
    time_ms: int


class Journal:
    """An append-only file of metrics with one writer. Opening it removes a line that a kill left half-written.

    Work that is resumed measures some steps again: what the journal has of them stays, so every step stands there once,
    with the time at which it was first measured, and what a tracker has read never changes.
    """

    def __init__(self, path: Path, *, fence: Fence | None = None) -> None:
        self._path, self._fence = path, fence
        self._last_step: int | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        with guarded(fence):
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)
        if lines := content[:whole].splitlines():
            self._last_step = json.loads(lines[-1])["step"]

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append the metrics of one step, later than those before; they are on disk when this returns.

        Nothing for a step up to the last one that was there when the journal was opened. Raises LeaseLost, and writes
        nothing, when the step's work was taken over by somebody else.
        """
        if self._last_step is not None and step <= self._last_step:
            return
        values = {key: _to_json(float(value)) for key, value in metrics.items()}
        line = json.dumps({"time_ms": time.time_ns() // 1_000_000, "step": step, "metrics": values})
        with guarded(self._fence), naming(self._path), self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            failpoint("journal.before-fsync")
            os.fsync(file.fileno())
        failpoint("journal.after-fsync")


def read_points(path: Path, *, from_line: int = 0) -> tuple[list[Point], int]:
    """The points from a line on, and the line to go on from; a half-written last line is left for the next call.

    Raises DamagedArtifact for a whole line that is not an entry.
    """
    lines = path.read_text().split("\n")[:-1]  # what follows the last newline is still being written
    points = []
    for number, line in enumerate(lines[from_line:], start=from_line):
        try:
            points += _points(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedArtifact(path, f"line {number + 1} is not a journal entry ({error})") from error
    return points, max(len(lines), from_line)


def _points(entry: Mapping[str, Any]) -> list[Point]:
    return [
        Point(key=key, value=float(value), step=entry["step"], time_ms=entry["time_ms"])
        for key, value in entry["metrics"].items()
    ]


def _to_json(value: float) -> float | str:
    return value if value - value == 0 else str(value)  # JSON has no nan and no inf
