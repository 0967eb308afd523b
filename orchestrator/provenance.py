"""What made a number? The versions of the code and of the libraries it rests on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("papertable", "torch", "ray", "mlflow", "numpy", "scipy", "clean-fid", "pyarrow", "pillow")


@cache
def provenance() -> dict[str, Any]:
    """Commit, versions and machine type; nothing that names a person or a host."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if (changes := _git("status", "--porcelain", "-uno")) is None else bool(changes),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        **{package: _version(package) for package in PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the code's own folder; None without git or outside a repository (a job's working dir)."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
