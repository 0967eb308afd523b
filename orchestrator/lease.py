"""Who runs a step when several want it at once? Whoever holds its lease; the kernel takes it from a dead process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from orchestrator.errors import StepBusy

POLL_SECONDS = 0.2


@contextmanager
def hold(path: Path, what: str, *, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lease at `path` for the time of the block, waiting for another owner to end.

    Raises StepBusy after timeout_s; None waits as long as the owner lives. kill -9 of the owner frees it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file, path, what, timeout_s)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(owner))
        file.flush()
        yield  # closing the file frees the lease


def _acquire(file: IO[str], path: Path, what: str, timeout_s: float | None) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                raise StepBusy(f"{what} is still being run by {_owner(path)} after {timeout_s:g} s") from None
        if not told:
            print(f"waiting for {what}, which is being run by {_owner(path)}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, OSError):
        return "another process"  # it holds the lease, and has not yet written who it is
