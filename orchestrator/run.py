"""How does an experiment become a table? Its trials are run, watched, tracked, and read back from the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.backend import Backend, LocalBackend
from orchestrator.display import Display
from orchestrator.errors import PreflightError, StepFailed
from orchestrator.experiment import Experiment, Trial
from orchestrator.feed import TrackerFeed
from orchestrator.journal import read_points
from orchestrator.materialize import materialize, pending
from orchestrator.plots import curves, scatter
from orchestrator.progress import Watcher
from orchestrator.signals import Background
from orchestrator.step import JOURNAL_FILE, Resources, Step, walk, write_whole
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable, FailedTrial, TrialResult
from orchestrator.tracker import Tracker

WATCH_SECONDS = 0.5
STOP_SECONDS = 20.0

Plan = Callable[[Any], Mapping[str, Step]]
Check = Callable[[Any, Mapping[str, Path]], None]
"""Raises ValueError when a config asks for what the data (role -> artifact) cannot give."""


class Launcher(Protocol):
    """Runs trials side by side, from the time it is entered."""

    concurrent: int
    backend: Backend

    def __enter__(self) -> Launcher: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def launch(self, trials: Sequence[Trial], run_trial: Callable[[Trial], None], *, name: str) -> dict[str, str]:
        """Run every trial; returns trial.key -> reason for those that failed. One that fails does not stop others."""

    def stop(self) -> None:
        """Make a launch that runs in another thread end soon."""


@dataclass(frozen=True)
class Presentation:
    """Which of a trial's files and curves people look at."""

    attachments: Sequence[tuple[str, str]] = ()
    """(role of a step, file it leaves): shown in the tracker beside the trial's metrics."""
    scatter: tuple[str, str] | None = None
    """Two metrics plotted against each other, one point a row."""
    curve: tuple[str, str, str] | None = None
    """(role of a step, key in its journal, axis label): one curve a row."""


@dataclass(frozen=True)
class TrialRunner:
    """Materializes a trial's steps, wherever the launcher calls it."""

    plan: Plan
    store: str
    backend: Backend
    resources: Resources

    def __call__(self, trial: Trial) -> None:
        steps = self.plan(trial.config).values()
        try:
            materialize(steps, ArtifactStore(self.store), backend=self.backend, resources=self.resources)
        finally:
            self.backend.release()


@dataclass(frozen=True)
class StudyOutcome:
    """What a study ended in."""

    table: ComparisonTable
    files: Mapping[str, Path]
    trials_run: int
    tracker_behind: str | None
    """Why the tracker lacks something the store has; None when it has everything."""


def run_experiment(
    experiment: Experiment[Any], plan: Plan, check: Check, *, store: ArtifactStore, tracker: Tracker,
    launcher: Launcher, resources: Resources, presentation: Presentation, display: Display,
) -> StudyOutcome:  # fmt: skip
    """Run what has no record yet and return the whole table."""
    plans = {trial: plan(trial.config) for trial in experiment.trials()}
    store.check_writable()
    prepare_sources([step for steps in plans.values() for step in steps.values()], store, resources)
    for trial, steps in plans.items():
        check(trial.config, {role: store.path(step) for role, step in steps.items() if not step.inputs})
    waiting = [trial for trial, steps in plans.items() if pending(steps.values(), store)]
    feed = TrackerFeed(tracker, experiment, plans, store, presentation.attachments)
    if (outage := feed.check()) is not None:
        display.say(f"{outage}; the study goes on, and what the tracker misses is sent once it answers")
    failed: dict[str, str] = {}
    with feed:
        if waiting:
            display.begin(experiment, total=len(plans), waiting=len(waiting))
            failed = _launch(experiment, plan, plans, waiting, store, launcher, resources, display)
        table = ComparisonTable(experiment, [_result(trial, plans[trial], store, failed) for trial in plans])
        directory = store.root / "studies" / f"{experiment.name}-{experiment.key()}"
        files = write_table(table, directory, presentation, plans, store)
        behind = feed.finish(table, files, failed)
    return StudyOutcome(table, files, len(waiting), behind)


def prepare_sources(steps: Sequence[Step], store: ArtifactStore, resources: Resources) -> None:
    """Run the steps that read the user's data, here: raises PreflightError for bad data before any worker starts."""
    sources = [step for step in walk(steps) if not step.inputs]
    try:
        materialize(sources, store, backend=LocalBackend(), resources=resources)
    except StepFailed as error:
        raise PreflightError(f"the data cannot be used: {error.reason} ({error.step_key})") from error


def write_table(
    table: ComparisonTable, directory: Path, presentation: Presentation,
    plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore,
) -> dict[str, Path]:  # fmt: skip
    """The table as markdown, CSV and pictures. Returns file name -> path."""
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "comparison.md", table.to_markdown())
    write_whole(directory / "comparison.csv", table.to_csv())
    written = ["comparison.md", "comparison.csv"]
    if presentation.scatter is not None:
        x, y = presentation.scatter
        scatter(table, x, y, directory / f"{x}-{y}.png")
        written.append(f"{x}-{y}.png")
    if presentation.curve is not None and (lines := training_curves(plans, store, presentation.curve)):
        curves(lines, directory / "curves.png", ylabel=presentation.curve[2], title=table.experiment.title)
        written.append("curves.png")
    return {name: directory / name for name in written}


def training_curves(
    plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore, curve: tuple[str, str, str]
) -> dict[str, list[tuple[int, float]]]:
    """The journaled values of one key, per row; the first seed that has any stands for its row."""
    role, key, _ = curve
    lines: dict[str, list[tuple[int, float]]] = {}
    for trial, steps in plans.items():
        journal = store.path(steps[role]) / JOURNAL_FILE
        if trial.variant in lines or not journal.is_file():
            continue
        points, _ = read_points(journal)
        values = [(point.step, point.value) for point in points if point.key == key]
        if values:
            lines[trial.variant] = values
    return lines


def _launch(
    experiment: Experiment[Any], plan: Plan, plans: Mapping[Trial, Mapping[str, Step]], waiting: Sequence[Trial],
    store: ArtifactStore, launcher: Launcher, resources: Resources, display: Display,
) -> dict[str, str]:  # fmt: skip
    with launcher, display:
        runner = TrialRunner(plan, str(store.root), launcher.backend, resources)
        work = Background(lambda: launcher.launch(waiting, runner, name=f"{experiment.name}-{experiment.key()}"))
        steps = {trial: list(plans[trial].values()) for trial in plans}
        watcher = Watcher(store, steps, concurrent=launcher.concurrent)
        try:
            while not work.wait(WATCH_SECONDS):
                watcher.look()
                display.show(watcher)
        except BaseException:
            launcher.stop()
            work.wait(STOP_SECONDS)
            raise
        watcher.look()
        display.show(watcher, last=True)
        return work.value()


def _result(
    trial: Trial, steps: Mapping[str, Step], store: ArtifactStore, failed: Mapping[str, str]
) -> TrialResult | FailedTrial:
    if pending(steps.values(), store):
        reason = failed.get(trial.key, "it did not finish, and did not say why")
        return FailedTrial(variant=trial.variant, seed=trial.seed, reason=reason)
    said = store.all_metrics(walk(steps.values()))
    return TrialResult(trial.variant, trial.seed, said.metrics, said.protocol, said.notes)
