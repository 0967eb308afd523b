"""What of a study do people look at? Its table as files, and pictures: made anew from the store when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DamagedArtifact
from orchestrator.experiment import Trial
from orchestrator.files import write_whole
from orchestrator.html_report import to_html
from orchestrator.journal import read_points
from orchestrator.latex import to_latex
from orchestrator.plots import curves, lines, scatter, strips
from orchestrator.protocols import MixedProtocols
from orchestrator.scaling import LawsTable, draw, in_words, laws, to_csv, to_markdown
from orchestrator.step import JOURNAL_FILE, Step, parts_of
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable


@dataclass(frozen=True)
class Presentation:
    """Which of a trial's files and curves people look at."""

    attachments: Sequence[tuple[str, str]] = ()
    """(role of a step, file it leaves): shown in the tracker beside the trial's metrics."""
    scatter: tuple[str, str] | None = None
    """Two metrics plotted against each other, one point a row."""
    curve: tuple[str, str, str] | None = None
    """(role of a step, key in its journal, axis label): one curve a row."""
    strip: tuple[str, str] | None = None
    """(role of a step, picture it leaves): one picture a row, under each other."""
    is_tracked: Callable[[str], bool] = lambda _: True
    """Which metrics the tracker is sent, by name; all of them are in the table's CSV and in the journals."""
    command: str = ""
    """What runs the study again."""
    row_command: Callable[[str], str] = lambda _: ""
    """Row -> what runs it alone."""
    mixed_protocols: MixedProtocols = "refuse"
    """Whether cells that were measured otherwise than their column's first one may stand there, marked."""


def write_views(
    table: ComparisonTable, directory: Path, presentation: Presentation,
    plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore,
) -> tuple[dict[str, Path], dict[str, str]]:  # fmt: skip
    """The table as markdown, CSV and pictures: file name -> path, and file name -> why it could not be written.

    A full disk, a damaged journal or numbers that cannot be drawn take away a picture, not the table that hours of
    training led to.
    """
    title, told = table.experiment.title, None
    views: dict[str, Callable[[Path], object]] = {
        "comparison.md": lambda path: write_whole(path, table.to_markdown()),
        "comparison.csv": lambda path: write_whole(path, table.to_csv()),
        "comparison.tex": lambda path: write_whole(path, to_latex(table)),
    }
    if presentation.scatter is not None:
        x, y = presentation.scatter
        views[f"{x}-{y}.png"] = lambda path: scatter(table, x, y, path)
    if table.experiment.axis is not None:
        views["lines.png"] = lambda path: lines(table, path)
    if table.experiment.laws:
        found = laws(table)
        told = in_words(found, table.experiment.laws)
        views["laws.md"] = lambda path: write_whole(path, to_markdown(told))
        views["laws.csv"] = lambda path: write_whole(path, to_csv(found))
        views["laws.png"] = lambda path: draw(table, found, path)
    if (curve := presentation.curve) is not None and (journals := _journals(plans, store, curve[0])):
        views["curves.png"] = lambda path: curves(
            {variant: _values(of_row, curve[1]) for variant, of_row in journals.items()},
            path, ylabel=curve[2], title=title,
        )  # fmt: skip
    if presentation.strip is not None and (pictures := _files(plans, store, *presentation.strip)):
        views["samples.png"] = lambda path: strips(pictures, path, title=f"{title}: samples of the same seeds")
    # Last: it shows the others.
    views["report.html"] = lambda path: write_whole(path, _report(table, files, plans, store, presentation, told))
    files: dict[str, Path] = {}
    unwritten: dict[str, str] = {}
    for name, write in views.items():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write(directory / name)
            files[name] = directory / name
        except (OSError, DamagedArtifact, ValueError) as error:
            unwritten[name] = str(error)
    return files, unwritten


def _report(
    table: ComparisonTable, files: Mapping[str, Path], plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore,
    presentation: Presentation, told: LawsTable | None,
) -> str:  # fmt: skip
    pictures = [path for name, path in files.items() if name.endswith(".png")]
    return to_html(
        table, plans, store, pictures=pictures, command=presentation.command, row_command=presentation.row_command,
        laws=told,
    )  # fmt: skip


def _journals(plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore, role: str) -> dict[str, list[Path]]:
    """The journals of a role's step and of those it goes on from, per row; of the first seed that has one.

    Rows that share a training are one curve.
    """
    found: dict[str, list[Path]] = {}
    for trial, steps in plans.items():
        paths = [store.path(step) / JOURNAL_FILE for step in parts_of(steps[role])]
        journals = [path for path in paths if path.is_file()]
        if journals:
            found.setdefault(trial.variant, journals)
    sharing: dict[tuple[Path, ...], list[str]] = {}
    for row, journals in found.items():
        sharing.setdefault(tuple(journals), []).append(row)
    return {_together(rows): list(journals) for journals, rows in sharing.items()}


def _together(rows: Sequence[str]) -> str:
    return rows[0] if len(rows) == 1 else f"{rows[0]}, and {len(rows) - 1} more of this training"


def _files(
    plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore, role: str, file: str
) -> dict[str, Path]:  # fmt: skip
    """What a role's step leaves, per row; of the first seed that is done."""
    found: dict[str, Path] = {}
    for trial, steps in plans.items():
        if store.record(steps[role]) is not None:
            found.setdefault(trial.variant, store.path(steps[role]) / file)
    return found


def _values(journals: Iterable[Path], key: str) -> list[tuple[int, float]]:
    points = [point for journal in journals for point in read_points(journal)[0]]
    return [(point.step, point.value) for point in points if point.key == key]
