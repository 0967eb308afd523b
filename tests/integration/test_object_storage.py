"""Data sets on object storage: a real server, its failures, and damage there; what is read is right, or is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs
from safetensors.numpy import load_file

from orchestrator.backend import LocalBackend
from orchestrator.errors import DamagedArtifact, PapertableError, PreflightError
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines import object_storage, shards, single
from pipelines.cli import run
from pipelines.data import DataConfig, dataset_step
from pipelines.data_commands import Export, Inspect, List, Verify
from pipelines.named_data import known, named, remember
from pipelines.object_storage import open_location
from pipelines.prepare_command import Prepare
from pipelines.remote_commands import Attach, Push
from pipelines.shards import SPLITS, Manifest, read_shard, read_split
from tests.fault_proxy import Fault, FaultProxy
from tests.seaweedfs import KEY, PRIVATE_BUCKET, PUBLIC_BUCKET, SECRET, ObjectServer

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]
CONFIG = DataConfig()
FOLDER = dataset_step(CONFIG).fingerprint
SHORT = ["--set", "train.images=256", "--set", "diffusion.num_timesteps=30", "--set", "sample.sampler.respacing="]


@dataclass(frozen=True)
class Bucket:
    """A folder of a test's own in a bucket, and its objects as the administrator sees them."""

    name: str
    files: fs.S3FileSystem

    @property
    def url(self) -> str:
        return f"s3://{self.name}/sets"

    def objects(self) -> list[str]:
        infos = self.files.get_file_info(fs.FileSelector(self.name, recursive=True))
        return sorted(info.path for info in infos if info.type == fs.FileType.File)

    def shards(self) -> list[str]:
        return [path for path in self.objects() if path.endswith(".parquet")]

    def get(self, path: str) -> bytes:
        with self.files.open_input_file(path) as stream:
            return stream.read()

    def put(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(path) as stream:
            stream.write(content)


@pytest.fixture
def bucket(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_server.url)
    object_storage._connected.cache_clear()
    return Bucket(f"{PRIVATE_BUCKET}/{uuid.uuid4().hex[:12]}", object_server.files())


@pytest.fixture
def proxy(object_server: ObjectServer, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(object_server.url) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setattr(object_storage, "FIRST_WAIT", 0.01)
        monkeypatch.setattr(object_storage, "REQUEST_SECONDS", 1.0)
        yield made


@pytest.fixture(scope="session")
def digits_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the digits in ten shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 200 * 8 * 8)
        store = ArtifactStore(str(tmp_path_factory.mktemp("digits") / "store"))
        materialize([dataset_step(CONFIG)], store, backend=LocalBackend(), resources=Resources())
        remember("digits", CONFIG, store)
    return store.root


@pytest.fixture
def here(digits_once: Path, tmp_path: Path) -> Path:
    """A store of a test's own that the digits were prepared in."""
    return Path(shutil.copytree(digits_once, tmp_path / "here"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Another machine's store; nothing is in it."""
    return tmp_path / "there"


def push(store: Path, url: str, **options: bool) -> str:
    Push(name="digits", url=url, store=str(store), **options)()
    return f"{url}/{FOLDER}"


def attach(url: str, store: Path, **options: object) -> Path:
    Attach(url=url, store=str(store), **options)()  # type: ignore[arg-type]
    return named(ArtifactStore(str(store)), str(options.get("name") or "digits"))


def assert_same_images(one: Path, other: Path) -> None:
    for split in SPLITS:
        a, b = read_split(one, split), read_split(other, split)
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def trained(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, np.ndarray]:
    train = single.command("train", "Train.")
    sys.argv = ["train.py", "tiny", "--store", str(store), "--data", "digits", *SHORT]
    with pytest.raises(SystemExit) as ended:
        run(train)
    assert ended.value.code == 0, capsys.readouterr().err
    (weights,) = store.glob("train/*/model.safetensors")
    return load_file(weights)


def test_a_model_trains_on_a_data_set_where_it_lies_as_on_one_prepared_here(
    bucket: Bucket, here: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = push(here, bucket.url)
    assert url in capsys.readouterr().out
    attached = attach(f"{url}/dataset.json", there)
    prepared = named(ArtifactStore(str(here)), "digits")
    assert attached.relative_to(there) == prepared.relative_to(here)  # one identity
    assert not list(attached.glob("*.parquet"))
    assert (attached / "manifest.json").read_bytes() == (prepared / "manifest.json").read_bytes()
    assert (attached / "metrics.json").read_bytes() == (prepared / "metrics.json").read_bytes()
    assert_same_images(attached, prepared)
    capsys.readouterr()
    List(store=str(there))()
    Verify(name="digits", store=str(there))()
    Inspect(name="digits", output=tmp_path / "sheet.png", store=str(there))()
    assert capsys.readouterr().out.count(f"at {url}") == 3
    Export(name="digits", output=tmp_path / "digits.npz", store=str(there))()
    Prepare(source="digits", store=str(there))()
    assert not list(attached.glob("*.parquet"))  # it is there already
    ours, theirs = trained(there, capsys), trained(here, capsys)
    assert all(np.array_equal(ours[name], weights) for name, weights in theirs.items())
    for text in [*there.rglob("*.json"), *there.rglob("*.jsonl")]:
        assert SECRET not in text.read_text()
        assert KEY not in text.read_text()


def test_shards_can_be_brought_along_and_an_attached_data_set_be_pushed_on(
    bucket: Bucket, here: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = push(here, bucket.url)
    attach(url, there)
    on = push(there, str(tmp_path / "disk"))
    attached = attach(url, there, copy=True)
    assert "shards here" in capsys.readouterr().out
    bucket.files.delete_dir(bucket.name)
    prepared = named(ArtifactStore(str(here)), "digits")
    assert_same_images(attached, prepared)
    Verify(name="digits", store=str(there))()
    assert_same_images(attach(on, tmp_path / "third", name="copy"), prepared)
    file = attached / "train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match=rf"{file}: .*remove it, and it is read from {url}"):
        read_split(attached, "train")


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


def test_what_is_not_what_was_pushed_is_not_attached(bucket: Bucket, here: Path, there: Path) -> None:
    url = push(here, bucket.url)
    folder = f"{bucket.name}/sets/{FOLDER}"
    commit = bucket.get(f"{folder}/dataset.json")
    bucket.put(f"{bucket.name}/sets/0123456789abcdef/dataset.json", commit)
    with pytest.raises(PreflightError, match=f"makes {FOLDER}, not 0123456789abcdef"):
        attach(f"{bucket.url}/0123456789abcdef", there)
    older = json.loads(commit)
    older["identity"]["version"] -= 1
    bucket.put(f"{folder}/dataset.json", json.dumps(older).encode())
    with pytest.raises(PreflightError, match="made by version 1 of the dataset step, here it is version 2"):
        attach(url, there)
    bucket.put(f"{folder}/dataset.json", commit[:-1])
    with pytest.raises(DamagedArtifact, match=r"dataset\.json"):
        attach(url, there)
    other = json.loads(commit)
    other["manifest_sha256"] = "0" * 64
    bucket.put(f"{folder}/dataset.json", json.dumps(other).encode())
    with pytest.raises(DamagedArtifact, match=r"manifest\.json: is not what was written"):
        attach(url, there)
    with pytest.raises(PreflightError, match="holds this data set in other bytes"):
        push(here, bucket.url)
    assert known(ArtifactStore(str(there))) == {}
    bucket.put(f"{folder}/dataset.json", b"{")
    attach(push(here, bucket.url), there)


def test_a_name_stands_for_another_data_set_only_when_told_to(bucket: Bucket, here: Path, there: Path) -> None:
    url = push(here, bucket.url)
    Prepare(source="digits", test_percent=30, store=str(there))()
    with pytest.raises(ValueError, match="another data set already"):
        attach(url, there)
    attached = attach(url, there, replace=True)
    assert attached.name == FOLDER
    assert attach(url, there, name="numbers") == attached


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


def test_a_public_bucket_is_read_without_credentials(
    bucket: Bucket, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(here, f"s3://{PUBLIC_BUCKET}/sets")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("PAPERTABLE_S3_ANONYMOUS", "1")
    attached = attach(f"s3://{PUBLIC_BUCKET}/sets/{FOLDER}", there)
    assert_same_images(attached, named(ArtifactStore(str(here)), "digits"))
    with pytest.raises(PreflightError, match="credentials are wrong, or may not do this"):
        push(here, bucket.url)


def test_a_profile_gives_credentials_and_endpoint(bucket: Bucket, object_server: ObjectServer, tmp_path: Path) -> None:
    bucket.put(f"{bucket.name}/x/y", b"12345")
    (tmp_path / "aws").write_text(
        f"[profile ours]\nregion = eu-west-3\nendpoint_url = {object_server.url}\n"
        f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_CONFIG_FILE": str(tmp_path / "aws"), "AWS_PROFILE": "ours"}
    program = f"from pipelines.object_storage import open_location as o; print(o('s3://{bucket.name}/x/y').size())"
    # A process of its own: AWS's library reads its files once.
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert said.stdout.strip() == "5", said.stderr
