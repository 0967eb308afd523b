"""What did the study show? The paper's table with our numbers beside its own, as text, markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table as RichTable
from scipy import stats

from orchestrator.changes import Change, changes
from orchestrator.experiment import Column, Experiment
from orchestrator.protocols import (
    MixedProtocols,
    comparable_by,
    deciding,
    measured_otherwise,
    measured_with,
    protocol_fingerprint,
    without,
)
from orchestrator.verdicts import Measured, Verdict, is_resolved_best, judge

TEXT_WIDTH = 132


@dataclass(frozen=True)
class TrialResult:
    """A finished cell."""

    variant: str
    seed: int
    metrics: Mapping[str, float]
    protocol: Mapping[str, Mapping[str, Any]]
    """Per metric: how it was measured. Rows are only compared when it is the same."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FailedTrial:
    """A cell without a result, and why."""

    variant: str
    seed: int
    reason: str


R = TypeVar("R", bound=TrialResult | FailedTrial)


class ComparisonTable:
    """Rows in the study's order.

    Of a column whose numbers were measured by different protocols the cells that are not measured as the first one are
    marked, where that is asked for; else ValueError is raised.
    """

    def __init__(
        self, experiment: Experiment[Any], results: Sequence[TrialResult | FailedTrial], *,
        mixed_protocols: MixedProtocols = "refuse",
    ) -> None:  # fmt: skip
        self.experiment = experiment
        self.results = [result for result in results if isinstance(result, TrialResult)]
        self.failures = [result for result in results if isinstance(result, FailedTrial)]
        self._marks: dict[tuple[str, str], str] = {}  # (row, metric) -> what stands in its cell
        self._marked: list[str] = []
        for column in experiment.columns:
            self._mark(column, mixed_protocols)

    @property
    def any_failed(self) -> bool:
        """Whether some cell has no result."""
        return bool(self.failures)

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each of the paper's claims."""
        variants = list(self.experiment.variants)
        return [
            judge(claim, self.experiment.column(claim.metric), {v: self.measured(v, claim.metric) for v in variants})
            for claim in self.experiment.claims
        ]

    @property
    def changes(self) -> list[Change]:
        """What each row changes against the row that it is held against, here and in the paper."""
        return changes(self.experiment, self.measured)

    def is_best(self, variant: str, column: Column) -> bool:
        """Whether a row has the best value of a column, and the interval of its difference to every other says so."""
        rows = {row: self.measured(row, column.metric) for row in self.experiment.variants}
        return is_resolved_best(variant, column, {row: one for row, one in rows.items() if one is not None})

    def measured(self, variant: str, metric: str) -> Measured | None:
        """A row's values of a metric by seed, with their standard errors; None when every seed failed."""
        rows = [result for result in self.results if result.variant == variant]
        if not rows:
            return None
        error = self.experiment.column(metric).error
        errors = {result.seed: result.metrics[error] for result in rows} if error is not None else {}
        values = {result.seed: result.metrics[metric] for result in rows}
        protocol = without(rows[0].protocol.get(metric, {}), self.experiment.varies)
        return Measured(values, errors, comparable_by(protocol))

    def centre(self, variant: str, metric: str) -> tuple[float, float | None] | None:
        """A row's mean over seeds and the half width of its 95% interval (None for one seed of several).

        In a study of one seed: its value and the standard error of the evaluation, where one is known.
        """
        measured = self.measured(variant, metric)
        if measured is None:
            return None
        values = list(measured.by_seed.values())
        mean = sum(values) / len(values)
        if len(values) > 1:
            return mean, half_interval(values)
        return mean, next(iter(measured.errors.values()), None) if len(self.experiment.seeds) == 1 else None

    def to_text(self) -> str:
        """For a terminal."""
        console = Console(
            file=io.StringIO(), width=TEXT_WIDTH, force_terminal=False, color_system=None, markup=False, emoji=False
        )
        headings, rows = self.headings(), self.rows()
        if _natural_width(headings, rows) <= TEXT_WIDTH:
            console.print(_for_terminal(self.title(), headings, rows))
        else:  # the paper's numbers in a table of their own: broken within cells, nobody could read either
            ours = 1 + len(self.experiment.paper_columns)
            own = [(row[0], *row[ours:]) for row in rows if row[0] not in self.experiment.literature]
            console.print(_for_terminal(self.title(), (headings[0], *headings[ours:]), own))
            printed = [row[:ours] for row in rows if any(row[1:ours])]
            console.print(_for_terminal("The paper's numbers", headings[:ours], printed))
        claims = RichTable(title="The paper's orderings", title_justify="left", title_style="")
        for heading in ("claim", "metric", "our run", "difference"):
            claims.add_column(heading)
        for verdict in self.verdicts:
            claims.add_row(verdict.text, verdict.metric, verdict.outcome, verdict.why)
        if self.experiment.claims:
            console.print(claims)
        for note in self.footnotes():
            console.print(note)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def to_markdown(self) -> str:
        """For a README or a web page."""
        lines = [f"### {self.title()}", "", *_markdown(self.headings(), self.rows())]
        if self.experiment.claims:
            verdicts = [(v.text, v.metric, f"**{v.outcome}**", v.why) for v in self.verdicts]
            lines += ["", *_markdown(("the paper's ordering", "metric", "our run", "difference"), verdicts)]
        if rows := [(c.row, c.against, c.metric, c.paper, c.ours, f"**{c.outcome}**") for c in self.changes]:
            lines += ["", *_markdown(("row by row", "against", "metric", "change: paper", "ours", "our run"), rows)]
        lines += ["", *(f"- {note}" for note in self.footnotes())]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """Tidy: one line a row and seed, with every metric and the fingerprints of the columns' protocols.

        Failed cells have only their reason.
        """
        metrics = sorted({metric for result in self.results for metric in result.metrics})
        paper = [column.key for column in self.experiment.paper_columns]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        measured = [column.metric for column in self.experiment.columns]
        protocols = [f"{metric}_protocol" for metric in measured]
        writer.writerow(["variant", "seed", *(f"paper_{key}" for key in paper), *metrics, *protocols, "failed"])
        cells: list[TrialResult | FailedTrial] = [*self.results, *self.failures]
        for result in self._in_order(cells):
            of_paper = self.experiment.paper.get(result.variant, {})
            ours = result.metrics if isinstance(result, TrialResult) else {}
            reason = result.reason if isinstance(result, FailedTrial) else ""
            values = [*(of_paper.get(key, "") for key in paper), *(ours.get(metric, "") for metric in metrics)]
            by = result.protocol if isinstance(result, TrialResult) else {}
            fingerprints = [protocol_fingerprint(by[metric]) if metric in by else "" for metric in measured]
            writer.writerow([result.variant, result.seed, *values, *fingerprints, reason])
        return stream.getvalue()

    def records(self) -> list[dict[str, Any]]:
        """The table's cells by heading, for a tracker that shows tables."""
        return [dict(zip(self.headings(), row, strict=True)) for row in self.rows()]

    def footnotes(self) -> list[str]:
        """What a reader must know of the rows, and the protocol of every column."""
        variants, measured = list(self.experiment.variants), self._in_order(self.results)
        notes: dict[str, list[str]] = {}
        for result in measured:
            for note in result.notes:
                notes.setdefault(note, []).append(result.variant)
        lines = [
            f"{failure.variant}: seed {failure.seed} FAILED ({_first_line(failure.reason)})"
            for failure in self.failures
        ]
        for note, rows in notes.items():
            everywhere = set(rows) == {r.variant for r in self.results} and len(set(rows)) > 1
            lines.append(note if everywhere else f"{', '.join(v for v in variants if v in rows)}: {note}")
        for column in self.experiment.columns:
            protocol = next((r.protocol[column.metric] for r in measured if column.metric in r.protocol), None)
            if protocol:
                shared = without(protocol, self.experiment.varies)
                decides = ", ".join(f"{key} {value}" for key, value in deciding(shared).items())
                by_row = [key for key in self.experiment.varies if key in protocol]
                varied = f"; by row: {', '.join(by_row)}" if by_row else ""
                lines.append(f"{column.label} [{protocol_fingerprint(shared)}]: {decides}{varied}")
        lines += self._marked
        lines += measured_with((row.variant, protocol) for row in measured for protocol in row.protocol.values())
        return [*lines, f"Paper: {self.experiment.source}."] if self.experiment.paper else lines

    def title(self) -> str:
        """What stands above it."""
        seeds = self.experiment.seeds
        spread = (
            "1 seed, ± standard error of the evaluation" if len(seeds) == 1 else f"{len(seeds)} seeds, ± 95% interval"
        )
        return f"{self.experiment.title} ({spread})"

    def headings(self) -> tuple[str, ...]:
        """The row's own (empty), the paper's columns, ours, and how many images these rest on."""
        paper = [column.label for column in self.experiment.paper_columns]
        ours = [column.label for column in self.experiment.columns]
        counts = [f"n ({_short(count)})" for count in self._counts()]
        return ("", *paper, *ours, *counts)

    def rows(self) -> list[tuple[str, ...]]:
        """Cells as text, in the order of the headings; others' models last."""
        ours = [
            (self._label(variant), *self._paper(variant), *self._ours(variant), *self._numbers(variant))
            for variant in self.experiment.variants
        ]
        blank = [""] * (len(self.experiment.columns) + len(self._counts()))
        return [*ours, *((name, *self._paper(name), *blank) for name in self.experiment.literature)]

    def _label(self, variant: str) -> str:
        seeds, have = len(self.experiment.seeds), sum(result.variant == variant for result in self.results)
        return f"{variant} ({have} of {seeds} seeds)" if 0 < have < seeds else variant

    def _paper(self, variant: str) -> list[str]:
        numbers = {**self.experiment.literature, **self.experiment.paper}.get(variant, {})
        columns = self.experiment.paper_columns
        return [format(numbers[c.key], c.format) if c.key in numbers else "" for c in columns]

    def _ours(self, variant: str) -> list[str]:
        if any(result.variant == variant for result in self.results):
            return [self._cell(variant, column) for column in self.experiment.columns]
        return ["FAILED", *[""] * (len(self.experiment.columns) - 1)]  # why stands below the table

    def _cell(self, variant: str, column: Column) -> str:
        centre = self.centre(variant, column.metric)
        assert centre is not None
        mean, half_width = centre
        text = format(mean, column.format)
        spread = "" if half_width is None else f" ± {format(half_width, column.format)}"
        mark = self._marks.get((variant, column.metric))
        return f"{text}{spread}" if mark is None else f"{text}{spread} {mark}"

    def _counts(self) -> list[str]:
        return list(dict.fromkeys(column.count for column in self.experiment.columns if column.count is not None))

    def _numbers(self, variant: str) -> list[str]:
        rows = [result for result in self.results if result.variant == variant]
        return [f"{rows[0].metrics[count]:.0f}" if rows else "" for count in self._counts()]

    def _mark(self, column: Column, mixed_protocols: MixedProtocols) -> None:
        rows = [(row.variant, without(row.protocol[column.metric], self.experiment.varies))
                for row in self._in_order(self.results) if column.metric in row.protocol]  # fmt: skip
        for otherwise in measured_otherwise(column.label, rows):
            if mixed_protocols == "refuse":
                raise ValueError(otherwise.refusal())
            mark = f"[{_letter(len(self._marked))}]"
            self._marked.append(otherwise.footnote(mark))
            self._marks |= {(row, column.metric): mark for row in otherwise.rows}

    def _in_order(self, results: Sequence[R]) -> list[R]:
        variants = list(self.experiment.variants)
        return sorted(results, key=lambda result: (variants.index(result.variant), result.seed))


def _natural_width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a table takes when nothing in it is broken."""
    return 1 + sum(max(map(len, column)) + 3 for column in zip(headings, *rows, strict=True))


def _for_terminal(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(title=title, title_justify="left", title_style="")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    return table


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95% t-interval of a mean."""
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * float(stats.tstd(values)) / math.sqrt(len(values))


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    alignment = "|---|" + "---:|" * (len(headings) - 1)
    return [line(headings), alignment, *map(line, rows)]


def _letter(number: int) -> str:
    """a..z, aa, bb, ..."""
    return string.ascii_lowercase[number % 26] * (1 + number // 26)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _short(metric: str) -> str:
    return metric.removesuffix("_images").replace("_", " ")
