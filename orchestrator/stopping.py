"""How does work on other machines learn that it should end? By a file in its step's directory, which it looks for."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import PapertableError

STOP_FILE = "stop"


class Preempted(PapertableError):
    """Work ended because it was asked to, with all of its state kept: the same command goes on."""

    exit_code = 75


def ask_to_stop(directory: Path) -> None:
    """Ask whoever works on a step to keep its state and end; nothing where the step has not begun."""
    if directory.is_dir():
        (directory / STOP_FILE).touch()


def asked_to_stop(directory: Path) -> bool:
    """Whether somebody has, since the step was begun or taken up again."""
    return (directory / STOP_FILE).exists()


def begin(directory: Path) -> None:
    """Forget what was asked of an earlier run of the step."""
    (directory / STOP_FILE).unlink(missing_ok=True)
