"""A server that fails, and damage there: what is read and written is right, or the object is named."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DamagedArtifact, PapertableError, PreflightError
from orchestrator.store import ArtifactStore
from pipelines import object_storage
from pipelines.data_commands import Verify
from pipelines.named_data import named
from pipelines.object_storage import open_location
from pipelines.shards import Manifest, read_shard, read_split
from tests.buckets import FOLDER, Bucket, assert_same_images, attach, push
from tests.fault_proxy import Fault, FaultProxy
from tests.seaweedfs import KEY, SECRET, ObjectServer

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_push_that_was_ended_is_no_data_set_and_goes_on(
    bucket: Bucket, proxy: FaultProxy, object_server: ObjectServer, here: Path, there: Path,
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, code: int,
) -> None:  # fmt: skip
    proxy.faults.append(Fault("PUT", "/shards/", spared=5, times=99, delay=60))
    command = [sys.executable, "pipelines/data.py", "push", "digits", bucket.url, "--store", str(here)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not any(fault for _, _, fault in proxy.requests):
            time.sleep(0.05)
    finally:
        process.send_signal(signum)
        assert process.wait(10) == code  # although a request stands still
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_server.url)
    before = bucket.shards()
    assert 0 < len(before) < len(shard_files(here))
    with pytest.raises(PreflightError, match=r"not yet a whole one: dataset\.json is not there"):
        attach(f"{bucket.url}/{FOLDER}", there)
    assert not (there / "dataset").exists()
    proxy.faults.clear()
    proxy.requests.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    attached = attach(push(here, bucket.url), there)
    put = [path for method, path, _ in proxy.requests if method == "PUT" and "/shards/" in path]
    assert len(put) == len(shard_files(here)) - len(before)
    assert_same_images(attached, named(ArtifactStore(str(here)), "digits"))


def shard_files(store: Path) -> list[Path]:
    return list(store.glob("dataset/*/*.parquet"))


@pytest.mark.parametrize(
    ("damage", "said", "option"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is not what was written", {"reread": True}),
        (lambda content: content[:-10], "bytes instead of", {}),
        (None, "is not there", {}),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_a_damaged_object_is_named_and_pushing_again_puts_it_right(
    bucket: Bucket, here: Path, there: Path, damage: object, said: str, option: dict[str, bool]
) -> None:
    url = push(here, bucket.url)
    attached = attach(url, there)
    shard = next(Manifest.read(attached).of_split("train"))
    path = f"{bucket.name}/sets/shards/{shard['sha256']}.parquet"
    if callable(damage):
        bucket.put(path, damage(bucket.get(path)))
    else:
        bucket.files.delete_file(path)
    with pytest.raises(DamagedArtifact, match=rf"s3://{path}: .*{said}.*{shard['file']}.*push --reread"):
        read_shard(attached, shard)
    if not option:  # seen without reading
        with pytest.raises(DamagedArtifact, match=rf"s3://{path}: .*{said}"):
            attach(url, there / "other")
    push(here, bucket.url, **option)
    Verify(name="digits", store=str(there))()


def test_wrong_credentials_and_buckets_are_said_at_once_without_the_secret(
    bucket: Bucket, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = push(here, bucket.url)
    began = time.monotonic()
    with pytest.raises(PreflightError, match="there is no bucket 'nosuchbucket'"):
        push(here, "s3://nosuchbucket/sets")
    with pytest.raises(PreflightError, match="there is no bucket 'nosuchbucket'"):
        attach("s3://nosuchbucket/sets/x", there)
    attached = attach(url, there)
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrongsecret16180339"), ("AWS_ACCESS_KEY_ID", "WRONGKEY16180339")):
        monkeypatch.setenv(name, value)
        object_storage._connected.cache_clear()
        for work in (
            lambda: push(here, bucket.url),
            lambda: attach(url, there / "other"),
            lambda: read_split(attached, "train"),
            lambda: (open_location(bucket.url) / "x").write(b"content"),
        ):
            with pytest.raises(PapertableError, match=rf"s3://{bucket.name}/sets.*AWS_SECRET_ACCESS_KEY") as refused:
                work()
            printed = f"{refused.value} {capfd.readouterr()}"
            assert not any(secret in printed for secret in (KEY, SECRET, "wrongsecret16180339", "WRONGKEY16180339"))
    assert time.monotonic() - began < 10


def test_a_server_that_is_down_is_said_after_the_stated_time(
    bucket: Bucket, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(object_storage, "RETRY_SECONDS", 1.0)
        with pytest.raises(
            PreflightError, match=r"could not be looked at within 1 s: is the server up.*Could not connect"
        ):
            push(here, bucket.url)


FAULTS = {
    "503 to HEAD": [Fault("HEAD", ".parquet", times=5, status=503)],
    "500 to GET": [Fault("GET", ".parquet", times=5, status=500)],
    "reset before the body": [Fault("GET", ".parquet", times=3, after=0)],
    "reset in the body": [Fault("GET", ".parquet", times=3, after=1000)],
    "closed in the body": [Fault("GET", ".parquet", times=3, after=1000, how="close")],
    "short answers": [Fault("GET", ".parquet", times=2, after=1000, how="short")],
    "stands still": [Fault("GET", ".parquet", times=1, delay=30)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_what_is_read_through_failures_that_pass_is_right(
    bucket: Bucket, proxy: FaultProxy, here: Path, there: Path, faults: list[Fault]
) -> None:
    attached = attach(push(here, bucket.url), there)
    proxy.requests.clear()
    proxy.faults += [Fault(**vars(fault)) for fault in faults]
    assert_same_images(attached, named(ArtifactStore(str(here)), "digits"))
    assert sum(befell for _, _, befell in proxy.requests) == sum(fault.times for fault in faults)


def test_a_push_through_failures_that_pass_arrives_whole(
    bucket: Bucket, proxy: FaultProxy, here: Path, there: Path
) -> None:
    proxy.faults += [
        Fault("HEAD", times=3, status=500),
        Fault("PUT", "/shards/", times=4, status=503),
        Fault("PUT", "/shards/", spared=2, times=1, delay=30),
        Fault("PUT", "manifest.json", times=3, status=500),
        Fault("PUT", "dataset.json", times=3, after=0),  # written, but the answer is lost
        Fault("GET", "dataset.json", times=1, after=20, how="short"),
    ]
    attached = attach(push(here, bucket.url), there)
    assert [fault for fault in proxy.faults if fault.times] == []
    assert_same_images(attached, named(ArtifactStore(str(here)), "digits"))


def test_an_object_of_several_parts_arrives_whole_or_not_at_all(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).bytes(25_000_000)
    location = open_location(bucket.url) / "large"
    second = Fault("PUT", "partNumber=2", times=99, status=503)
    proxy.faults.append(second)
    with monkeypatch.context() as patch:
        patch.setattr(object_storage, "RETRY_SECONDS", 0.5)
        with pytest.raises(PreflightError, match=r"could not be written within 0\.5 s.*503"):
            location.write(content)
    assert location.size() is None
    second.times = 3
    location.write(content)
    assert second.times == 0
    assert bucket.get(f"{bucket.name}/sets/large") == content
