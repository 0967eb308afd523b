"""What has a study found so far, and does the tracker know it all? From what the store has; nothing is run.

python pipelines/report.py table iddpm-cifar10 --store artifacts
python pipelines/report.py status iddpm-cifar10
python pipelines/report.py compare iddpm-cifar10 --a "4K cosine simple" --b "4K cosine hybrid"
python pipelines/report.py diff iddpm-cifar10 --a "4K cosine simple" --b "4K cosine hybrid"
python pipelines/report.py sync iddpm-cifar10 --store artifacts --tracking-uri http://127.0.0.1:5000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from orchestrator.compare import aligned, compare_rows, different_settings
from orchestrator.errors import PreflightError
from orchestrator.experiment import Experiment
from orchestrator.run import status_so_far, sync_experiment, table_so_far
from orchestrator.status import to_text
from orchestrator.store import ArtifactStore
from orchestrator.views import Presentation
from pipelines.cli import HERE, Places, run
from pipelines.configs import RunConfig
from pipelines.plan import plan
from pipelines.studies.catalogue import ALL
from pipelines.study import Selection, found, tracker_of


@dataclass(frozen=True, kw_only=True)
class Table(Selection):
    """Print a study's table as far as it is, also while it runs. Nothing is written or sent."""

    store: str = HERE.store
    """Folder of all artifacts."""

    def opened(self) -> tuple[Experiment[RunConfig], ArtifactStore, Presentation]:
        """The study as it was run, its store, and what of it people look at."""
        artifacts = Places(store=self.store).artifact_store()
        experiment = self.build(ALL, artifacts)
        return experiment, artifacts, self.presentation(ALL, experiment.base)

    def __call__(self) -> int:
        """Print it."""
        experiment, artifacts, shown = self.opened()
        print(table_so_far(experiment, plan, artifacts, shown).to_text())
        return 0


@dataclass(frozen=True, kw_only=True)
class Status(Table):
    """Print how far each cell of a study is, while it runs or after it. Nothing is touched."""

    def __call__(self) -> int:
        """Print it."""
        experiment, artifacts, _ = self.opened()
        print(to_text(status_so_far(experiment, plan, artifacts)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Compare(Table):
    """Print in which numbers two rows of a study differ, and whether that is resolved."""

    a: str
    """A row, as the table calls it."""
    b: str
    """The row that is held against it."""

    def __call__(self) -> int:
        """Print it."""
        experiment, artifacts, shown = self.opened()
        table = table_so_far(experiment, plan, artifacts, shown)
        print(aligned([("", self.a, self.b, "difference", ""), *compare_rows(table, self.a, self.b)]))
        return 0


@dataclass(frozen=True, kw_only=True)
class Diff(Compare):
    """Print in which settings two rows of a study differ. They need not have been run."""

    def __call__(self) -> int:
        """Print them."""
        experiment = self.build(ALL, Places(store=self.store).artifact_store(), may_lack_images=True)
        apart = different_settings(experiment, self.a, self.b)
        print(aligned([("", self.a, self.b), *((key, str(one), str(other)) for key, (one, other) in apart.items())]))
        return 0


@dataclass(frozen=True, kw_only=True)
class Sync(Table):
    """Send MLflow what it lacks of a study, cells without a result included, and print the table. Not while it runs."""

    tracking_uri: str | None = None
    """MLflow server or database; by default mlflow.db in the store."""

    def __call__(self) -> int:
        """Send, and print."""
        experiment, artifacts, shown = self.opened()
        tracker = tracker_of(artifacts, self.tracking_uri)
        outcome = sync_experiment(experiment, plan, store=artifacts, tracker=tracker, presentation=shown)
        print(found(outcome, how_to_look=tracker.how_to_look()))
        return PreflightError.exit_code if outcome.unwritten or outcome.tracker_behind is not None else 0


def main(
    command: Annotated[
        Annotated[Table, tyro.conf.subcommand("table")]
        | Annotated[Status, tyro.conf.subcommand("status")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | Annotated[Diff, tyro.conf.subcommand("diff")]
        | Annotated[Sync, tyro.conf.subcommand("sync")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Show how far a study is and what it has found, compare its rows, and send it all to MLflow."""
    return command()


if __name__ == "__main__":
    run(main)
