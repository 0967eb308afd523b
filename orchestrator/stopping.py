"""How does work on other machines learn that it should end? By a file in its step's directory, which it looks for.

Work that can keep its state listens; other work is simply ended. A notice of a spot machine's end is some seconds old
when all state must be kept. Commands that share a store know their own work from that of others by a name, began_by.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import LeaseLost, PapertableError
from orchestrator.files import write_whole
from orchestrator.lease import Fence

STOP_FILE = "stop"
LISTENING_FILE = "listening"
POLL_SECONDS = 0.1


class Preempted(PapertableError):
    """Work ended because it was asked to, with all of its state kept: the same command goes on."""

    exit_code = 75


@contextmanager
def listening(directory: Path, *, began_by: str, fence: Fence) -> Iterator[None]:
    """Within the block, the command that began this work can ask it to stop, and waits for its end.

    What was asked before is forgotten. Raises LeaseLost when others have taken the work over: they listen then.
    """
    with fence.guard():
        (directory / STOP_FILE).unlink(missing_ok=True)
        write_whole(directory / LISTENING_FILE, began_by)
    try:
        yield
    finally:
        with suppress(LeaseLost, OSError), fence.guard():
            (directory / LISTENING_FILE).unlink(missing_ok=True)


def ask_to_stop(directory: Path, *, began_by: str) -> None:
    """Ask the work of a step to keep its state and end, if it listens and that command began it."""
    if _said(directory / LISTENING_FILE) == began_by:
        write_whole(directory / STOP_FILE, began_by)


def asked_to_stop(directory: Path, *, began_by: str) -> bool:
    """Whether it has been asked so since it began to listen."""
    return _said(directory / STOP_FILE) == began_by


def stop_all(directories: Iterable[Path], *, began_by: str, seconds: float) -> None:
    """Ask what that command began and what listens to keep its state and end; wait for it, for at most so long.

    What begins to listen meanwhile is asked, too: what a killed process left is followed by one that forgot.
    """
    watched, deadline = list(directories), time.monotonic() + seconds
    while at_work := [directory for directory in watched if _said(directory / LISTENING_FILE) == began_by]:
        for directory in at_work:
            if not asked_to_stop(directory, began_by=began_by):
                ask_to_stop(directory, began_by=began_by)
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL_SECONDS)


def _said(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
