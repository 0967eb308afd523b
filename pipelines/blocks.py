"""How is work on many images shared out? In blocks of indices over a pool of workers; what is done is kept."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from orchestrator.files import write_durably
from orchestrator.lease import guarded
from orchestrator.step import StepContext
from orchestrator.store import RECORD_FILE

R = TypeVar("R")
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError, RuntimeError)
"""What numpy and zipfile raise, besides ValueError, for npz files that are not whole: the last two of flipped flags."""
Block = tuple[int, int]
"""Indices first..stop-1 of images."""
Arrays = Mapping[str, np.ndarray]
WORKING = "checkpoints"
"""Of a step's directory: what is in it is no output, and may be removed once the step is done."""


@dataclass(frozen=True)
class Kept(Generic[R]):
    """Where the results of blocks stay, so that work that is killed goes on from them."""

    folder: Path
    """Of this work alone."""
    version: int
    """Of the step: what another version left is not gone on from."""
    suffix: str
    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]
    """Raises ValueError for what is not what was encoded."""

    def file(self, block: Block) -> Path:
        """Where a block's result stays."""
        return self.folder / f"{block[0]:09d}-{block[1]:09d}{self.suffix}"

    def begin(self, ctx: StepContext, *, block_size: int) -> None:
        """Forget what was made by another version of the step, of other inputs, or in blocks of another size."""
        made_of = {role: _sha256(path / RECORD_FILE) for role, path in sorted(ctx.inputs.items())}
        stamp = json.dumps({"version": self.version, "inputs": made_of, "block": block_size}).encode()
        file = self.folder.with_name(f".{self.folder.name}.made-of.json")
        if not file.exists() or file.read_bytes() != stamp:
            with guarded(ctx.fence):
                shutil.rmtree(self.folder, ignore_errors=True)
            write_durably(file, stamp, turn=guarded(ctx.fence))

    def result(self, block: Block) -> R | None:
        """What was kept of a block; None where nothing was, or where it is damaged."""
        try:
            return self.decode(self.file(block).read_bytes())
        except (FileNotFoundError, ValueError):
            return None


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def kept_arrays(folder: Path, version: int, of: Callable[[R], Arrays], back: Callable[[Arrays], R]) -> Kept[R]:
    """Results that are arrays by name, in npz files, whose checksums say whether they are whole."""

    def encode(result: R) -> bytes:
        content = io.BytesIO()
        np.savez(content, **of(result))  # type: ignore[arg-type]  # its stub takes the arrays for allow_pickle
        return content.getvalue()

    def decode(content: bytes) -> R:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                return back({name: stored[name] for name in stored.files})
        except UNREADABLE as error:
            raise ValueError(f"not whole: {error}") from error

    return Kept(folder, version, ".npz", encode, decode)


def map_blocks(
    ctx: StepContext, work: Callable[[Block], R], count: int, *, block_size: int, pass_number: int = 1, passes: int = 1,
    kept: Kept[R] | None = None,
) -> list[R]:  # fmt: skip
    """work(block) for all blocks of 0..count-1, on the step's workers; the results, in the blocks' order.

    What is kept of a block is not computed again. Progress counts this as one of so many passes over all of them.
    """
    if kept is not None:
        kept.begin(ctx, block_size=block_size)
    blocks = [(first, min(first + block_size, count)) for first in range(0, count, block_size)]
    found = {block: result for block in blocks if kept is not None and (result := kept.result(block)) is not None}
    missing = [block for block in blocks if block not in found]
    done = count * (pass_number - 1) + sum(stop - first for first, stop in found)
    begun, began = done, time.monotonic()

    def take(index: int, result: R) -> None:
        nonlocal done
        block = missing[index]
        if kept is not None:
            write_durably(kept.file(block), kept.encode(result), turn=guarded(ctx.fence))
        found[block] = result
        done += block[1] - block[0]
        speed = (done - begun) / max(time.monotonic() - began, 1e-9)
        ctx.progress(done=done, total=count * passes, unit="img", **{"img/s": round(speed, 1)})

    ctx.progress(done=done, total=count * passes, unit="img")
    ctx.backend.map(work, missing, resources=ctx.resources, on_result=take)
    return [found[block] for block in blocks]
