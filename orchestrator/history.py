"""How often was a step begun, and taken up again? A line for each time, for people: no computation reads it."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

HISTORY_FILE = "history.jsonl"


class History:
    """The times work on a step began, in its directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / HISTORY_FILE
        self.recoveries = _begun(self._file)
        """How often work on it had begun before."""

    def add(self, *, resumed_at: int, workers: int, damage: Sequence[str]) -> None:
        """Note that work begins, on a clock of the step's own."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "workers": workers,
            "resumed_at": resumed_at,
            "damage": list(damage),
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def recoveries(directory: Path) -> int | None:
    """How often work on a step was taken up again; None where it keeps no history."""
    begun = _begun(directory / HISTORY_FILE)
    return begun - 1 if begun else None


def _begun(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
