"""The 70,000 images of Fashion-MNIST, where its files are: as others decode them; the same from disk and from S3."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines import presets
from pipelines.builtin_data import FASHION_MNIST_HOME
from pipelines.data import DataConfig, dataset_step
from pipelines.data_commands import Verify
from pipelines.decoded import MIB
from pipelines.named_data import named
from pipelines.prepare_command import Prepare
from pipelines.readers import StreamingReader, open_reader
from pipelines.remote_commands import Attach, Push
from pipelines.shards import read_split
from pipelines.train import train_step_of
from pipelines.trained import MODEL_FILE
from tests.seaweedfs import KEY, SECRET, ObjectServer

HOME = Path(os.environ.get("PAPERTABLE_FASHION_MNIST", FASHION_MNIST_HOME))
STEPS, BATCH = 100, 128
BATCHES_SHA256 = "3217279de98396d71460acf3822f71c9206a33f1bc8ead0690544a2d5cf7289c"  # of seed 0, in windows of 16 MiB

pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(
        not (HOME / "train-images-idx3-ubyte.gz").is_file(),
        reason="Fashion-MNIST is not here: Debian's package dataset-fashion-mnist, or PAPERTABLE_FASHION_MNIST",
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    Prepare(source="fashion-mnist", image_size=32, store=str(folder))()
    Verify(name="fashion-mnist", store=str(folder))()
    return folder


@pytest.fixture
def attached(store: Path, object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another store, which knows the data set by what is on the server alone."""
    for name, value in {"ENDPOINT_URL": object_server.url, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET,
                        "REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    object_server.files().create_dir("fashion")
    step = dataset_step(DataConfig(source="fashion-mnist", image_size=32, test_percent=None))
    Push(name="fashion-mnist", url="s3://fashion/sets", store=str(store))()
    Attach(url=f"s3://fashion/sets/{step.fingerprint}", store=str(tmp_path / "elsewhere"))()
    assert not list((tmp_path / "elsewhere").rglob("*.parquet"))
    return tmp_path / "elsewhere"


def test_it_reads_back_as_another_program_decodes_it(store: Path) -> None:
    dataset = named(ArtifactStore(str(store)), "fashion-mnist")
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        raw = gzip.decompress((HOME / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        pixels = np.frombuffer(raw[16:], dtype=np.uint8).reshape(count, 28, 28)
        labels = np.frombuffer(gzip.decompress((HOME / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
        found = read_split(dataset, split)  # type: ignore[arg-type]
        assert np.array_equal(found.images[:, 2:30, 2:30, 0], pixels)
        border = np.ones((32, 32), dtype=bool)
        border[2:30, 2:30] = False
        assert not found.images[:, border].any()
        assert np.array_equal(found.labels, labels)


def hash_of_batches(store: Path, cache: Path, *, memory_mib: int) -> str:
    dataset = named(ArtifactStore(str(store)), "fashion-mnist")
    digest = hashlib.sha256()
    cache.mkdir()
    with open_reader(
        dataset, "train", seed=0, batch_size=BATCH, shuffle_bytes=16 * MIB, memory_bytes=memory_mib * MIB, cache=cache
    ) as reader:
        assert isinstance(reader, StreamingReader) == (memory_mib < 100)
        for step in range(STEPS):
            batch = reader.batch(step, slice(None))
            digest.update(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
    return digest.hexdigest()


def test_batches_are_the_same_from_disk_and_from_s3_resident_and_streaming(
    store: Path, attached: Path, tmp_path: Path
) -> None:
    hashes = {
        hash_of_batches(place, tmp_path / f"{place.name}-{memory}", memory_mib=memory)
        for place in (store, attached)
        for memory in (40, 1000)
    }
    assert hashes == {BATCHES_SHA256}


@pytest.mark.chaos  # a minute: make chaos runs it
def test_a_hundred_steps_train_the_same_weights_from_disk_and_streaming_from_s3(
    store: Path, attached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = presets.tiny()
    data = DataConfig(source="fashion-mnist", image_size=32, test_percent=None)
    model = replace(base.model, image_size=32, model_channels=32, attention_resolutions=())
    train = replace(base.train, images=STEPS * 16, batch_size=16, shuffle_mib=16)
    step = train_step_of(model, base.diffusion, train, 0, dataset=dataset_step(data))
    weights = []
    for place, data_mib in ((store, 1000), (attached, 40)):
        monkeypatch.setenv("PAPERTABLE_CACHE", str(tmp_path / f"cache-{place.name}"))
        there = ArtifactStore(str(place))
        materialize([step], there, backend=LocalBackend(), resources=Resources(data_mib=data_mib))
        weights.append(hashlib.sha256((there.path(step) / MODEL_FILE).read_bytes()).hexdigest())
    print(f"SHA-256 of the weights after {STEPS} steps: {weights[0]}")
    assert weights[0] == weights[1]
