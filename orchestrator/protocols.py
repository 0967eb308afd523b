"""Are two numbers comparable? When all that decides them is the same; what they were measured with is told beside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.config import canonical_json

MEASURED_WITH = "measured_with"
"""Of a protocol: stage -> versions of libraries, and devices. They move a number by rounding, and decide nothing."""

Protocol = Mapping[str, Any]
MixedProtocols = Literal["refuse", "mark"]
"""What a table does with a column of several."""


def protocol_fingerprint(protocol: Protocol) -> str:
    """Two short hashes, such as 3f9a1c2e-7b21: numbers of one protocol share the first.

    Those that share both were also measured with the same libraries (docs/adr/0009).
    """
    return f"{comparable_by(protocol)}-{_digest(protocol.get(MEASURED_WITH, {}))[:4]}"


def comparable_by(protocol: Protocol) -> str:
    """The first of them: a hash of all that decides a number."""
    return _digest(deciding(protocol))[:8]


def deciding(protocol: Protocol) -> dict[str, Any]:
    """All but what it was measured with; None is as if the key were not there."""
    return {key: value for key, value in protocol.items() if key != MEASURED_WITH and value is not None}


def without(protocol: Protocol, keys: Sequence[str]) -> dict[str, Any]:
    """All but those keys: a table that is about them compares by the others."""
    return {key: value for key, value in protocol.items() if key not in keys}


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """Key -> its values in two protocols, where they decide and differ; None: it is not there."""
    ours, theirs = deciding(first), deciding(second)
    keys = sorted(ours.keys() | theirs.keys())
    pairs = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if canonical_json(a) != canonical_json(b)}


@dataclass(frozen=True)
class Otherwise:
    """Rows of a column that were measured by another protocol than its first one."""

    column: str
    first: str
    rows: tuple[str, ...]
    fingerprint: str
    apart: Mapping[str, tuple[Any, Any]]
    """Key -> its value for the first row, and for these."""

    def refusal(self) -> str:
        """Why they cannot stand in one column."""
        key, (ours, theirs) = next(iter(self.apart.items()))
        return (
            f"{self.column} of {self.first!r} and {self.rows[0]!r} cannot stand in one column: {key} is {ours!r} in "
            f"one and {theirs!r} in the other; --mixed-protocols mark shows such rows, marked"
        )

    def footnote(self, mark: str) -> str:
        """What differs."""
        apart = ", ".join(f"{key}: {theirs} vs {ours}" for key, (ours, theirs) in self.apart.items())
        rows = ", ".join(self.rows)
        return f"{mark} {self.column} [{self.fingerprint}] of {rows}, measured otherwise than of {self.first}: {apart}"


def measured_otherwise(column: str, rows: Sequence[tuple[str, Protocol]]) -> list[Otherwise]:
    """For every protocol that is not the first row's, the rows it is of. rows: (row, protocol) of each seed, in order.

    Raises ValueError for a row whose seeds were measured by several: they have no mean.
    """
    protocols: dict[str, Protocol] = {}
    for row, protocol in rows:
        for key, (ours, theirs) in differences(protocols.setdefault(row, protocol), protocol).items():
            raise ValueError(
                f"{column} of {row!r} has no mean over seeds: {key} is {ours!r} in one and {theirs!r} in another; "
                f"remove the artifacts of one of them, and run again"
            )
    others: dict[str, list[str]] = {}
    for row, protocol in protocols.items():
        others.setdefault(comparable_by(protocol), []).append(row)
    first = next(iter(protocols), "")
    return [
        Otherwise(
            column, first, tuple(named), protocol_fingerprint(protocols[named[0]]),
            differences(protocols[first], protocols[named[0]]),
        )
        for named in list(others.values())[1:]
    ]  # fmt: skip


def measured_with(rows: Iterable[tuple[str, Protocol]]) -> list[str]:
    """For a table's reader: the libraries of every stage, and which rows had others. Of (row, protocol), in order."""
    stages: dict[str, dict[str, list[str]]] = {}
    for row, protocol in rows:
        for stage, versions in protocol.get(MEASURED_WITH, {}).items():
            named = stages.setdefault(stage, {}).setdefault(versions, [])
            if row not in named:
                named.append(row)
    alike = [f"{stage} by {next(iter(found))}" for stage, found in stages.items() if len(found) == 1]
    apart = [
        f"{stage}: not measured with the same libraries in all rows: "
        + "; ".join(f"{versions} ({', '.join(named)})" for versions, named in found.items())
        for stage, found in stages.items()
        if len(found) > 1
    ]
    return [*([f"Measured with: {'; '.join(alike)}"] if alike else []), *apart]


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
