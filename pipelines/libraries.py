"""Which libraries' versions may have moved a number?"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from orchestrator.store import RECORD_FILE


def versions(*packages: str) -> str:
    """Of packages that are installed here, in words."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def made_with(artifact: Path, *packages: str) -> str:
    """Of the packages that made a step's artifact, likewise: as its record has them."""
    provenance = json.loads((artifact / RECORD_FILE).read_text())["provenance"]
    return ", ".join(f"{package} {provenance[package]}" for package in packages)
