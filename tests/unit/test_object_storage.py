"""Locations and the environment: what is refused, what is not repeated, what is waited for. No server is asked."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import DamagedArtifact, PreflightError
from pipelines import object_storage
from pipelines.object_storage import Location, open_location
from pipelines.remote_data import side_by_side
from pipelines.s3_settings import S3Settings, without_secrets

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://my.bucket_2/a b", "gs://my.bucket_2/a b"),
        ("file:///data/a%20b/", "/data/a b"),
        ("/data/a b/", "/data/a b"),
    ],
)
def test_a_place_has_one_name(url: str, found: str) -> None:
    location = open_location(url)
    assert str(location) == found
    assert location / location.name == Location(f"{found}/{location.name}")
    assert (location / "x").parent == location
    assert pickle.loads(pickle.dumps(location)) == location


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIAKEY:{SECRET}@bucket/a",
        f"s3://AKIAKEY:{SECRET}",
        f"s3://bucket/a?secret_key={SECRET}",
        f"gs://bucket/a#{SECRET}",
        f"https://AKIAKEY:{SECRET}@bucket/a",
        f"file://{SECRET}/a",
    ],
)
def test_what_may_hold_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"known|not repeated|three slashes") as refused:
        open_location(url)
    assert SECRET not in str(refused.value)
    assert "AKIAKEY" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://", "s3://bucket", "s3://b/../x", "s3://bucket//x", "s3://Bucket/x", ""])
def test_what_is_no_place_in_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="BUCKET/PATH"):
        open_location(url)


def test_the_endpoint_of_s3_alone_comes_before_the_one_of_all_services_and_that_before_the_profiles(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nendpoint_url = https://one\n[profile mine]\nendpoint_url = https://two\n")
    environment = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    assert S3Settings.of(environment).endpoint == "https://one"
    environment |= {"AWS_PROFILE": "mine"}
    assert S3Settings.of(environment).endpoint == "https://two"
    environment |= {"AWS_ENDPOINT_URL": "http://three:9000/"}
    assert S3Settings.of(environment).endpoint == "http://three:9000"
    environment |= {"AWS_ENDPOINT_URL_S3": "https://four", "PAPERTABLE_S3_ANONYMOUS": "1"}
    assert S3Settings.of(environment) == S3Settings(endpoint="https://four", anonymous=True)
    with pytest.raises(PreflightError, match="AWS_PROFILE=other"):
        S3Settings.of({**environment, "AWS_PROFILE": "other"})


def test_a_profile_whose_endpoint_is_not_read_says_so(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    config = tmp_path / ".aws" / "config"
    config.write_text("[default]\nservices = ours\n[services ours]\ns3 =\n  endpoint_url = https://one\n")
    with pytest.raises(PreflightError, match="AWS_ENDPOINT_URL_S3"):
        S3Settings.of({"HOME": str(tmp_path)})
    config.write_text(f"aws_secret_access_key = {SECRET}\n")
    with pytest.raises(PreflightError, match="cannot be read") as refused:
        S3Settings.of({"HOME": str(tmp_path)})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", f"http://key:{SECRET}@host", "http://host/path", "http://"])
def test_an_endpoint_is_a_scheme_and_a_host(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="AWS_ENDPOINT_URL is no endpoint") as refused:
        S3Settings.of({"HOME": str(tmp_path), "AWS_ENDPOINT_URL": endpoint})
    assert SECRET not in str(refused.value)


def test_what_a_server_says_of_our_credentials_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert without_secrets(f"{SECRET} is wrong") == "(AWS_SECRET_ACCESS_KEY) is wrong"


def failing(monkeypatch: pytest.MonkeyPatch, *errors: OSError) -> list[int]:
    """Location.read() fails with these, one after the other, then succeeds; the list has an entry for each attempt."""
    attempts: list[int] = []

    def read(_: Location) -> bytes:
        attempts.append(1)
        if len(attempts) <= len(errors):
            raise errors[len(attempts) - 1]
        return b"content"

    monkeypatch.setattr(Location, "_read", read)
    monkeypatch.setattr(object_storage, "FIRST_WAIT", 0.001)
    return attempts


def test_what_passes_is_waited_out_and_what_no_rule_knows_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = ("AWS Error SLOW_DOWN", "HTTP status 503", "curlCode: 56, reset by peer", "never heard of")
    attempts = failing(monkeypatch, *map(OSError, errors))
    assert Location("s3://bucket/x").read(is_whole=bool) == b"content"
    assert len(attempts) == 1 + len(errors)


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (OSError("AWS Error ACCESS_DENIED during GetObject"), "AWS_SECRET_ACCESS_KEY"),
        (OSError("AWS Error NO_SUCH_BUCKET during GetObject"), "bucket"),
        (OSError("AWS Error UNKNOWN (HTTP status 301)"), "AWS_REGION"),
        (OSError("curlCode: 60, SSL peer certificate"), "certificate"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_what_does_not_pass_is_said_at_once(monkeypatch: pytest.MonkeyPatch, error: OSError, fix: str) -> None:
    attempts = failing(monkeypatch, error)
    with pytest.raises(PreflightError, match=rf"s3://bucket/x cannot be read.*{fix}"):
        Location("s3://bucket/x").read(is_whole=bool)
    assert len(attempts) == 1


def test_waiting_ends_after_the_stated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, *[OSError("HTTP status 503")] * 10_000)
    monkeypatch.setattr(object_storage, "RETRY_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(PreflightError, match=r"s3://bucket/x could not be read within 0\.2 s.*503"):
        Location("s3://bucket/x").read(is_whole=bool)
    assert 0.2 <= time.monotonic() - began < 2


def test_an_answer_that_is_not_whole_is_read_again_before_it_counts_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = failing(monkeypatch)
    assert Location("s3://bucket/x").read(is_whole=lambda _: len(attempts) == 2) == b"content"
    with pytest.raises(DamagedArtifact, match=r"s3://bucket/x: is not what was written"):
        Location("s3://bucket/x").read(is_whole=lambda _: False)


def test_a_local_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = open_location(str(tmp_path)) / "folder" / "file"
    assert location.size() is None
    with pytest.raises(DamagedArtifact, match="is not there"):
        location.read(is_whole=bool)
    location.write(b"old")

    def cut(files: object, path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(object_storage, "_put", cut)
    with pytest.raises(PreflightError, match="No space left"):
        location.write(b"new")
    assert location.read(is_whole=bool) == b"old"


def test_the_first_failure_of_work_side_by_side_ends_it_and_is_raised() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> None:
        if item == 3:
            raise ValueError("three")
        with lock:
            done.append(item)
        time.sleep(0.001)

    side_by_side(work, range(3), threads=2)
    assert sorted(done) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        side_by_side(work, range(1000), threads=2)
    assert len(done) < 20
