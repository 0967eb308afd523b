"""How does an experiment become a table? Its trials are run, watched, tracked, and read back from the store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.backend import Backend, LocalBackend
from orchestrator.display import Display
from orchestrator.errors import PreflightError, StepFailed
from orchestrator.experiment import Experiment, Trial
from orchestrator.feed import TrackerFeed
from orchestrator.lease import is_at_work
from orchestrator.materialize import lease_of, materialize, pending
from orchestrator.progress import Watcher, failure
from orchestrator.signals import Background
from orchestrator.status import CellStatus, status
from orchestrator.step import Resources, Step, walk
from orchestrator.stopping import stop_all
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable, FailedTrial, TrialResult
from orchestrator.tracker import Tracker
from orchestrator.views import Presentation, write_views

UNSAID = "it did not finish, and did not say why"
NOT_YET = "it has no result yet"
WATCH_SECONDS = 0.5
STOP_SECONDS = 20.0

Plan = Callable[[Any], Mapping[str, Step]]
Check = Callable[[Any, Mapping[str, Path]], None]
"""Raises ValueError when a config asks for what the data (role -> artifact) cannot give."""


class Launcher(Protocol):
    """Runs trials side by side, from the time it is entered."""

    concurrent: int
    backend: Backend
    start_seconds: float | None
    """What it took to start what trials run on; None where that was there already."""

    def __enter__(self) -> Launcher: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def launch(self, trials: Sequence[Trial], run_trial: Callable[[Trial], None], *, name: str) -> dict[str, str]:
        """Run every trial; returns trial.key -> reason for those that failed. One that fails does not stop others."""

    def stop(self) -> None:
        """Make a launch that runs in another thread end soon."""


class Oversight(Protocol):
    """Is asked before cells run, and looks on while they do; what it raises ends the study as a signal does."""

    def begin(self, missing: Mapping[Trial, Sequence[Step]], launcher: Launcher) -> None:
        """The steps that every cell lacks, in the cells' order; none of those that are done. Something is missing."""

    def look(self) -> None:
        """Every WATCH_SECONDS."""

    def end(self) -> None:
        """All cells have ended, well or not."""


@dataclass(frozen=True)
class TrialRunner:
    """Materializes a trial's steps, wherever the launcher calls it."""

    plan: Plan
    store: str
    backend: Backend
    resources: Resources
    began_by: str

    def __call__(self, trial: Trial) -> None:
        steps = self.plan(trial.config).values()
        try:
            materialize(
                steps, ArtifactStore(self.store), backend=self.backend, resources=self.resources,
                began_by=self.began_by,
            )  # fmt: skip
        finally:
            self.backend.release()


@dataclass(frozen=True)
class StudyOutcome:
    """What a study ended in."""

    table: ComparisonTable
    files: Mapping[str, Path]
    unwritten: Mapping[str, str]
    """File name -> why it could not be written."""
    trials_run: int
    tracker_behind: str | None
    """Why the tracker lacks something the store has; None when it has everything."""


def run_experiment(
    experiment: Experiment[Any], plan: Plan, check: Check, *, store: ArtifactStore, tracker: Tracker,
    launcher: Launcher, resources: Resources, presentation: Presentation, display: Display, grace_seconds: float,
    oversight: Oversight,
) -> StudyOutcome:  # fmt: skip
    """Run what has no record yet and return the whole table.

    Told to end, it gives steps that listen (stopping.py) grace_seconds to keep their state.
    """
    plans = {trial: plan(trial.config) for trial in experiment.trials()}
    prepare_sources([step for steps in plans.values() for step in steps.values()], store, resources)
    for trial, steps in plans.items():
        check(trial.config, {role: store.path(step) for role, step in steps.items() if not step.inputs})
    missing = {trial: pending(steps.values(), store) for trial, steps in plans.items()}
    waiting = [trial for trial, steps in missing.items() if steps]
    feed = TrackerFeed(tracker, experiment, plans, store, presentation.attachments, is_tracked=presentation.is_tracked)
    if (outage := feed.check()) is not None:
        display.say(f"{outage}; the study goes on, and what the tracker misses is sent once it answers")
    said: dict[str, str] = {}
    with feed:
        if waiting:
            display.begin(experiment, total=len(plans), waiting=len(waiting))
            with launcher:
                oversight.begin(missing, launcher)
                said = _launch(
                    experiment, plan, plans, waiting, store, launcher, resources, display, grace_seconds, oversight
                )
                oversight.end()
        failed = {key: said.get(key, UNSAID) for key in _unfinished(plans, store)}
        table, files, unwritten = _told(experiment, plans, store, presentation, failed)
        behind = feed.finish(table, files, failed)
    return StudyOutcome(table, files, unwritten, len(waiting), behind)


def sync_experiment(
    experiment: Experiment[Any], plan: Plan, *, store: ArtifactStore, tracker: Tracker, presentation: Presentation
) -> StudyOutcome:
    """Rebuild the table from the store, and send the tracker what it lacks; runs nothing.

    Raises PreflightError where the store has nothing, and while the study runs: its own driver is the one that sends.
    """
    plans = _begun(experiment, plan, store)
    waiting = pending([step for steps in plans.values() for step in steps.values()], store)
    if at_work := [step.key for step in waiting if is_at_work(lease_of(step, store))]:
        raise PreflightError(f"{', '.join(at_work)} is being run: the study sends this itself; sync when it has ended")
    with TrackerFeed(
        tracker, experiment, plans, store, presentation.attachments, is_tracked=presentation.is_tracked
    ) as feed:
        unfinished = _why_unfinished(plans, store)
        table, files, unwritten = _told(experiment, plans, store, presentation, unfinished)
        failed = {key: why for key, why in unfinished.items() if why != NOT_YET}
        behind = feed.finish(table, files, failed)
    return StudyOutcome(table, files, unwritten, 0, behind)


