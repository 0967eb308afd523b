"""Are two numbers comparable? When all that decides them is the same; what they were measured with is told beside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.config import canonical_json

MEASURED_WITH = "measured_with"
"""Of a protocol: stage -> versions of libraries, and devices. They move a number by rounding, and decide nothing."""

Protocol = Mapping[str, Any]


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


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[Any, Any]]:
    """Key -> its values in two protocols, where they decide and differ; None: it is not there."""
    ours, theirs = deciding(first), deciding(second)
    keys = sorted(ours.keys() | theirs.keys())
    pairs = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if canonical_json(a) != canonical_json(b)}


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
