"""A training small enough to be killed many times, run as a user runs it, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.journal import read_points
from tests.small_study import ROOT, wait_until

IMAGES = 6_400
OFTEN = ("--checkpoint-steps", "7")
SAME = "weights, averages, optimizer, histories of t and journal equal the undisturbed run's"
SETTINGS = {
    "model.dropout": "0.1",
    "train.timesteps.kind": "loss_second_moment",
    "train.timesteps.pools": "20",
    "train.batch_size": "64",
    "train.reduction.shards": "4",
    "train.ema.rates": "[0.98, 0.9]",
}
"""Everything that a state can hold: histories of t, two averages, and masks that are a function of the step."""


def command(store: Path, *arguments: str, images: int = IMAGES) -> list[str]:
    """The command line of the training."""
    settings = [f"{key}={value}" for key, value in {"train.images": str(images), **SETTINGS}.items()]
    script = str(ROOT / "pipelines" / "train.py")
    return [sys.executable, script, "tiny", "--store", str(store), *arguments, *(f"--set={s}" for s in settings)]


def environment(**changes: str) -> dict[str, str]:
    """One thread, and what a test adds."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), **changes}


def call(store: Path, *arguments: str, images: int = IMAGES, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(store, *arguments, images=images), capture_output=True, text=True, timeout=900, cwd=ROOT,
        env=environment(**changes),
    )  # fmt: skip


@contextmanager
def begun(store: Path, *arguments: str, images: int = IMAGES, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """The training, running in the background; what it says goes to {store}.log. Killed at the end of the block."""
    with Path(f"{store}.log").open("ab") as log:
        process = subprocess.Popen(
            command(store, *arguments, images=images), stdout=log, stderr=log, cwd=ROOT, env=environment(**changes)
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def directory(store: Path) -> Path | None:
    """Of the train step, once it has begun."""
    return next(iter(store.glob("train/*/")), None)


def steps_done(store: Path) -> int:
    """How far the journal is, in steps of a batch of 64."""
    journal = next(iter(store.glob("train/*/journal.jsonl")), None)
    return 0 if journal is None else max((point.step for point in read_points(journal)[0]), default=0) // 64


def saved_steps(store: Path) -> int:
    """How far the newest state is that LATEST names."""
    pointer = next(iter(store.glob("train/*/checkpoints/LATEST")), None)
    return 0 if pointer is None else int(json.loads(pointer.read_text())["clock"]) // 64


def is_training(store: Path) -> bool:
    """Whether some process has begun to train, and listens."""
    return any(store.glob("train/*/listening"))


def forget_listener(store: Path) -> None:
    """What a killed process left: the next one is then recognised by its own."""
    for file in store.glob("train/*/listening"):
        file.unlink()


@dataclass(frozen=True)
class Left:
    """What a training left: hashes of its weights, of its whole last state, and its journal's losses."""

    weights: Mapping[str, str]
    state: str
    losses: tuple[tuple[int, float], ...]


def left(store: Path) -> Left:
    """Of the one training in a store."""
    (output,) = [folder for folder in store.glob("train/*/") if (folder / "record.json").exists()]
    state = hashlib.sha256()
    for newest in sorted(output.glob("checkpoints/step-*"))[-1:]:  # none where they are kept in a bucket
        for name in ("state.safetensors", "meta.json"):
            state.update((newest / name).read_bytes())
    weights = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in output.glob("*.safetensors")}
    points = read_points(output / "journal.jsonl")[0]
    return Left(weights, state.hexdigest(), tuple((p.step, p.value) for p in points if p.key == "loss"))


def resumed(store: Path, process: subprocess.Popen[bytes], since: float) -> float:
    """Wait until a training that was begun takes steps; the seconds since."""
    forget_listener(store)
    wait_until(lambda: is_training(store), process)
    return time.monotonic() - since
