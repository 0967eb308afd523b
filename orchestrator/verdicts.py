"""Does our run show what the paper's table shows? Each claim against our differences and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from orchestrator.experiment import Better, Claim, Column, Extreme

Outcome = Literal["shown", "not resolved", "not shown", "no verdict", "not comparable"]
WEAKEST_FIRST: tuple[Outcome, ...] = ("not shown", "not resolved", "shown")
RESOLVED_AT = 2.0  # standard errors of a difference at a single seed


@dataclass(frozen=True)
class Measured:
    """A row's values of one metric."""

    by_seed: Mapping[int, float]
    errors: Mapping[int, float]
    """Seed -> standard error of its evaluation, which knows nothing of how training varies. Empty: not known."""
    protocol: str
    """A hash of how they were measured: rows are compared where it is the same."""


@dataclass(frozen=True)
class Verdict:
    """What our run says of a claim."""

    text: str
    metric: str
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Difference:
    """By how much the row that should be better is better, and how far off that may be (None: not known)."""

    advantage: float
    uncertainty: float | None

    @property
    def outcome(self) -> Outcome:
        """A difference smaller than its uncertainty resolves nothing."""
        if self.uncertainty is not None and abs(self.advantage) <= self.uncertainty:
            return "not resolved"
        return "shown" if self.advantage > 0 else "not shown"


def judge(claim: Claim, column: Column, rows: Mapping[str, Measured | None]) -> Verdict:
    """The verdict on a claim, given every row of the column it speaks of."""
    pairs = _pairs(claim, list(rows))
    lost = [row for row in dict.fromkeys(row for pair in pairs for row in pair) if rows[row] is None]
    if lost:
        return Verdict(claim.text, column.label, "no verdict", f"{', '.join(lost)} FAILED")
    apart = [pair for pair in pairs if not _seeds(rows[pair[0]], rows[pair[1]])]
    if apart:
        return Verdict(claim.text, column.label, "no verdict", f"{' and '.join(apart[0])} have no seed in common")
    mixed = [pair for pair in pairs if not _comparable(rows[pair[0]], rows[pair[1]])]
    if mixed:
        why = f"{' and '.join(mixed[0])} were measured by different protocols"
        return Verdict(claim.text, column.label, "not comparable", why)
    differences = {pair: _difference(rows[pair[0]], rows[pair[1]], column) for pair in pairs}
    if isinstance(claim, Better):
        (difference,) = differences.values()
        return Verdict(claim.text, column.label, difference.outcome, _describe(difference, column))
    decisive = min(
        differences, key=lambda pair: (WEAKEST_FIRST.index(differences[pair].outcome), differences[pair].advantage)
    )
    rival = decisive[1] if claim.which == "best" else decisive[0]
    difference = differences[decisive]
    why = f"{_describe(difference, column)}, against {rival}"
    return Verdict(claim.text, column.label, difference.outcome, why)


def is_resolved_best(row: str, column: Column, rows: Mapping[str, Measured]) -> bool:
    """Whether a row beats every other one by more than an interval. Where no interval is known nothing is resolved."""
    others = [other for other in rows if other != row]
    if column.best is None or row not in rows or not others:
        return False
    for other in others:
        if not _seeds(rows[row], rows[other]) or not _comparable(rows[row], rows[other]):
            return False
        difference = _difference(rows[row], rows[other], column)
        if difference.uncertainty is None or difference.outcome != "shown":
            return False
    return True


def _pairs(claim: Claim, rows: list[str]) -> list[tuple[str, str]]:
    """(row that should be better, row that should be worse)."""
    if isinstance(claim, Extreme):
        others = [row for row in rows if row != claim.variant]
        return [(claim.variant, row) if claim.which == "best" else (row, claim.variant) for row in others]
    return [(claim.better, claim.worse)]


def _seeds(first: Measured | None, second: Measured | None) -> list[int]:
    """Those at which both rows were measured."""
    assert first is not None
    assert second is not None
    return sorted(first.by_seed.keys() & second.by_seed.keys())


def _comparable(first: Measured | None, second: Measured | None) -> bool:
    assert first is not None
    assert second is not None
    return first.protocol == second.protocol


def _difference(better: Measured | None, worse: Measured | None, column: Column) -> Difference:
    assert better is not None
    assert worse is not None
    sign = 1.0 if column.best == "max" else -1.0
    seeds = _seeds(better, worse)
    advantages = [sign * (better.by_seed[seed] - worse.by_seed[seed]) for seed in seeds]
    mean = sum(advantages) / len(advantages)
    if len(seeds) > 1:  # rows share seeds, and so noise: their differences vary less than they do
        spread = float(stats.tstd(advantages)) / math.sqrt(len(seeds))
        return Difference(mean, float(stats.t.ppf(0.975, len(seeds) - 1)) * spread)
    if not better.errors or not worse.errors:
        return Difference(mean, None)
    # As if the two evaluations were independent: they share images and noise, so this is on the safe side.
    return Difference(mean, RESOLVED_AT * math.hypot(better.errors[seeds[0]], worse.errors[seeds[0]]))


def _describe(difference: Difference, column: Column) -> str:
    sign = -1.0 if column.best == "min" else 1.0
    text = format(sign * difference.advantage, f"+{column.format}")
    if difference.uncertainty is None:
        return f"{text} (one seed, no interval)"
    return f"{text} ± {format(difference.uncertainty, column.format)}"
