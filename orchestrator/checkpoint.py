"""How is a state kept so that a kill at any moment loses nothing? Files first, their hashes next, a pointer last.

    step-CLOCK-EPOCH/FILE ...       the state
    step-CLOCK-EPOCH/manifest.json  the size and SHA-256 of each file
    LATEST                          {clock, epoch, folder}: changed only by whoever saw it last

A folder carries the epoch of the lease under which it was written, so a former holder overwrites nothing of its
successor's; and LATEST, once claimed by a later epoch, can not be moved by an earlier one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.blobs import Blobs, Conflict, TransientError
from orchestrator.errors import LeaseLost, PreflightError
from orchestrator.failpoints import failpoint

MANIFEST = "manifest.json"
POINTER = "LATEST"
FOLDER = re.compile(r"step-(\d{12})-(\d{6})")
READ_SECONDS = 120.0
"""For so long a place that does not answer is asked again when a state is read."""
PROBE_SECONDS = 30.0
LONGEST_WAIT = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A state that verified: every file has the recorded SHA-256."""

    clock: int
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class _Pointer:
    clock: int
    epoch: int
    folder: str | None

    def encoded(self) -> bytes:
        return json.dumps({"clock": self.clock, "epoch": self.epoch, "folder": self.folder}).encode()

    @staticmethod
    def decoded(content: bytes) -> _Pointer:
        """Raises ValueError for what is none."""
        try:
            said = json.loads(content)
            return _Pointer(int(said["clock"]), int(said["epoch"]), said["folder"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{POINTER} is not what was written") from error


class CheckpointStore:
    """The newest `keep` checkpoints of one training, whose lease has this epoch."""

    def __init__(self, blobs: Blobs, *, epoch: int = 0, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 checkpoint must stay")
        self._blobs, self._epoch, self._keep = blobs, epoch, keep
        self._version: str | None = None
        self._claimed = False
        self._good: list[str] = []
        """Folders of states that verified or were written by us, oldest first."""

    def resume(self, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """The newest state that verifies, and from now on this epoch's alone to follow. None where there is none.

        Each newer one that does not verify is reported by the file at fault. A place that does not answer is no damage:
        it is asked again, and TransientError raised after two minutes. Raises LeaseLost when a later epoch was here.
        """
        self._claim()
        found = self._newest(on_damage)
        self._good = [] if found is None else [found[0]]
        return None if found is None else found[1]

    def latest(self, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """The same for readers, who claim nothing."""
        found = self._newest(on_damage)
        return None if found is None else found[1]

    def clock(self) -> int:
        """Of the newest state that LATEST names; 0 where there is none, or where nothing answers at once."""
        try:
            found = self._blobs.version(POINTER)
            return 0 if found is None else _Pointer.decoded(found[1]).clock
        except (OSError, ValueError):
            return 0

    def save(self, files: Mapping[str, bytes], *, clock: int) -> None:
        """Keep a state. When this returns it is stored, with its hashes, and LATEST names it.

        Raises LeaseLost when a later epoch claimed the place: what LATEST names, and all it needs, is then untouched.
        """
        if not self._claimed:
            self._claim()
        folder = f"step-{clock:012d}-{self._epoch:06d}"
        try:
            self._store(folder, files, clock)
        except LeaseLost:
            self._remove(folder)  # nobody needs it, and nobody should go on from it
            raise
        self._good = [*(good for good in self._good if good != folder), folder]
        self._retain()

    def _store(self, folder: str, files: Mapping[str, bytes], clock: int) -> None:
        for name, content in files.items():
            self._blobs.write(f"{folder}/{name}", content)
        failpoint("checkpoint.after-data")
        manifest = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
        self._blobs.write(f"{folder}/{MANIFEST}", json.dumps({"clock": clock, "files": manifest}).encode())
        failpoint("checkpoint.after-manifest")
        self._point(_Pointer(clock, self._epoch, folder))
        failpoint("checkpoint.after-pointer")

    def _claim(self) -> None:
        """Make LATEST this epoch's. What it says besides is for people: what counts is what verifies."""
        while True:
            found = _patiently(lambda: self._blobs.version(POINTER))
            if found is None:
                self._version, pointer = None, _Pointer(0, self._epoch, None)
            else:
                self._version = found[0]
                pointer = self._now(found[1])
            try:
                _patiently(lambda: self._point(_Pointer(pointer.clock, self._epoch, pointer.folder)))  # noqa: B023
                self._claimed = True
                return
            except LeaseLost:
                now = _patiently(lambda: self._blobs.version(POINTER))
                if now is not None and _Pointer.decoded(now[1]).epoch > self._epoch:
                    raise

    def _now(self, content: bytes) -> _Pointer:
        try:
            pointer = _Pointer.decoded(content)
        except ValueError:
            return _Pointer(0, self._epoch, None)  # damaged: nothing hangs on it
        if pointer.epoch > self._epoch:
            raise LeaseLost(f"{self._blobs.location}: taken over by the holder of lease {pointer.epoch}")
        return pointer

    def _point(self, pointer: _Pointer) -> None:
        try:
            self._version = self._blobs.swap(POINTER, pointer.encoded(), expected=self._version)
        except Conflict as conflict:
            raise LeaseLost(f"{self._blobs.location}: another process writes its checkpoints here") from conflict

    def _newest(self, on_damage: Callable[[str], None]) -> tuple[str, Checkpoint] | None:
        names = _patiently(self._blobs.names)
        folders = sorted({name.split("/")[0] for name in names if FOLDER.fullmatch(name.split("/")[0])}, reverse=True)
        for folder in folders:
            try:
                return folder, self._read(folder)
            except (FileNotFoundError, ValueError) as error:
                on_damage(f"checkpoint {folder} is damaged ({_said(error)}); going back to the one before it")
        return None

    def _read(self, folder: str) -> Checkpoint:
        """Raises FileNotFoundError or ValueError for what is not what was written."""
        clock, described = _manifest(_patiently(lambda: self._blobs.read(f"{folder}/{MANIFEST}")))
        files = {}
        for name, (size, sha256) in described.items():
            content = _patiently(lambda name=name: self._blobs.read(f"{folder}/{name}"))  # type: ignore[misc]
            if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"{name} is not what was written")
            files[name] = content
        return Checkpoint(clock, files)

    def _remove(self, folder: str) -> None:
        for name in self._blobs.names():
            if name.startswith(f"{folder}/"):
                self._blobs.delete(name)

    def _retain(self) -> None:
        """Remove all but the newest good states, of this epoch and those before it; never what a later one wrote."""
        self._good = self._good[-self._keep :]
        for name in self._blobs.names():
            folder = name.split("/")[0]
            match = FOLDER.fullmatch(folder)
            if match is not None and folder not in self._good and int(match[2]) <= self._epoch:
                failpoint("checkpoint.in-retention")
                self._blobs.delete(name)


def _manifest(content: bytes) -> tuple[int, dict[str, tuple[int, str]]]:
    """The clock, and the size and hash of each file."""
    try:
        said = json.loads(content)
        return said["clock"], {name: (of["size"], of["sha256"]) for name, of in dict(said["files"]).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{MANIFEST} is not what was written") from error


def check_writable(blobs: Blobs) -> None:
    """Raises PreflightError when nothing can be kept there, read again and removed, for half a minute."""
    name, content = f"probe-{uuid.uuid4().hex}", b"papertable"
    try:
        version = _patiently(lambda: blobs.swap(name, content, expected=None), seconds=PROBE_SECONDS)
        found = _patiently(lambda: blobs.version(name), seconds=PROBE_SECONDS)
        _patiently(lambda: blobs.delete(name), seconds=PROBE_SECONDS)
    except (OSError, Conflict) as error:
        raise PreflightError(f"checkpoints cannot be kept in {blobs.location} ({error})") from error
    if found != (version, content):
        raise PreflightError(f"checkpoints cannot be kept in {blobs.location}: what was written was not read again")


def _patiently(ask: Callable[[], T], *, seconds: float | None = None) -> T:
    """Ask a place that may not answer at once; raises TransientError when it does not for READ_SECONDS, or so long."""
    patience = READ_SECONDS if seconds is None else seconds
    began, wait = time.monotonic(), 0.2
    while True:
        try:
            return ask()
        except TransientError:
            if time.monotonic() - began + wait > patience:
                raise
        time.sleep(wait * random.uniform(0.5, 1.0))  # workers of many trainings should not ask all at once
        wait = min(2 * wait, LONGEST_WAIT)


def _said(error: BaseException) -> str:
    return f"missing: {error.filename or error}" if isinstance(error, FileNotFoundError) else str(error)
