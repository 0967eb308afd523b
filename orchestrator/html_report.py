"""What does one send to a colleague? The whole study as one HTML file without scripts, that asks for nothing else."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from orchestrator.display import duration
from orchestrator.experiment import Trial
from orchestrator.step import Step, walk
from orchestrator.store import ArtifactStore
from orchestrator.table import ComparisonTable
from orchestrator.verdicts import Verdict

CAPTIONS = {
    "lines.png": "The rows over what they vary, with the error of each",
    "curves.png": "Training, one curve a row",
    "samples.png": "Samples of the same seeds, one row under the other",
    "laws.png": "Power laws over compute: values, what is left above E, residuals",
}
PICTURE_BYTES, PICTURE_WIDTH = 400_000, 1600
"""A picture with more of either is made smaller."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table, and how it is set: paper, best or as it is."""

    text: str
    kind: str = ""


def to_html(
    table: ComparisonTable, plans: Mapping[Trial, Mapping[str, Step]], store: ArtifactStore, *,
    pictures: Sequence[Path], command: str, row_command: str, laws: str = "",
) -> str:  # fmt: skip
    """The report; command is what runs the study, row_command what runs the row that is named behind it."""
    environment = Environment(
        loader=PackageLoader("orchestrator", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    steps = walk([step for of_trial in plans.values() for step in of_trial.values()])
    records = {step: record for step in steps if (record := store.record(step)) is not None}
    papers = len(table.experiment.paper_columns)
    return environment.get_template("report.html.j2").render(
        title=table.title(),
        question=table.experiment.question,
        verdict=in_a_sentence(table.verdicts),
        headings=[
            {"text": text, "paper": 0 < number <= papers} for number, text in enumerate(table.headings())
        ],
        rows=[_cells(table, row, papers) for row in table.rows()],
        verdict_tables=[
            ({"text": "The paper's orderings", "first": "claim"}, table.verdicts),
            ({"text": "Row by row", "first": "row"}, table.row_verdicts),
        ],
        pictures=[{"data": inlined(path), "caption": _caption(path)} for path in pictures],
        extra=laws,
        costs=_costs((step.prefix + step.name, record.seconds) for step, record in records.items()),
        command=command,
        cells=[
            {"row": row, "command": f"{row_command} --rows {shlex.quote(row)}"} for row in table.experiment.variants
        ],
        notes=table.footnotes(),
        facts=_facts(record.provenance for record in records.values()),
    )  # fmt: skip


def in_a_sentence(verdicts: Sequence[Verdict]) -> str:
    """How many of the paper's orderings came out which way."""
    if not verdicts:
        return "The paper prints no orderings that this table could show."
    counted = Counter(verdict.outcome for verdict in verdicts)
    parts = [f"{count} {outcome}" for outcome, count in counted.most_common()]
    return f"Of the paper's {len(verdicts)} orderings: {', '.join(parts)}."


def _cells(table: ComparisonTable, row: Sequence[str], papers: int) -> list[Cell]:
    cells = [Cell(text, "paper" if 0 < number <= papers else "") for number, text in enumerate(row)]
    for number, column in enumerate(table.experiment.columns, start=1 + papers):
        if table.is_best(row[0], column):
            cells[number] = Cell(row[number], "best")
    return cells


def _caption(path: Path) -> str:
    return CAPTIONS.get(
        path.name, f"{' against '.join(reversed(path.stem.split('-')))}, one point a row".replace("_", " ")
    )


def inlined(path: Path) -> str:
    """A picture as a data URI, made smaller where it is large."""
    content, kind = path.read_bytes(), "png"
    if len(content) > PICTURE_BYTES:
        with Image.open(io.BytesIO(content)) as picture:
            smaller = picture.convert("RGB")
            smaller.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        stream = io.BytesIO()
        smaller.save(stream, format="JPEG", quality=85)
        content, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _costs(seconds: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """By kind of step, the dearest first."""
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for name, of_one in seconds:
        counts[name] += 1
        totals[name] += of_one  # type: ignore[assignment]  # a Counter adds up what it is given
    return [
        {"step": name, "count": counts[name], "time": duration(total)} for name, total in totals.most_common()
    ]  # fmt: skip


def _facts(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """Everything the records say they were made with, each value once."""
    found: dict[str, list[str]] = {}
    for provenance in provenances:
        for key, value in provenance.items():
            known = found.setdefault(key, [])
            if value is not None and str(value) not in known:
                known.append(str(value))
    return [f"{key.replace('_', ' ')}: {', '.join(values)}" for key, values in found.items() if values]
