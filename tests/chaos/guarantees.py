"""What did the chaos tests find? A line of JSON for each kind of fault, and the table that people read.

PAPERTABLE_GUARANTEES names the file of lines; python -m tests.chaos.guarantees LINES OUT.md OUT.json writes the table.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "PAPERTABLE_GUARANTEES"


@dataclass(frozen=True)
class Finding:
    """One kind of fault, tried so often."""

    fault: str
    trials: int
    held: int
    """How often all that was promised held."""
    recovery_s: Sequence[float] = ()
    """From each fault to the first step after it."""
    lost_steps: Sequence[float] = ()
    """Steps that were taken again after each."""
    notes: str = ""
    is_ours: bool = True
    """Whether it is this project that promised; not the script beside it."""


def record(finding: Finding) -> None:
    """Add a finding to the file, if one is named."""
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(finding)) + "\n")


def table(findings: Sequence[Finding]) -> str:
    """As markdown."""
    lines = ["| fault | trials | held | recovery, s | journaled steps taken again | |", "|---|---:|---:|---|---|---|"]
    for found in findings:
        lines.append(
            f"| {found.fault} | {found.trials} | {found.held} of {found.trials} | {_spread(found.recovery_s, '.1f')} | "
            f"{_spread(found.lost_steps, '.0f')} | {found.notes} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):{form}} (to {max(values):{form}})"


def main(lines: str, markdown: str, as_json: str) -> None:
    """Write the table and its JSON."""
    findings = [Finding(**json.loads(line)) for line in Path(lines).read_text().splitlines()]
    held = sum(found.held for found in findings if found.is_ours)
    trials = sum(found.trials for found in findings if found.is_ours)
    text = (
        f"# Faults, and what became of the results\n\n`make chaos`, on {os.cpu_count()} cores of "
        f"{platform.machine()}: {held} of {trials} trials held. A trial holds when the weights, averages, optimizer's "
        f"state and histories of t have the SHA-256 that an undisturbed run leaves, or what its row says. Recovery: "
        f"median, and longest.\n\n"
    )
    Path(markdown).write_text(text + table(findings) + "\n")
    Path(as_json).write_text(json.dumps([asdict(found) for found in findings], indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
