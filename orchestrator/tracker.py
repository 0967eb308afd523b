"""What must a tracker be able to show? A study with its trials: parameters, curves, final numbers, files, a table.

Everything sent to a tracker can be read from the store, and can be sent again without doubling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from orchestrator.errors import PapertableError
from orchestrator.journal import Point
from orchestrator.step import DatasetFacts

Status = Literal["finished", "failed", "interrupted"]


class TrackerUnavailable(PapertableError):
    """The tracker does not answer. Nothing is lost: what it missed is sent when it does."""


@dataclass(frozen=True, kw_only=True)
class StudyInfo:
    """A study, as its parent run shows it."""

    name: str
    key: str
    title: str
    question: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TrialInfo:
    """A trial, as its child run shows it."""

    key: str
    """By what the other calls name it."""
    identity: str
    """What its numbers are made of: with another one it is another run."""
    name: str
    variant: str
    seed: int
    params: Mapping[str, Any]
    tags: Mapping[str, str]


class Tracker(Protocol):
    """One writer: the driver of the study. Every method may raise TrackerUnavailable."""

    def open_study(self, study: StudyInfo) -> None:
        """Find or create the parent run."""

    def open_trial(self, trial: TrialInfo) -> None:
        """Find or create the child run."""

    def is_complete(self, trial_key: str, digest: str) -> bool:
        """Whether the trial was finished with this digest, so that nothing of it need be sent again."""

    def send_points(self, trial_key: str, points: Sequence[Point]) -> None:
        """Curves, steps ascending. A step that a curve has already is left out: a resumed trainer measures it anew."""

    def finish_trial(
        self, trial_key: str, *, status: Status, metrics: Mapping[str, float], notes: Sequence[str],
        files: Mapping[str, Path], digest: str, datasets: Sequence[tuple[str, DatasetFacts]] = (),
        protocols: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Final numbers and files (name in the tracker -> file), and the data sets with the URIs they are at.

        protocols: metric -> fingerprint of how it was measured.
        """

    def finish_study(
        self, *, status: Status, table_records: list[dict[str, Any]], files: Mapping[str, Path], tags: Mapping[str, str]
    ) -> None:
        """The table, as the tracker shows tables, and its files."""

    def how_to_look(self) -> str:
        """The command or address a person opens."""
