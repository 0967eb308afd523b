"""How is a file written that others read meanwhile, and changed when others may change it, too? Whole, and in turn."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from orchestrator.errors import GateHeld

GATE_SECONDS, GATE_POLL_SECONDS = 60.0, 0.005


def write_whole(file: Path, text: str) -> None:
    """Write a file that is read meanwhile: a reader finds the old text or the new one. A power cut may lose it."""
    partial = _beside(file)
    with naming(file):
        try:
            partial.write_text(text)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def write_durably(
    file: Path, content: bytes, *, halfway: Callable[[], None] = lambda: None,
    turn: AbstractContextManager[object] | None = None,
) -> None:  # fmt: skip
    """The same, and when this returns a power cut loses nothing. Makes the folder. An OSError names the file.

    halfway() is called when half of the content is on its way: there tests kill. The file is replaced within turn,
    which is held for no more than that: a process that is stopped within it stops others.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial, half = _beside(file), len(content) // 2
    with naming(file):
        try:
            with partial.open("wb", buffering=0) as stream:
                _write_all(stream.fileno(), content[:half])
                halfway()
                _write_all(stream.fileno(), content[half:])
                os.fsync(stream.fileno())
            with turn or nullcontext():
                partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        sync(file.parent)


def sync(path: Path) -> None:
    """When this returns a power cut loses nothing of a file that is written, or of a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def gate(file: Path) -> Iterator[None]:
    """Within the block nobody else is within a block of the same file: held by a lock on another one beside it.

    Raises GateHeld when another process stays there for a minute: one that was stopped in it, say.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with gate_file(file).open("a") as lock:
        deadline = time.monotonic() + GATE_SECONDS
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                raise GateHeld(f"{lock.name}: another process has held it for {GATE_SECONDS:g} s; end it, if it hangs")
            time.sleep(GATE_POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too


def gate_file(file: Path) -> Path:
    """What gate() locks. It stays: one that is removed while somebody waits for it would let two in."""
    return file.with_name(f".{file.name}.gate")


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")  # others may write it, too, on other machines


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """An OSError within the block names the file: that of a full disk does not by itself say which."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:  # it is named, or says by itself what is wrong
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
