"""How does the tracker learn what happened? One sender reads the journals and records; the work never waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.config import fingerprint, flatten, to_dict
from orchestrator.errors import PapertableError
from orchestrator.experiment import Experiment, Trial
from orchestrator.journal import read_points
from orchestrator.materialize import pending
from orchestrator.protocols import protocol_fingerprint
from orchestrator.provenance import provenance
from orchestrator.step import JOURNAL_FILE, Step, walk
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable
from orchestrator.tracker import StudyInfo, Tracker, TrackerUnavailable, TrialInfo

SEND_SECONDS = 3.0


class TrackerFeed:
    """Sends a study to the tracker while it runs, in a thread of its own, and completes it at the end.

    Everything it sends can be sent again without doubling, so what an outage held back goes out with the next call.
    """

    def __init__(
        self,
        tracker: Tracker,
        experiment: Experiment[Any],
        plans: Mapping[Trial, Mapping[str, Step]],
        store: ArtifactStore,
        attachments: Sequence[tuple[str, str]],
        *,
        is_tracked: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._tracker = tracker
        self._experiment = experiment
        self._plans = plans
        self._store = store
        self._attachments = attachments
        self._is_tracked = is_tracked
        self._study_is_open = False
        self._opened: set[str] = set()
        self._lines: dict[tuple[str, Path], int] = {}  # rows that share a training both show its curve
        self._complete: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._trouble: str | None = None

    def check(self) -> str | None:
        """Why the tracker does not answer now, or None. Raises PreflightError for one that never will."""
        try:
            self._open_study()
        except TrackerUnavailable as error:
            return str(error)
        return None

    def __enter__(self) -> TrackerFeed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None:
            self._attempt(self._interrupted)

    def finish(self, table: ComparisonTable, files: Mapping[str, Path], failed: Mapping[str, str]) -> str | None:
        """Send what is left and the table; returns why something could not be sent, or None.

        failed: trial.key -> why it ended without a result. One that is neither there nor done was interrupted.
        """
        self._stop.set()
        self._thread.join()

        def complete() -> None:
            self._send()
            for trial in self._plans:
                if trial.key in failed:
                    self._finish_failed(trial, failed[trial.key])
                elif trial.key not in self._complete:
                    self._finish_interrupted(trial)
            self._tracker.finish_study(
                status="failed" if failed else "interrupted" if table.any_failed else "finished",
                table_records=table.records(),
                files=files,
                tags={"papertable.seeds": ",".join(map(str, self._experiment.seeds))},
            )

        self._attempt(complete)
        return self._trouble

    def _run(self) -> None:
        while True:
            self._attempt(self._send)
            if self._stop.wait(SEND_SECONDS):
                return

    def _attempt(self, send: Any) -> None:
        try:
            send()
            self._trouble = None
        except (PapertableError, OSError, ValueError) as error:
            self._trouble = str(error)  # the journals keep it all; the next attempt, or the next call, sends it

    def _send(self) -> None:
        self._open()
        for trial, steps in self._plans.items():
            if trial.key in self._complete:
                continue
            done = not pending(steps.values(), self._store)
            if done and self._tracker.is_complete(trial.key, self._digest(trial)):
                self._complete.add(trial.key)
                continue
            self._send_points(trial, steps)
            if done:
                self._finish_done(trial, steps)

    def _open_study(self) -> None:
        experiment = self._experiment
        self._tracker.open_study(
            StudyInfo(
                name=experiment.name,
                key=experiment.key(),
                title=experiment.title,
                question=experiment.question,
                params=flatten(experiment.base),
                tags={f"papertable.{key}": str(value) for key, value in provenance().items()},
            )
        )
        self._study_is_open = True

    def _open(self) -> None:
        if not self._study_is_open:
            self._open_study()
        for trial, steps in self._plans.items():
            if trial.key not in self._opened:
                self._tracker.open_trial(
                    TrialInfo(
                        key=trial.key,
                        identity=fingerprint(sorted(step.key for step in steps.values())),
                        name=trial.name,
                        variant=trial.variant,
                        seed=trial.seed,
                        params=flatten(trial.config),
                        tags={},
                    )
                )
                self._opened.add(trial.key)

    def _send_points(self, trial: Trial, steps: Mapping[str, Step]) -> None:
        for step in walk(steps.values()):
            journal = self._store.path(step) / JOURNAL_FILE
            if not journal.is_file():
                continue
            place = (trial.key, journal)
            points, following = read_points(journal, from_line=self._lines.get(place, 0))
            if points:
                named = [replace(point, key=f"{step.prefix}{point.key}") for point in points]
                self._tracker.send_points(trial.key, [point for point in named if self._is_tracked(point.key)])
            self._lines[place] = following

    def _finish_done(self, trial: Trial, steps: Mapping[str, Step]) -> None:
        said = self._store.all_metrics(walk(steps.values()))
        files = {file: self._store.path(steps[role]) / file for role, file in self._attachments}
        self._tracker.finish_trial(
            trial.key,
            status="finished",
            metrics={name: value for name, value in said.metrics.items() if self._is_tracked(name)},
            protocols={metric: protocol_fingerprint(protocol) for metric, protocol in said.protocol.items()},
            notes=said.notes,
            files=files,
            digest=self._digest(trial),
            datasets=said.datasets,
        )
        self._complete.add(trial.key)

    def _finish_failed(self, trial: Trial, reason: str) -> None:
        self._tracker.finish_trial(trial.key, status="failed", metrics={}, notes=[reason], files={}, digest="")

    def _finish_interrupted(self, trial: Trial) -> None:
        self._tracker.finish_trial(
            trial.key, status="interrupted", metrics={}, notes=["interrupted"], files={}, digest=""
        )

    def _interrupted(self) -> None:
        self._open()
        for trial in self._plans:
            if trial.key not in self._complete:
                self._finish_interrupted(trial)
        self._tracker.finish_study(status="interrupted", table_records=[], files={}, tags={})

    def _digest(self, trial: Trial) -> str:
        steps = walk(self._plans[trial].values())
        records = {step.key: self._store.record(step) for step in steps}
        return fingerprint({key: to_dict(record) for key, record in records.items() if record is not None})
