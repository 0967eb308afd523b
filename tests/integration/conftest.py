"""A local Ray and a local S3 server for the tests that need one, shared by all of them and ended after."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.ray_backend import ray_session
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines import object_storage, shards
from pipelines.data import dataset_step
from pipelines.named_data import remember
from tests.buckets import CONFIG, Bucket
from tests.fault_proxy import FaultProxy
from tests.seaweedfs import KEY, PRIVATE_BUCKET, SECRET, ObjectServer, seaweedfs


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    with ray_session(address=None, trial_drivers=2):
        yield


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


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
