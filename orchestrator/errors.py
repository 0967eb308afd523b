"""What can go wrong that a user should hear about, and which exit code says so?

A bad configuration is a plain ValueError (exit code 2).
"""

from __future__ import annotations

import signal
from pathlib import Path


class PapertableError(Exception):
    """An error with a message for people, and the exit code a command ends with."""

    exit_code = 1


class PreflightError(PapertableError):
    """Something the run needs is not there; found before any worker starts."""

    exit_code = 3


class DamagedArtifact(PapertableError):
    """A stored file, or an object at a URL, is not what was written."""

    exit_code = 3

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what

    def __reduce__(self) -> tuple[type[DamagedArtifact], tuple[Path | str, str]]:
        return type(self), (self.path, self.what)


class StepFailed(PapertableError):
    """A step raised; its directory is kept as it was."""

    exit_code = 4

    def __init__(self, step_key: str, path: Path, reason: str) -> None:
        super().__init__(f"{reason} (step {step_key}, whose files are in {path})")
        self.step_key = step_key
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[StepFailed], tuple[str, Path, str]]:
        return type(self), (self.step_key, self.path, self.reason)


class StepBusy(PapertableError):
    """Somebody else held a step for longer than we wait."""

    exit_code = 3


class LeaseLost(PapertableError):
    """Somebody else took a step over while its owner was not heard of; the former owner may write nothing more."""

    exit_code = 3


class GateHeld(PapertableError, TimeoutError):
    """Another process stayed for a minute where a moment is enough, with a file that we have to change."""

    exit_code = 3


class CheckpointsTaken(PapertableError):
    """Another process keeps its checkpoints where this one did."""

    exit_code = 3


class Interrupted(BaseException):
    """A signal asked us to stop; the same command goes on. No Exception: libraries catch those and go on."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; run the same command again to go on")
        self.signum = signum
        self.exit_code = 75 if signum == signal.SIGTERM else 128 + signum
