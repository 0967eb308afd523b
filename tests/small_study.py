"""A study small enough for a test, run as a user runs it, and the means to disturb it."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = [
    "1K linear simple",
    "4K linear simple",
    "4K linear hybrid",
    "4K cosine simple",
    "4K cosine hybrid",
    "4K cosine vlb",
]
SMALL = [
    "nll.terms.draws=4",
    "nll.images=16",
    "sample.count=64",
    "sample.sampler.respacing=10",
    "metrics.kid_subset_size=32",
]


def command(store: Path, *arguments: str, images: int = 2560) -> list[str]:
    """The command line of the study, with every row trained on so many images."""
    script = str(ROOT / "pipelines" / "ablation.py")
    return [sys.executable, script, "iddpm-cifar10", "--store", str(store), *arguments, *settings(images)]


def settings(images: int = 2560) -> list[str]:
    """What makes the study small."""
    return [word for setting in (f"train.images={images}", *SMALL) for word in ("--set", setting)]


def call(store: Path, *arguments: str, images: int = 2560) -> subprocess.CompletedProcess[str]:
    """Run the study to its end."""
    whole = command(store, *arguments, images=images)
    return subprocess.run(whole, capture_output=True, text=True, timeout=900, cwd=ROOT)


def report(verb: str, store: Path, *arguments: str, images: int = 2560) -> subprocess.CompletedProcess[str]:
    """What pipelines/report.py says of it."""
    script = [sys.executable, str(ROOT / "pipelines" / "report.py"), verb, "iddpm-cifar10", "--store", str(store)]
    return subprocess.run(
        [*script, *arguments, *settings(images)], capture_output=True, text=True, timeout=300, cwd=ROOT
    )


@contextmanager
def begun(store: Path, *arguments: str, images: int, new_group: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """The study, running in the background; what it says goes to {store}.log. Killed at the end of the block."""
    with Path(f"{store}.log").open("wb") as log:
        process = subprocess.Popen(
            command(store, *arguments, images=images), stdout=log, stderr=log, cwd=ROOT, start_new_session=new_group
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def models(store: Path) -> dict[str, str]:
    """Fingerprint of a train step -> SHA-256 of the weights it left."""
    files = store.glob("train/*/model.safetensors")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def trained(store: Path) -> set[str]:
    """Fingerprints of the train steps that have their record."""
    return {file.parent.name for file in store.glob("train/*/record.json")}


def training(store: Path) -> set[str]:
    """Fingerprints of the train steps that have a checkpoint and a line in their journal, and no record yet."""
    begun = {file.parents[2].name for file in store.glob("train/*/checkpoints/*/manifest.json")} - trained(store)
    journals = {name: store / "train" / name / "journal.jsonl" for name in begun}
    return {name for name, journal in journals.items() if journal.exists() and journal.stat().st_size}


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], *, seconds: float = 300) -> None:
    """Wait for something to happen while the study runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the study ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(pid: int, *, named: str = "") -> list[int]:
    """The processes below one, all the way down; those whose command line begins so."""
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            waiting.append(child)
            if commands.get(child, "").startswith(named):
                found.append(child)
    return found


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A real MLflow server on loopback, which can be killed and started again on what it had."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        arguments = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self._home}/mlflow.db",
            "--artifacts-destination", str(self._home / "artifacts"),
        ]  # fmt: skip
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, self._process, seconds=120)

    def kill(self) -> None:
        """End it and its workers, which are a process group of their own, with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            return False
        return True
