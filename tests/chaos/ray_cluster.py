"""Several Ray nodes on this machine, each of which can be killed as a machine is: with all that runs on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.small_study import descendants, free_port, wait_until

BIN = Path(sys.executable).parent


@dataclass
class RayCluster:
    """A head, and nodes that come and go."""

    home: Path
    address: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, *, cpus: int) -> int:
        """Start one; returns the process below which it runs."""
        node = ["ray", "start", "--block", f"--address={self.address}", "--node-ip-address=127.0.0.1"]
        return self.start([*node, f"--num-cpus={cpus}"], f"node-{len(self.processes)}.log")

    def kill_node(self, pid: int) -> None:
        """As if its machine were switched off."""
        for each in [pid, *descendants(pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def start(self, arguments: list[str], log: str) -> int:
        """Start a node and wait until it is there."""
        ports = (
            "--dashboard-agent-listen-port",
            "--metrics-export-port",
            "--node-manager-port",
            "--object-manager-port",
        )
        with (self.home / log).open("wb") as stream:
            process = subprocess.Popen(
                [*arguments, *(f"{port}={free_port()}" for port in ports)], env={**os.environ, **self.environment},
                stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        wait_until(lambda: "Ray runtime started" in (self.home / log).read_text(), process, seconds=90)
        return process.pid


@contextmanager
def ray_cluster(home: Path, *, head_cpus: int) -> Iterator[RayCluster]:
    """A head on loopback, with token authentication; all of it is gone after the block."""
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short: Ray's sockets have paths of 107 bytes at most
    own = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_TMPDIR": str(temporary),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    subprocess.run(["ray", "get-auth-token", "--generate"], env={**os.environ, **own}, check=True, capture_output=True)
    port = free_port()
    cluster = RayCluster(home, f"127.0.0.1:{port}", own)
    try:
        cluster.start(
            ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
             f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}",
             f"--num-cpus={head_cpus}"], "head.log",
        )  # fmt: skip
        yield cluster
    finally:
        for process in cluster.processes:
            cluster.kill_node(process.pid)
            process.wait()
        shutil.rmtree(temporary, ignore_errors=True)
