"""How is a state kept so that a kill at any moment loses nothing? Files first, their hashes next, a pointer last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
POINTER = "LATEST"


@dataclass(frozen=True)
class Checkpoint:
    """A state that verified: every file has the recorded SHA-256."""

    clock: int
    files: Mapping[str, bytes]


class CheckpointDirectory:
    """The newest `keep` checkpoints of one training, in folders named after their clock."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least 1 checkpoint must stay")
        self._path = path
        self._keep = keep

    def save(self, files: Mapping[str, bytes], *, clock: int) -> Path:
        """Keep a state. When this returns it is on disk, verified by its manifest, and LATEST names it."""
        folder = self._path / f"step-{clock:012d}"
        shutil.rmtree(folder, ignore_errors=True)  # what a kill left of an earlier attempt
        folder.mkdir(parents=True)
        for name, content in files.items():
            _write(folder / name, content)
        manifest = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
        _write(folder / MANIFEST, json.dumps({"clock": clock, "files": manifest}).encode())
        _sync(folder)
        _write(self._path / f".{POINTER}", folder.name.encode())
        (self._path / f".{POINTER}").replace(self._path / POINTER)
        _sync(self._path)
        # Newer ones did not verify, or this state would not have been reached again.
        newer, kept = [f for f in self._folders() if f > folder], [f for f in self._folders() if f <= folder]
        for old in [*newer, *kept[self._keep :]]:
            shutil.rmtree(old)
        return folder

    def load_latest(self, *, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """The newest state that verifies; each newer one that does not is reported by the file at fault."""
        for folder in self._folders():
            try:
                return _read(folder)
            except (OSError, ValueError, KeyError) as error:
                on_damage(f"checkpoint {folder.name} is damaged ({error}); going back to the one before it")
        return None

    def _folders(self) -> list[Path]:
        """Newest first. LATEST is for people and other programs: what counts is what verifies."""
        return sorted(self._path.glob("step-*"), reverse=True)


def _read(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    files = {}
    for name, expected in manifest["files"].items():
        content = (folder / name).read_bytes()
        if len(content) != expected["size"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
        files[name] = content
    return Checkpoint(manifest["clock"], files)


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
