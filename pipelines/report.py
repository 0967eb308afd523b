"""What has a study found so far, and does the tracker know it all? From what the store has; nothing is run.

python pipelines/report.py table iddpm-objectives --store artifacts
python pipelines/report.py sync iddpm-objectives --store artifacts --tracking-uri http://127.0.0.1:5000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from orchestrator.errors import PreflightError
from orchestrator.experiment import Experiment
from orchestrator.protocols import MixedProtocols
from orchestrator.run import sync_experiment, table_so_far
from orchestrator.store import ArtifactStore
from pipelines.ablation import build, found, presentation, tracker_of
from pipelines.cli import HERE, Overrides, Places, run
from pipelines.configs import RunConfig
from pipelines.named_data import data_changes
from pipelines.plan import plan


@dataclass(frozen=True, kw_only=True)
class Table:
    """Print a study's table as far as it is, also while it runs. Nothing is written or sent."""

    study: tyro.conf.Positional[str]
    """As pipelines/ablation.py names it."""
    preset: str = "tiny"
    """The scale at which it was run."""
    seeds: int = 1
    """How many training seeds every row has."""
    rows: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The rows it was run with, where not all."""
    milestones: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Those it was run with."""
    set: Overrides = ()
    data: str | None = None
    """The prepared data set, by name, that took the place of the preset's."""
    mixed_protocols: MixedProtocols = "refuse"
    """mark: rows that were measured otherwise than the first one stand in the table, marked."""
    store: str = HERE.store
    """Folder of all artifacts."""

    def experiment(self) -> tuple[Experiment[RunConfig], ArtifactStore]:
        """The study, and its store."""
        artifacts = Places(store=self.store).artifact_store()
        images = data_changes(self.data, artifacts)
        experiment = build(
            self.study, preset=self.preset, seeds=self.seeds, settings=self.set, images=images, rows=self.rows,
            milestones=self.milestones,
        )  # fmt: skip
        return experiment, artifacts

    def __call__(self) -> int:
        """Print it."""
        experiment, artifacts = self.experiment()
        shown = presentation(experiment.base, self.mixed_protocols)
        print(table_so_far(experiment, plan, artifacts, shown).to_text())
        return 0


@dataclass(frozen=True, kw_only=True)
class Sync(Table):
    """Send MLflow what it lacks of a study, cells without a result included, and print the table. Not while it runs."""

    tracking_uri: str | None = None
    """MLflow server or database; by default mlflow.db in the store."""

    def __call__(self) -> int:
        """Send, and print."""
        experiment, artifacts = self.experiment()
        tracker = tracker_of(artifacts, self.tracking_uri)
        shown = presentation(experiment.base, self.mixed_protocols)
        outcome = sync_experiment(experiment, plan, store=artifacts, tracker=tracker, presentation=shown)
        print(found(outcome, how_to_look=tracker.how_to_look()))
        return PreflightError.exit_code if outcome.unwritten or outcome.tracker_behind is not None else 0


def main(
    command: Annotated[
        Annotated[Table, tyro.conf.subcommand("table")] | Annotated[Sync, tyro.conf.subcommand("sync")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Show what a study has found, and send it to MLflow."""
    return command()


if __name__ == "__main__":
    run(main)
