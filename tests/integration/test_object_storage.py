"""A data set on object storage is the one that was pushed: trained on where it lies, copied, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.store import ArtifactStore
from pipelines import single
from pipelines.cli import run
from pipelines.data import dataset_step
from pipelines.data_commands import Export, Inspect, List, Verify
from pipelines.named_data import known, named
from pipelines.prepare_command import Prepare
from pipelines.shards import read_split
from tests.buckets import CONFIG, FOLDER, Bucket, assert_same_images, attach, push
from tests.seaweedfs import KEY, PUBLIC_BUCKET, SECRET, ObjectServer

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]
SHORT = ["--set", "train.images=256", "--set", "diffusion.num_timesteps=30", "--set", "sample.sampler.respacing="]


def trained(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, np.ndarray]:
    train = single.command("train", "Train.")
    sys.argv = ["train.py", "tiny", "--store", str(store), "--data", "digits", *SHORT]
    with pytest.raises(SystemExit) as ended:
        run(train)
    assert ended.value.code == 0, capsys.readouterr().err
    (weights,) = store.glob("train/*/model.safetensors")
    return load_file(weights)


def test_a_data_set_that_is_attached_at_one_place_is_not_silently_read_from_there_when_another_is_named(
    bucket: Bucket, here: Path, there: Path
) -> None:
    one, two = (push(here, f"{bucket.url}/{place}") for place in ("one", "two"))
    attach(one, there)
    with pytest.raises(PreflightError, match=rf"attached here already, at {one}\. .* remove .* and attach it again"):
        attach(two, there)
    ((source, facts),) = ArtifactStore(str(there)).metrics(dataset_step(CONFIG)).datasets
    assert (source, facts.name) == (one, "digits")


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
    said = [json.loads((place / "metrics.json").read_text()) for place in (attached, prepared)]
    assert [facts["dataset"].pop("uri") for facts in said] == [url, None]
    assert said[0] == said[1]
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
    with pytest.raises(PreflightError, match="made by version 2 of the dataset step, here it is version 3"):
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
