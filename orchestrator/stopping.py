"""How does work on other machines learn that it should end? By a file in its step's directory, which it looks for.

Work that can keep its state listens; other work is simply ended. A notice of a spot machine's end is some seconds old
when all state must be kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import PapertableError

STOP_FILE = "stop"
LISTENING_FILE = "listening"
POLL_SECONDS = 0.1


class Preempted(PapertableError):
    """Work ended because it was asked to, with all of its state kept: the same command goes on."""

    exit_code = 75


@contextmanager
def listening(directory: Path) -> Iterator[None]:
    """Within the block, whoever asks this step to stop waits for its end. What was asked before is forgotten."""
    (directory / STOP_FILE).unlink(missing_ok=True)
    (directory / LISTENING_FILE).touch()
    try:
        yield
    finally:
        (directory / LISTENING_FILE).unlink(missing_ok=True)


def ask_to_stop(directory: Path) -> None:
    """Ask a step that listens to keep its state and end."""
    (directory / STOP_FILE).touch()


def asked_to_stop(directory: Path) -> bool:
    """Whether somebody has, since this step began to listen."""
    return (directory / STOP_FILE).exists()


def stop_all(directories: Iterable[Path], *, seconds: float) -> None:
    """Ask the steps that listen to keep their state and end, and wait until they have, for at most so long.

    Those that begin to listen meanwhile are asked, too: what a killed process left is followed by one that forgot.
    """
    watched, deadline = list(directories), time.monotonic() + seconds
    while at_work := [directory for directory in watched if (directory / LISTENING_FILE).exists()]:
        for directory in at_work:
            ask_to_stop(directory)
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL_SECONDS)
