"""How is a state kept so that a kill at any moment loses nothing? Files first, their hashes next, a pointer last.

    step-CLOCK-EPOCH/FILE ...       the state
    step-CLOCK-EPOCH/manifest.json  the size and SHA-256 of each file
    LATEST                          {clock, epoch, folder, writer}: changed only by whoever changed it last

Who comes to write claims LATEST, by the epoch after all that are there; whoever was there before can then not move it.
A folder carries the epoch of its writer, so a former one overwrites nothing of its successor's. All this lies where the
states lie: training goes on from them also where everything else was lost.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

from orchestrator.blobs import Blobs, Conflict, TransientError
from orchestrator.errors import CheckpointsTaken, PreflightError
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
    writer: str
    """Of two who claim the same epoch at once, either finds what it wrote itself, or what it did not."""

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def decoded(content: bytes) -> _Pointer:
        """What is none is as good as nothing: what counts is what verifies."""
        try:
            said = json.loads(content)
            return _Pointer(int(said["clock"]), int(said["epoch"]), said["folder"], str(said["writer"]))
        except (TypeError, KeyError, ValueError):
            return _Pointer(0, 0, None, "")


class CheckpointStore:
    """The newest `keep` checkpoints of one training."""

    def __init__(self, blobs: Blobs, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 checkpoint must stay")
        self._blobs, self._keep = blobs, keep
        self._writer = uuid.uuid4().hex
        self._version: str | None = None
        """Of LATEST, as this one left it."""
        self._epoch = 0
        self._pointed_at: str | None = None
        """The folder that LATEST named when it was claimed."""
        self._good: list[str] = []
        """Folders of states that verified or were written by us, oldest first."""

    def claim(self, *, turn: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """Be the one who writes here: whoever was before can keep nothing more. TransientError after two minutes.

        turn() is held for each try to do so, and says by what it raises who may not.
        """
        while self._version is None:
            found = _patiently(lambda: self._blobs.version(POINTER))
            version, content = (None, b"") if found is None else found
            pointer = _Pointer.decoded(content)
            epoch = 1 + max([pointer.epoch, *(epoch for _, epoch in self._folders())])
            mine = _Pointer(pointer.clock, epoch, pointer.folder, self._writer).encoded()
            with suppress(Conflict):  # another one came between: it is followed in turn
                self._version = _patiently(lambda: self._swapped(mine, version, turn))  # noqa: B023
                self._epoch, self._pointed_at = epoch, pointer.folder

    def _swapped(self, mine: bytes, version: str | None, turn: Callable[[], AbstractContextManager[object]]) -> str:
        with turn():
            return self._blobs.swap(POINTER, mine, expected=version)

    def resume(self, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """The newest state that verifies, and from now on this process's alone to follow. None where there is none.

        Each newer one that does not verify is reported by the file at fault; not what a kill left unfinished, which has
        no manifest and was never LATEST. A place that does not answer is no damage: it is asked again, and
        TransientError raised after two minutes.
        """
        self.claim()
        names = _patiently(self._blobs.names)
        for folder, _ in sorted(self._folders(), reverse=True):
            if f"{folder}/{MANIFEST}" not in names and folder != self._pointed_at:
                continue
            try:
                found = self._read(folder)
            except (FileNotFoundError, ValueError) as error:
                on_damage(f"checkpoint {folder} is damaged ({_said(error)}); going back to the one before it")
                continue
            self._good = [folder]
            return found
        return None

    def last(self) -> Checkpoint | None:
        """The state that LATEST names, for whoever writes nothing here; None where there is none.

        Raises ValueError or FileNotFoundError for one that does not verify, and TransientError as resume.
        """
        folder = self._pointer().folder
        return None if folder is None else self._read(folder)

    def last_clock(self) -> int:
        """Of that state; 0 where there is none. Raises TransientError as resume."""
        return self._pointer().clock

    def _pointer(self) -> _Pointer:
        found = _patiently(lambda: self._blobs.version(POINTER))
        return _Pointer.decoded(b"" if found is None else found[1])

    def clock(self) -> int:
        """Of the newest state that LATEST names; 0 where there is none, or where nothing answers at once."""
        try:
            found = self._blobs.version(POINTER)
        except OSError:
            return 0
        return 0 if found is None else _Pointer.decoded(found[1]).clock

    def save(self, files: Mapping[str, bytes], *, clock: int) -> None:
        """Keep a state. When this returns it is stored, with its hashes, and LATEST names it.

        Raises CheckpointsTaken when another one claimed the place: what LATEST names, and all it needs, stays.
        """
        self.claim()
        folder = f"step-{clock:012d}-{self._epoch:06d}"
        try:
            self._store(folder, files, clock)
        except CheckpointsTaken:
            with suppress(OSError):
                self._remove(folder)  # nobody needs it, and nobody should go on from it
            raise
        except FileNotFoundError as error:
            if (found := self._blobs.version(POINTER)) is None or found[0] == self._version:
                raise
            raise self._taken() from error  # who took it removes what others left half-written
        self._good = [*(good for good in self._good if good != folder), folder]
        self._retain()

    def _store(self, folder: str, files: Mapping[str, bytes], clock: int) -> None:
        for name, content in files.items():
            self._blobs.write(f"{folder}/{name}", content)
        failpoint("checkpoint.after-data")
        manifest = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
        self._blobs.write(f"{folder}/{MANIFEST}", json.dumps({"clock": clock, "files": manifest}).encode())
        failpoint("checkpoint.after-manifest")
        self._point(_Pointer(clock, self._epoch, folder, self._writer))
        failpoint("checkpoint.after-pointer")

    def _point(self, pointer: _Pointer) -> None:
        try:
            self._version = self._blobs.swap(POINTER, pointer.encoded(), expected=self._version)
        except Conflict as conflict:
            raise self._taken() from conflict

    def _taken(self) -> CheckpointsTaken:
        return CheckpointsTaken(
            f"{self._blobs.location}: another process, of another store, keeps its checkpoints here now; end one of "
            f"the two, or give it a place of its own with --checkpoints"
        )

    def _folders(self) -> set[tuple[str, int]]:
        """All folders of states, whole or not, and their epochs."""
        names = {name.split("/")[0] for name in _patiently(self._blobs.names)}
        return {(match[0], int(match[2])) for match in map(FOLDER.fullmatch, names) if match is not None}

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
        """Remove all but the newest good states, of this epoch and those before it; never what a later one wrote.

        Nothing while there are fewer than should stay: one that we went on from may have been a former writer's, who
        removed it as it was not LATEST yet.
        """
        names = self._blobs.names()
        self._good = [folder for folder in self._good if f"{folder}/{MANIFEST}" in names][-self._keep :]
        if len(self._good) < self._keep:
            return
        for name in names:
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
    """Raises PreflightError when nothing can be kept there, read again and removed, for half a minute.

    Also where a file is replaced although it is not what whoever replaces it saw.
    """
    name, content = f"probe-{uuid.uuid4().hex}", b"papertable"
    try:
        version = _patiently(lambda: blobs.swap(name, content, expected=None), seconds=PROBE_SECONDS)
        found = _patiently(lambda: blobs.version(name), seconds=PROBE_SECONDS)
        guarded = _refuses(blobs, name, expected=None) and _refuses(blobs, name, expected=re.sub(r"\w", "0", version))
        _patiently(lambda: blobs.delete(name), seconds=PROBE_SECONDS)
    except (OSError, Conflict) as error:
        raise PreflightError(f"checkpoints cannot be kept in {blobs.location} ({error})") from error
    if not guarded:
        raise PreflightError(
            f"checkpoints cannot be kept in {blobs.location}: it overwrites what has changed meanwhile, so a process "
            f"that was replaced could undo its successor's work. The server must know If-Match and If-None-Match"
        )
    if found != (version, content):
        raise PreflightError(f"checkpoints cannot be kept in {blobs.location}: what was written was not read again")


def _refuses(blobs: Blobs, name: str, *, expected: str | None) -> bool:
    """Whether a file that is there, and of another version, is left as it is."""
    try:
        _patiently(lambda: blobs.swap(name, b"another", expected=expected), seconds=PROBE_SECONDS)
    except Conflict:
        return True
    return False


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
