"""Kill a process while it writes checkpoints, at a hundred random bytes: the newest readable state always verifies."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.blobs import LocalBlobs
from orchestrator.checkpoint import CheckpointStore
from tests.chaos.guarantees import Finding, record

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

TRIALS, SIZE = 100, 200_000
SAVER = """
import os, signal, sys
from pathlib import Path
from orchestrator.blobs import LocalBlobs
from orchestrator.checkpoint import CheckpointStore

left, write = int(sys.argv[2]), os.write

def write_and_die(descriptor, content):
    global left
    if left > len(content):
        left -= len(content)
        return write(descriptor, content)
    write(descriptor, content[:left])
    os.kill(os.getpid(), signal.SIGKILL)

store = CheckpointStore(LocalBlobs(Path(sys.argv[1])))
found = store.resume(on_damage=lambda what: print(what, file=sys.stderr))
clock = 0 if found is None else found.clock
os.write = write_and_die
while True:
    clock += 1
    store.save({"state": clock.to_bytes(4, "big") * 50_000, "meta": b"%d" % clock}, clock=clock)
    print(clock, flush=True)
"""


def test_a_hundred_kills_at_random_bytes(tmp_path: Path) -> None:
    offsets, held, kept, seconds = random.Random(3), 0, 0, []
    for _ in range(TRIALS):
        arguments = [sys.executable, "-c", SAVER, str(tmp_path), str(offsets.randrange(1, 3 * SIZE))]
        ended = subprocess.run(arguments, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        kept = int(ended.stdout.split()[-1]) if ended.stdout else kept
        began = time.monotonic()
        found = CheckpointStore(LocalBlobs(tmp_path)).resume(on_damage=lambda _: None)
        seconds.append(time.monotonic() - began)
        if found is None:
            held += kept == 0
            continue
        whole = found.files["state"] == found.clock.to_bytes(4, "big") * 50_000
        held += whole and found.files["meta"] == b"%d" % found.clock and found.clock in (kept, kept + 1)
        kept = found.clock
    notes = "the newest state that verifies is the last one said to be kept, or the one being kept"
    record(
        Finding("SIGKILL in the middle of writing a checkpoint, at a random byte", TRIALS, held, seconds, notes=notes)
    )
    assert held == TRIALS
    assert kept > TRIALS // 2
