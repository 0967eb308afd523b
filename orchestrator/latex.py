"""How does a table look in a paper? As LaTeX with booktabs, bold only where the interval supports it."""

from __future__ import annotations

import re

from orchestrator.table import ComparisonTable

ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
    "é": r"\'e", "|": r"\textbar{}",
}  # fmt: skip


def to_latex(table: ComparisonTable) -> str:
    """A table environment for \\usepackage{booktabs}: the paper's columns, then ours, then what others print.

    What a reader must know of the rows is there as comments.
    """
    papers, ours = len(table.experiment.paper_columns), len(table.experiment.columns)
    headings, rows, shown = table.headings(), table.rows(), 1 + papers + ours
    groups, rules = [""], ""
    for name, first, count in (("paper", 2, papers), ("ours", 2 + papers, ours)):
        if count:
            groups.append(rf"\multicolumn{{{count}}}{{c}}{{{name}}}")
            rules += rf"\cmidrule(lr){{{first}-{first + count - 1}}}"
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(table.title())}. Paper: {escaped(table.experiment.source)}.}}",
        rf"  \begin{{tabular}}{{l{'r' * (shown - 1)}}}",
        r"    \toprule",
        rf"    {' & '.join(groups)} \\",
        f"    {rules}",
        rf"    {' & '.join(escaped(heading.removeprefix('paper ')) for heading in headings[:shown])} \\",
        r"    \midrule",
    ]
    for row in rows:
        if row[0] in table.experiment.literature and row[0] == next(iter(table.experiment.literature)):
            lines.append(r"    \midrule")
        cells = [escaped(row[0]), *(_number(cell) for cell in row[1:shown])]
        for number, column in enumerate(table.experiment.columns):
            if table.is_best(row[0], column):
                cells[1 + papers + number] = rf"\textbf{{{cells[1 + papers + number]}}}"
        lines.append(rf"    {' & '.join(cells)} \\")
    notes = [f"% {' '.join(note.split())}" for note in table.footnotes()]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", *notes, ""])


def _number(cell: str) -> str:
    """With a minus, not a hyphen."""
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped(cell))


def escaped(text: str) -> str:
    """The same text to LaTeX."""
    return "".join(ESCAPED.get(character, character) for character in text)
