"""Checkpoints in a folder: what verifies is read, whatever a kill or a disk did to the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.blobs import Blobs, LocalBlobs, TransientError, open_blobs
from orchestrator.checkpoint import POINTER, Checkpoint, CheckpointStore, check_writable
from orchestrator.checkpoint_writer import CheckpointWriter
from orchestrator.errors import CheckpointsTaken, PreflightError
from orchestrator.failpoints import FOLDER
from tests.checkpoints import FIRST, SECOND, THIRD, PlaceContract, found, saved


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return LocalBlobs(tmp_path / "place")


class TestFolder(PlaceContract):
    pass


def test_the_pointer_says_where_the_newest_state_is(blobs: Blobs) -> None:
    saved(blobs)
    said = json.loads(blobs.read(POINTER))
    assert {**said, "writer": ""} == {"clock": 20, "epoch": 1, "folder": "step-000000000020-000001", "writer": ""}


@pytest.mark.parametrize("location", ["gs://bucket/x", "http://host/x", "s3://", "file://relative"])
def test_a_place_of_another_kind_is_refused_by_name(location: str) -> None:
    with pytest.raises(ValueError, match=f"checkpoints='{location}': name a folder"):
        open_blobs(location)


def test_a_file_url_is_its_folder(tmp_path: Path) -> None:
    open_blobs(f"file://{tmp_path}/a%20b").write("x", b"1")
    assert (tmp_path / "a b" / "x").read_bytes() == b"1"


def test_a_place_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PreflightError, match=r"checkpoints cannot be kept in .*file"):
        check_writable(open_blobs(str(tmp_path / "file")))
    check_writable(open_blobs(str(tmp_path / "new")))
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_place_that_overwrites_what_others_changed_is_found_before_training(tmp_path: Path, ignored: str) -> None:
    class Careless(LocalBlobs):
        def swap(self, name: str, content: bytes, *, expected: str | None) -> str:
            if (expected is None) == (ignored == "If-None-Match"):
                found = self.version(name)
                expected = None if found is None else found[0]
            return super().swap(name, content, expected=expected)

    with pytest.raises(PreflightError, match=r"overwrites what has changed meanwhile.*must know If-Match"):
        check_writable(Careless(tmp_path / "place"))


FULL = """
import resource, sys
from pathlib import Path
from orchestrator.blobs import LocalBlobs
from orchestrator.checkpoint import CheckpointStore
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    CheckpointStore(LocalBlobs(Path(sys.argv[1]))).save({"state": b"x" * 5000}, clock=30)
except OSError as error:
    print(error.filename)
"""


def test_a_full_disk_is_named_by_file_and_the_state_before_still_verifies(blobs: Blobs, tmp_path: Path) -> None:
    saved(blobs)
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "place")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == str(tmp_path / "place" / "step-000000000030-000002" / "state")
    assert found(blobs) == (Checkpoint(20, SECOND), [])
    assert not [name for name in blobs.names() if name.endswith(".partial")]


SAVER = """
import sys
from pathlib import Path
from orchestrator.blobs import LocalBlobs
from orchestrator.checkpoint import CheckpointStore
store = CheckpointStore(LocalBlobs(Path(sys.argv[1])))
store.resume(on_damage=sys.exit)
for number in (3, 4):
    store.save({"state": bytes([number]) * 100_000, "meta": b"{}"}, clock=10 * number)
    print(10 * number, flush=True)
"""
POINTS = ["in-data", "after-data", "after-manifest", "after-pointer", "in-retention"]


@pytest.mark.parametrize("passage", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_named_point_leaves_a_state_that_verifies_and_the_next_save_works(
    blobs: Blobs, tmp_path: Path, point: str, passage: int
) -> None:
    saved(blobs)
    armed = tmp_path / "failpoints"
    armed.mkdir()
    (armed / f"checkpoint.{point}").write_text(str(passage))
    ended = subprocess.run(
        [sys.executable, "-c", SAVER, str(tmp_path / "place")],
        capture_output=True, text=True, env={**os.environ, FOLDER: str(armed)}, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    said = [20, *map(int, ended.stdout.split())]
    checkpoint, damage = found(blobs)
    assert checkpoint is not None
    assert checkpoint.clock in (said[-1], said[-1] + 10)  # the one it said was kept, or the one it was keeping
    if checkpoint.clock > 20:
        assert checkpoint.files["state"] == bytes([checkpoint.clock // 10]) * 100_000
    assert len(damage) <= 1
    CheckpointStore(blobs).save(THIRD, clock=50)
    assert found(blobs)[0] == Checkpoint(50, THIRD)


class Slow(LocalBlobs):
    """A folder whose writes wait, and fail as often as they are told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.open = threading.Event()
        self.open.set()
        self.failures: list[BaseException] = []

    def write(self, name: str, content: bytes) -> None:
        if name != POINTER:
            assert self.open.wait(30)
            if self.failures:
                raise self.failures.pop()
        super().write(name, content)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path / "place")


def of(files: Mapping[str, bytes]):  # type: ignore[no-untyped-def]
    return lambda: files


def test_work_does_not_wait_for_a_slow_place_and_a_state_that_comes_too_soon_is_not_taken(slow: Slow) -> None:
    with CheckpointWriter(CheckpointStore(slow)) as writer:
        slow.open.clear()
        began = time.monotonic()
        assert writer.is_idle
        assert writer.offer(of(FIRST), clock=10)
        assert not writer.offer(of(SECOND), clock=20)
        assert not writer.is_idle
        assert time.monotonic() - began < 1
        assert writer.verified is None
        slow.open.set()
        writer.flush()
        assert writer.verified == 10
        assert writer.offer(of(THIRD), clock=30)
        writer.flush()
    assert found(slow)[0] == Checkpoint(30, THIRD)


def test_a_place_that_does_not_answer_is_asked_again_and_said_to_be_trouble(slow: Slow) -> None:
    slow.failures = [TransientError("the server said 503")] * 3
    seen = set()
    with CheckpointWriter(CheckpointStore(slow)) as writer:
        writer.offer(of(FIRST), clock=10)
        while not writer.is_idle:
            seen.add(writer.trouble)
            writer.check()
            time.sleep(0.02)
        assert writer.trouble is None
    assert seen >= {"the server said 503"}
    assert found(slow)[0] == Checkpoint(10, FIRST)


def test_a_place_that_stays_silent_for_too_long_is_an_error(slow: Slow) -> None:
    slow.failures = [TransientError("no answer")] * 100
    with CheckpointWriter(CheckpointStore(slow), give_up_seconds=0.5) as writer:
        writer.offer(of(FIRST), clock=10)
        with pytest.raises(TransientError, match="no answer"):
            writer.flush()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "a/file"), CheckpointsTaken("by another")])
def test_what_no_waiting_mends_is_raised_where_work_goes_on(slow: Slow, error: Exception) -> None:
    slow.failures = [error]
    with CheckpointWriter(CheckpointStore(slow)) as writer:
        writer.offer(of(FIRST), clock=10)
        with pytest.raises(type(error)):
            writer.flush()
        with pytest.raises(type(error)):
            writer.check()


def test_an_error_in_the_work_ends_the_thread_and_waits_for_no_silent_place(slow: Slow) -> None:
    slow.failures = [TransientError("no answer")] * 100
    began = time.monotonic()
    with suppress(KeyError), CheckpointWriter(CheckpointStore(slow)) as writer:
        writer.offer(of(FIRST), clock=10)
        raise KeyError
    assert time.monotonic() - began < 15
    assert "checkpoints" not in {thread.name for thread in threading.enumerate()}
