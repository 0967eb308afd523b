"""Who runs a step when several want it at once? Whoever holds its lease, for as long as it is heard of.

A lease is a small file that says who holds it, by which epoch, and how often that holder was heard of. Every taking
raises the epoch, and the file stays, so epochs only grow. A holder that was thought dead and wakes up finds a higher
epoch: through a Fence it can write nothing more. The file is read and changed under the lock of another, the gate, held
for that moment alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import DamagedArtifact, LeaseLost, StepBusy
from orchestrator.files import gate, write_durably

EXPIRES_SECONDS = 60.0
BEATS = 6  # while a lease lasts: so many may be missed but one
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Holder:
    """A process, known from all others that ever were."""

    machine: str
    pid: int
    started: str
    """In the kernel's ticks since it booted: another process may get the same number later."""
    since: str

    @staticmethod
    def this_process() -> Holder:
        """The one that asks."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return Holder(_machine(), os.getpid(), _start_time(os.getpid()) or "", since)

    def is_gone(self) -> bool:
        """Whether it certainly runs no more: that is only known on its own machine."""
        return self.machine == _machine() and _start_time(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine.partition('/')[0]} since {self.since}"


@dataclass(frozen=True)
class _State:
    epoch: int
    beat: int
    holder: Holder | None


@dataclass(frozen=True)
class Fence:
    """What lets the holder of a lease write, wherever it runs, and nobody that held it before."""

    path: Path
    epoch: int

    def check(self) -> None:
        """Raises LeaseLost when somebody else has taken the step over, or its holder gave it back."""
        state = _read(self.path)
        if state.epoch != self.epoch:
            raise LeaseLost(f"{self.path.stem} was taken over by {state.holder or 'another process'}")
        if state.holder is None:
            raise LeaseLost(f"{self.path.stem} was given back")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """The same, and within the block nobody can take it over: for short writes. Raises LeaseLost."""
        with gate(self.path):
            self.check()
            yield


def seize(path: Path) -> Fence:
    """Take a lease without asking its holder, who can write nothing from then on: for who knows that it should end."""
    with gate(path):
        taken = _State(_read(path).epoch + 1, 0, Holder.this_process())
        _write(path, taken)
    return Fence(path, taken.epoch)


def is_at_work(path: Path, *, expires_s: float = EXPIRES_SECONDS) -> bool:
    """Whether a holder is heard of, as far as can be said at once: by the file's age on this machine's clock."""
    holder = _read(path).holder
    return holder is not None and not holder.is_gone() and time.time() - path.stat().st_mtime < expires_s


def guarded(fence: Fence | None) -> AbstractContextManager[None]:
    """The guard of a fence, where there is one."""
    return nullcontext() if fence is None else fence.guard()


@contextmanager
def hold(
    path: Path, what: str, *, expires_s: float = EXPIRES_SECONDS, timeout_s: float | None = None
) -> Iterator[Fence]:
    """Hold the lease at `path` for the time of the block, waiting until it is free.

    It is free when it was given back, when its holder was a process of this machine that is gone, and when nothing was
    heard of the holder for expires_s, by the clock of whoever waits. Raises StepBusy after timeout_s; None waits on.
    """
    fence = _acquire(path, what, expires_s, timeout_s)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(fence, expires_s / BEATS, ended), name="lease", daemon=True)
    beats.start()
    try:
        yield fence
    finally:
        ended.set()
        beats.join()
        with suppress(OSError):  # where nothing can be written, it expires
            _give_back(fence)


def _acquire(path: Path, what: str, expires_s: float, timeout_s: float | None) -> Fence:
    began, told = time.monotonic(), False
    seen, seen_at = None, began
    while True:
        with gate(path):
            state = _read(path)
            if state != seen:
                seen, seen_at = state, time.monotonic()
            silent = time.monotonic() - seen_at >= expires_s
            if state.holder is None or state.holder.is_gone() or silent:
                taken = _State(state.epoch + 1, 0, Holder.this_process())
                _write(path, taken)
                return Fence(path, taken.epoch)
        if timeout_s is not None and time.monotonic() - began >= timeout_s:
            raise StepBusy(f"{what} is still being run by {state.holder} after {timeout_s:g} s")
        if not told:
            print(f"waiting for {what}, which is being run by {state.holder}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _beat(fence: Fence, seconds: float, ended: threading.Event) -> None:
    """Let others hear of the holder until the block ends, or the lease is lost: that the holder learns as it writes."""
    while not ended.wait(seconds):
        # A file system that does not answer now is asked again: what others hear of us is its last good beat.
        with suppress(OSError), gate(fence.path):
            state = _read(fence.path)
            if state.epoch != fence.epoch:
                return
            _write(fence.path, _State(state.epoch, state.beat + 1, state.holder))


def _give_back(fence: Fence) -> None:
    with gate(fence.path):
        state = _read(fence.path)
        if state.epoch == fence.epoch:
            _write(fence.path, _State(state.epoch, state.beat, None))


def _read(path: Path) -> _State:
    """A lease that nobody has held yet is free, at epoch 0. Raises DamagedArtifact for a file that is none."""
    try:
        said = json.loads(path.read_bytes())
        holder = said["holder"]
        return _State(said["epoch"], said["beat"], None if holder is None else Holder(**holder))
    except FileNotFoundError:
        return _State(0, 0, None)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(path, f"no lease ({error}); remove it when nobody works on the step") from error


def _write(path: Path, state: _State) -> None:
    """Durably: an epoch that came back after a power cut would let two write."""
    write_durably(path, json.dumps(asdict(state)).encode())


def _machine() -> str:
    """Of containers that share a kernel, or a name, each is a machine of its own: they do not see each other's pids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            str(Path("/proc/self/ns/pid").readlink()),
        ]
    return "/".join(parts)


def _start_time(pid: int) -> str | None:
    """Of a process that runs; None of one that does not. Where there is no /proc, "" of one that runs."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, and waits for its parent to notice
