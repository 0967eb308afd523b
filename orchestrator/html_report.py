"""What does one send to a colleague? The whole study as one HTML file without scripts, that asks for nothing else."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from orchestrator.display import duration
from orchestrator.experiment import Experiment, Trial
from orchestrator.history import recoveries
from orchestrator.scaling import LawsTable
from orchestrator.step import Step, walk
from orchestrator.store import ArtifactStore, Record
from orchestrator.table import ComparisonTable
from orchestrator.verdicts import Outcome, Verdict

SAMPLES = "samples.png"
CAPTIONS = {
    "lines.png": "The rows over what they vary, with the error of each",
    "curves.png": "Training, one curve for all rows that share it",
    SAMPLES: "Samples of the same seeds, one row under the other",
    "laws.png": "Power laws over compute: values, what is left above E, residuals",
}
PICTURE_BYTES, PICTURE_WIDTHS = 400_000, (1600, 1000, 600)
"""A larger picture is made as wide as the first of these; all are made as wide as the next while the page is large."""
PAGE_BYTES = 4_500_000


@dataclass(frozen=True)
class Cell:
    """A cell of the table, and how it is set: paper, best or as it is."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Picture:
    """As the page has it."""

    data: str
    caption: str
    told: str
    """What it shows, for who does not see it."""


@dataclass(frozen=True)
class Cost:
    """What the steps of one kind took together, by all attempts."""

    step: str
    count: int
    seconds: float
    time: str
    cpu_hours: float | None
    """That they held; None: not noted."""
    gpu_hours: float | None


