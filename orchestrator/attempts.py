"""How long was a step worked at, also by attempts that were stopped or killed? Kept beside its work until its record.

The record says the seconds of the attempt that led to it, and those of all together.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.errors import LeaseLost
from orchestrator.files import write_whole
from orchestrator.lease import Fence
from orchestrator.step import PROGRESS_FILE

ATTEMPTS_FILE = "attempts.json"


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """At one step that has no record yet."""

    seconds: float = 0.0
    """Of those that ended."""
    began: float | None = None
    """Seconds since the epoch: of one that is at work, or was killed."""

    @classmethod
    def read(cls, directory: Path) -> Attempts:
        """None at all where nothing is there, or what a power cut left of it."""
        try:
            return cls(**json.loads((directory / ATTEMPTS_FILE).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def total(self, directory: Path, *, at_work: bool) -> float:
        """Seconds until now; of an attempt that was killed, until it last said how far it was."""
        if self.began is None:
            return self.seconds
        return self.seconds + max(0.0, (time.time() if at_work else _last_word(directory)) - self.began)


def begin(directory: Path, fence: Fence) -> Attempts:
    """Note that an attempt begins. Called before it says how far it is."""
    before = Attempts.read(directory)
    attempts = Attempts(seconds=before.total(directory, at_work=False), began=time.time())
    _write(directory, attempts, fence)
    return attempts


def end(directory: Path, attempts: Attempts, fence: Fence) -> None:
    """Note that it ended without a record; on a full disk, and where others have taken over, nothing is noted."""
    with suppress(OSError, LeaseLost):
        _write(directory, replace(attempts, seconds=attempts.total(directory, at_work=True), began=None), fence)


def _write(directory: Path, attempts: Attempts, fence: Fence) -> None:
    with fence.guard():
        write_whole(directory / ATTEMPTS_FILE, json.dumps(asdict(attempts)))


def _last_word(directory: Path) -> float:
    try:
        return float(json.loads((directory / PROGRESS_FILE).read_text())["time"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0.0