def table_so_far(
    experiment: Experiment[Any], plan: Plan, store: ArtifactStore, presentation: Presentation
) -> ComparisonTable:
    """What the store has of a study. Raises PreflightError where it has nothing."""
    plans = _begun(experiment, plan, store)
    unfinished = _why_unfinished(plans, store)
    return _table(experiment, plans, store, presentation, unfinished)


def status_so_far(experiment: Experiment[Any], plan: Plan, store: ArtifactStore) -> list[CellStatus]:
    """How far each cell is. Raises PreflightError where the store has nothing of it."""
    return status(_begun(experiment, plan, store), store)


def _begun(experiment: Experiment[Any], plan: Plan, store: ArtifactStore) -> dict[Trial, Mapping[str, Step]]:
    plans = {trial: plan(trial.config) for trial in experiment.trials()}
    if not any(store.path(step).exists() for steps in plans.values() for step in steps.values() if step.inputs):
        raise PreflightError(
            f"{store.root} has nothing of {experiment.name} with these settings; name its --store, and the --preset, "
            f"--seeds, --set and --data with which it was run"
        )
    return plans


def _unfinished(plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore) -> list[str]:
    return [trial.key for trial, steps in plans.items() if pending(steps.values(), store)]


def _why_unfinished(plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore) -> dict[str, str]:
    """trial.key -> what a step of it said when it failed, else NOT_YET."""
    found = {}
    for trial, steps in plans.items():
        missing = pending(steps.values(), store)
        said = (failure(store.path(step)) for step in missing)
        if missing:
            found[trial.key] = next((why for why in said if why is not None), NOT_YET)
    return found


def _told(
    experiment: Experiment[Any], plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore,
    presentation: Presentation, unfinished: Mapping[str, str],
) -> tuple[ComparisonTable, dict[str, Path], dict[str, str]]:  # fmt: skip
    """The table, its files, and those that could not be written; unfinished: trial.key -> why it has no result."""
    table = _table(experiment, plans, store, presentation, unfinished)
    return (table, *write_views(table, study_folder(experiment, store), presentation, plans, store))


def study_folder(experiment: Experiment[Any], store: ArtifactStore) -> Path:
    """Where the table of a study and its pictures are."""
    return store.root / "studies" / f"{experiment.name}-{experiment.key()}"


def _table(
    experiment: Experiment[Any], plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore,
    presentation: Presentation, unfinished: Mapping[str, str],
) -> ComparisonTable:  # fmt: skip
    results = [_result(trial, plans[trial], store, unfinished) for trial in plans]
    return ComparisonTable(experiment, results, mixed_protocols=presentation.mixed_protocols)


def prepare_sources(steps: Sequence[Step], store: ArtifactStore, resources: Resources) -> None:
    """Run the steps that read the user's data, here, before any worker starts.

    Raises PreflightError for bad data, and for a store that cannot be written.
    """
    store.check_writable()
    sources = [step for step in walk(steps) if not step.inputs]
    try:
        materialize(sources, store, backend=LocalBackend(), resources=resources)
    except StepFailed as error:
        raise PreflightError(f"the data cannot be used: {error.reason} ({error.step_key})") from error


def _launch(
    experiment: Experiment[Any], plan: Plan, plans: Mapping[Trial, Mapping[str, Step]], waiting: Sequence[Trial],
    store: ArtifactStore, launcher: Launcher, resources: Resources, display: Display, grace_seconds: float,
    oversight: Oversight,
) -> dict[str, str]:  # fmt: skip
    with display:
        began_by = uuid.uuid4().hex
        runner = TrialRunner(plan, str(store.root), launcher.backend, resources, began_by)
        steps = {trial: list(plans[trial].values()) for trial in plans}
        watcher = Watcher(store, steps, concurrent=launcher.concurrent)
        work = Background(lambda: launcher.launch(waiting, runner, name=f"{experiment.name}-{experiment.key()}"))
        try:
            while not work.wait(WATCH_SECONDS):
                watcher.look()
                display.show(watcher)
                oversight.look()
        except BaseException:
            listeners = {store.path(step) for cell in steps.values() for step in walk(cell)}
            stop_all(listeners, began_by=began_by, seconds=grace_seconds)
            launcher.stop()
            work.wait(STOP_SECONDS)
            raise
        watcher.look()
        display.show(watcher, last=True)
        return work.value()


def _result(
    trial: Trial, steps: Mapping[str, Step], store: ArtifactStore, unfinished: Mapping[str, str]
) -> TrialResult | FailedTrial:
    if trial.key in unfinished:
        return FailedTrial(variant=trial.variant, seed=trial.seed, reason=unfinished[trial.key])
    said = store.all_metrics(walk(steps.values()))
    return TrialResult(trial.variant, trial.seed, said.metrics, said.protocol, said.notes)
