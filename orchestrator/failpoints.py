"""Where may a process be killed, to see that nothing is lost? At named points, idle unless a test arms them.

A test names a folder in PAPERTABLE_FAILPOINTS before any process starts, and puts into it a file called like the point,
which says at which passage the process that makes it dies, by SIGKILL, and is renamed first: a point fires once.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

FOLDER = "PAPERTABLE_FAILPOINTS"
FIRED = ".fired"

_folder = os.environ.get(FOLDER)
_passages: dict[str, int] = {}


def _die_if_armed(name: str) -> None:
    assert _folder is not None
    armed = Path(_folder) / name
    try:
        at = int(armed.read_text())
    except FileNotFoundError:
        return
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] >= at:
        try:
            armed.rename(armed.with_name(name + FIRED))
        except FileNotFoundError:
            return  # another process died of it
        os.kill(os.getpid(), signal.SIGKILL)


def _nothing(name: str) -> None: ...


ARMED = _folder is not None
failpoint = _die_if_armed if ARMED else _nothing
"""failpoint(name) marks a moment, such as "checkpoint.after-manifest", at which a kill must lose nothing."""
