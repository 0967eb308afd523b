"""A study as a job on a cluster that is already there: `ray start --head`, `ray job submit`, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.small_study import ROOT, ROWS, command, descendants, free_port, trained, wait_until

pytestmark = pytest.mark.ray
BIN = Path(sys.executable).parent


@dataclass
class Head:
    home: Path
    temporary: Path
    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short: Ray's sockets have paths of 107 bytes at most
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # as in an activated environment
        "HOME": str(home),
        "RAY_TMPDIR": str(temporary),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    port, dashboard = free_port(), free_port()
    ports = {
        "--port": port, "--dashboard-port": dashboard, "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(), "--metrics-export-port": free_port(),
    }  # fmt: skip
    start = [
        "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
        *(f"{name}={number}" for name, number in ports.items()),
    ]  # fmt: skip
    log = home / "head.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(start, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process, seconds=60)
        yield Head(home, temporary, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # ended politely, it leaves some of its processes behind
        process.wait()
        shutil.rmtree(temporary)


def submit(head: Head, *arguments: str) -> str:
    """What `ray job submit` prints of `python ARGUMENTS`, once the job has succeeded."""
    job = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", "python", *arguments]
    ended = subprocess.run(job, env=head.environment, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_job_finds_its_packages_uploads_little_and_keeps_its_results(head: Head) -> None:
    submit(head, "pipelines/train.py", "tiny", "--set", "train.images=256", "--workers", "2")
    assert len(trained(head.home / "papertable-artifacts")) == 1
    (copy,) = head.temporary.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/pyproject.toml")
    assert not {".git", ".venv", "artifacts"} & {path.name for path in copy.parent.iterdir()}
    assert sum(file.stat().st_size for file in copy.parent.rglob("*")) < 2e6


def test_images_are_read_by_the_workers_of_a_cluster_and_become_the_same_bytes(head: Head, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)  # more than one block
    source = tmp_path / "noise.npz"
    np.savez(source, arr_0=pixels)
    arguments = ["pipelines/data.py", "prepare", str(source), "--image-size", "8", "--labels", "none"]
    said = submit(head, *arguments, "--processes", "2", "--store", str(tmp_path / "there"))
    assert "To use it: --data noise" in said
    subprocess.run([sys.executable, *arguments, "--store", str(tmp_path / "here")], cwd=ROOT, check=True)
    there, here = (next((tmp_path / place / "dataset").glob("*/manifest.json")) for place in ("there", "here"))
    assert there.read_bytes() == here.read_bytes()
    logs = head.temporary.glob("ray/session_2*/logs/worker-*.out")
    assert any("_MapActor" in log.read_text() for log in logs)  # so it was Ray's workers that read


@pytest.mark.chaos
def test_a_study_runs_as_a_job_with_its_progress_in_the_log(head: Head) -> None:
    study = command(head.home / "study", images=256)[1:]
    said = submit(head, str(Path(study[0]).relative_to(ROOT)), *study[1:])
    for expected in (*ROWS, "cells done", "6 cells run"):
        assert expected in said
    assert len(trained(head.home / "study")) == len(ROWS)


def test_a_cluster_that_does_not_answer_ends_with_3(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    ended = subprocess.run(
        command(tmp_path / "store", "--address", nobody), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 3, ended.stderr
    assert f"no Ray cluster answers at '{nobody}'" in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