def to_html(
    table: ComparisonTable, plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore, *,
    pictures: Sequence[Path], command: str, row_command: Callable[[str], str], laws: LawsTable | None = None,
) -> str:  # fmt: skip
    """The report; command is what runs the study, row_command(row) what runs that row alone."""
    environment = Environment(
        loader=PackageLoader("orchestrator", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    experiment, headings = table.experiment, table.headings()
    steps = walk([step for of_trial in plans.values() for step in of_trial.values()])
    records = {step: record for step in steps if (record := store.record(step)) is not None}
    papers, ours = len(experiment.paper_columns), len(experiment.columns)
    shown = _pictures(pictures, experiment)
    return environment.get_template("report.html.j2").render(
        title=table.title(),
        question=experiment.question,
        verdict=in_a_sentence(table.verdicts),
        groups=[
            {"text": text, "span": span}
            for text, span in (("paper", papers), ("ours", ours), ("", len(headings) - 1 - papers - ours))
            if span
        ],
        headings=[text.removeprefix("paper ") for text in headings[1:]],
        rows=[_cells(table, row, papers) for row in table.rows()],
        verdicts=table.verdicts,
        changes=table.changes,
        pairing=_pairing(experiment),
        figures=[picture for path, picture in shown.items() if path.name != SAMPLES],
        samples=[picture for path, picture in shown.items() if path.name == SAMPLES],
        laws=laws,
        costs=_costs(records),
        recovered=_recovered(steps, store),
        command=command,
        cells=[{"row": row, "command": row_command(row)} for row in experiment.variants],
        notes=table.footnotes(),
        facts=[*_data(steps, store), *_facts(record.provenance for record in records.values())],
    )  # fmt: skip


def in_a_sentence(verdicts: Sequence[Verdict]) -> str:
    """How many of the paper's orderings came out which way."""
    if not verdicts:
        return "The paper prints no orderings that this table could show."
    counted = Counter(verdict.outcome for verdict in verdicts)
    parts = [f"{counted[outcome]} {outcome}" for outcome in get_args(Outcome) if counted[outcome]]
    orderings = "one ordering" if len(verdicts) == 1 else f"{len(verdicts)} orderings"
    return f"Of the paper's {orderings}: {', '.join(parts)}."


def _pairing(experiment: Experiment[Any]) -> str:
    if len(experiment.seeds) > 1:
        return "± is the 95% interval of the mean of differences paired by seed: rows share their noise."
    return "± is two standard errors of the difference of two evaluations: how training varies, one seed cannot tell."


def _cells(table: ComparisonTable, row: Sequence[str], papers: int) -> list[Cell]:
    cells = [Cell(text, "paper" if 0 < number <= papers else "") for number, text in enumerate(row)]
    for number, column in enumerate(table.experiment.columns, start=1 + papers):
        if table.is_best(row[0], column):
            cells[number] = Cell(row[number], "best")
    return cells


def _pictures(paths: Sequence[Path], experiment: Experiment[Any]) -> dict[Path, Picture]:
    """Small enough that the page can be sent."""
    found: dict[Path, Picture] = {}
    rows = ", ".join(experiment.variants)
    for width in PICTURE_WIDTHS:
        said = {path: _caption(path, experiment) for path in paths}
        found = {path: Picture(inlined(path, width=width), said[path], f"{said[path]}: {rows}") for path in paths}
        if sum(len(picture.data) for picture in found.values()) <= PAGE_BYTES:
            break
    return found


def _caption(path: Path, experiment: Experiment[Any]) -> str:
    if path.name in CAPTIONS:
        return CAPTIONS[path.name]
    labels = {column.metric: column.label for column in experiment.columns}
    names = [labels.get(name, name.replace("_", " ")) for name in reversed(path.stem.split("-"))]
    return f"{' against '.join(names)}, one point a row"


def inlined(path: Path, *, width: int = PICTURE_WIDTHS[0]) -> str:
    """A picture as a data URI, made at most so wide where it is large."""
    content, kind = path.read_bytes(), "png"
    if len(content) > PICTURE_BYTES or width < PICTURE_WIDTHS[0]:
        with Image.open(io.BytesIO(content)) as picture:
            smaller = picture.convert("RGB")
            smaller.thumbnail((width, 4 * width))
        stream = io.BytesIO()
        smaller.save(stream, format="JPEG", quality=85)
        content, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _costs(records: Mapping[Step, Record]) -> list[Cost]:
    """By kind of step, the dearest first, and all of them."""
    kinds: dict[str, list[Record]] = {}
    for step, record in records.items():
        kinds.setdefault(step.prefix + step.name, []).append(record)
    found = [_cost(name, of_kind) for name, of_kind in kinds.items()]
    return [*sorted(found, key=lambda cost: -cost.seconds), _cost("all", list(records.values()))]


def _cost(name: str, records: Sequence[Record]) -> Cost:
    """Records of before spending was noted have no hours, and the seconds of their last attempt."""
    hours = {
        held: sum(record.spent["seconds"] * record.spent[held] for record in records) / 3600
        if all(record.spent for record in records) else None
        for held in ("cpus", "gpus")
    }  # fmt: skip
    seconds = sum(record.spent.get("seconds", record.seconds) for record in records)
    return Cost(name, len(records), seconds, duration(seconds), hours["cpus"], hours["gpus"])


def _recovered(steps: Sequence[Step], store: ArtifactStore) -> str:
    """How often trainings were taken up again; empty where no step keeps a history."""
    found = [count for step in steps if (count := recoveries(store.path(step))) is not None]
    if not found:
        return ""
    again = [count for count in found if count]
    trainings = "the one training" if len(found) == 1 else f"{len(found)} trainings"
    return f"Taken up again after a stop or a loss: {len(again)} of {trainings}, {sum(again)} times in all."


def _data(steps: Sequence[Step], store: ArtifactStore) -> list[str]:
    """The data sets, by the hash of what they hold."""
    named = [f"{facts.name} {facts.digest}" for _, facts in store.all_metrics(steps).datasets]
    return [f"data: {', '.join(dict.fromkeys(named))}"] if named else []


def _facts(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """Everything the records say they were made with, each value once."""
    found: dict[str, list[str]] = {}
    for provenance in provenances:
        for key, value in provenance.items():
            known = found.setdefault(key, [])
            if value is not None and str(value) not in known:
                known.append(str(value))
    return [f"{key.replace('_', ' ')}: {', '.join(values)}" for key, values in found.items() if values]
