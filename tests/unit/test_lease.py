"""Who holds a lease, and what may somebody do who thinks he still does? Real processes: stopped, killed, slow."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator import files
from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, GateHeld, LeaseLost, StepBusy
from orchestrator.lease import Fence, Holder, _read, _State, _write, hold
from orchestrator.materialize import materialize
from orchestrator.step import Resources, Step, StepContext
from orchestrator.store import ArtifactStore

HOLDER = """
import sys, time
from pathlib import Path
from orchestrator.errors import LeaseLost
from orchestrator.lease import hold
with hold(Path(sys.argv[1]), "a step", expires_s=float(sys.argv[2])) as fence:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        with fence.guard():
            Path(sys.argv[3]).write_text("written by a former holder")
        print("written", flush=True)
    except LeaseLost as lost:
        print("lost", flush=True)
"""


@contextmanager
def holder(lease: Path, *, expires_s: float, writes: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease, and, told to, writes a file through its guard and says whether it could."""
    arguments = [sys.executable, "-c", HOLDER, str(lease), str(expires_s), str(writes)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def told_to_write(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def epoch(lease: Path) -> int:
    return int(json.loads(lease.read_text())["epoch"])


def test_a_lease_has_one_holder_and_the_others_are_told_whom_they_wait_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = tmp_path / "lease"
    with holder(lease, expires_s=60, writes=tmp_path / "x") as other:
        with pytest.raises(StepBusy, match=f"process {other.pid} on "), hold(lease, "a step", timeout_s=0.5):
            pass
        assert f"waiting for a step, which is being run by process {other.pid}" in capsys.readouterr().err
        assert told_to_write(other) == "written"


def test_a_killed_holder_is_followed_at_once(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    with holder(lease, expires_s=600, writes=tmp_path / "x") as other:
        os.kill(other.pid, signal.SIGKILL)
        began = time.monotonic()
        with hold(lease, "a step", timeout_s=30):
            assert json.loads(lease.read_text())["holder"]["pid"] == os.getpid()
        assert time.monotonic() - began < 20


def test_a_stopped_holder_is_taken_over_and_when_it_wakes_up_it_writes_nothing(tmp_path: Path) -> None:
    lease, file = tmp_path / "lease", tmp_path / "file"
    with holder(lease, expires_s=1, writes=file) as other:
        os.kill(other.pid, signal.SIGSTOP)
        with hold(lease, "a step", expires_s=1, timeout_s=30) as fence:
            with fence.guard():
                file.write_text("written by its successor")
            os.kill(other.pid, signal.SIGCONT)
            assert told_to_write(other) == "lost"
            fence.check()
    assert file.read_text() == "written by its successor"


def test_the_former_holder_does_not_give_away_its_successors_lease(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    with hold(lease, "a step") as former:
        _write(lease, _State(former.epoch, 0, None))  # as if given back
        with pytest.raises(LeaseLost, match="given back"):
            former.check()
        with hold(lease, "a step") as present:
            assert present.epoch == former.epoch + 1
    with pytest.raises(LeaseLost):
        former.check()
    assert epoch(lease) == present.epoch


def test_a_slow_holder_that_is_heard_of_keeps_its_lease(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    with holder(lease, expires_s=0.6, writes=tmp_path / "x") as other:
        with pytest.raises(StepBusy), hold(lease, "a step", expires_s=0.6, timeout_s=3):
            pass
        assert told_to_write(other) == "written"


def test_another_process_with_the_holders_number_is_not_the_holder(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    reused = replace(Holder.this_process(), started="1")
    _write(lease, _State(7, 0, reused))
    with hold(lease, "a step", timeout_s=0.5) as fence:
        assert fence.epoch == 8


def test_a_holder_on_another_machine_is_not_thought_dead_because_its_process_is_not_here(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    _write(lease, _State(1, 0, replace(Holder.this_process(), machine="elsewhere", pid=2**22 - 1)))
    with pytest.raises(StepBusy), hold(lease, "a step", timeout_s=0.5):
        pass
    with hold(lease, "a step", expires_s=0.5, timeout_s=5) as fence:  # nothing is heard of it
        assert fence.epoch == 2


def test_epochs_only_grow_also_over_errors(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    for number in range(1, 4):
        with suppress(KeyError), hold(lease, "a step", timeout_s=1) as fence:
            assert fence.epoch == number == epoch(lease)
            raise KeyError
    assert epoch(lease) == 3


def test_a_fence_says_the_same_on_another_machine(tmp_path: Path) -> None:
    with hold(tmp_path / "lease", "a step") as fence:
        copy: Fence = pickle.loads(pickle.dumps(fence))
        copy.check()
    with hold(tmp_path / "lease", "a step"), pytest.raises(LeaseLost):
        copy.check()


def test_nobody_takes_a_lease_over_while_something_is_written_under_its_guard(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    taken = threading.Event()

    def take() -> None:
        with hold(lease, "a step", expires_s=0.2):
            taken.set()

    with hold(lease, "a step", expires_s=1000) as fence:
        with fence.guard():
            threading.Thread(target=take, daemon=True).start()
            assert not taken.wait(1.5)
        assert taken.wait(10)  # unheard of for 0.2 s


def test_who_is_stopped_in_the_gate_keeps_nobody_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "GATE_SECONDS", 0.3)
    with hold(tmp_path / "lease", "a step") as fence:
        copy: Fence = pickle.loads(pickle.dumps(fence))
        with fence.guard(), pytest.raises(GateHeld, match="another process has held it") as raised, copy.guard():
            pass
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # also from a worker elsewhere


def test_a_file_that_is_no_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("{}")
    with pytest.raises(DamagedArtifact, match=r"lease: no lease .* remove it"), hold(tmp_path / "lease", "a step"):
        pass


@dataclass(frozen=True)
class _Config:
    pass


def test_a_step_that_was_taken_over_is_waited_for_and_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, runs = ArtifactStore(str(tmp_path)), []

    def run(config: str, ctx: StepContext) -> None:
        runs.append(ctx.fence)
        if len(runs) == 1:
            assert ctx.fence is not None
            state = _read(ctx.fence.path)
            _write(ctx.fence.path, _State(state.epoch + 1, 0, None))  # taken, and given back
        ctx.write_metrics({"x": 1.0})

    step = Step(name="s", version=1, config=_Config(), inputs={}, run=run)
    materialize([step], store, backend=LocalBackend(), resources=Resources())
    assert len(runs) == 2
    assert store.is_done(step)
    assert "taken over" in capsys.readouterr().err
