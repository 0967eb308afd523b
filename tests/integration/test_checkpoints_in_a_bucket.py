"""Checkpoints on a real S3 server, directly and through a proxy that fails: nothing lost, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import checkpoint, s3_blobs
from orchestrator.blobs import Blobs, TransientError, open_blobs
from orchestrator.checkpoint import Checkpoint, CheckpointStore, check_writable
from orchestrator.checkpoint_writer import CheckpointWriter
from orchestrator.errors import CheckpointsTaken, PreflightError
from tests.buckets import Bucket
from tests.checkpoints import FIRST, SECOND, THIRD, PlaceContract, found, saved
from tests.fault_proxy import Fault, FaultProxy
from tests.seaweedfs import SECRET

pytestmark = pytest.mark.s3


@pytest.fixture
def blobs(bucket: Bucket) -> Blobs:
    return open_blobs(f"s3://{bucket.name}/checkpoints")


class TestBucket(PlaceContract):
    pass


FAULTS = {
    "500": Fault("PUT", status=500, times=3),
    "503": Fault("PUT", status=503, times=3),
    "403 for a while": Fault("PUT", status=403, times=5),
    "slow": Fault("PUT", delay=2.0, times=2),
    "an upload's answer reset": Fault("PUT", "/state", after=0, times=2),
    "the manifest's answer lost": Fault("PUT", "manifest.json", after=0, how="close"),
    "the pointer's answer lost though it was moved": Fault("PUT", "LATEST", after=0),
    "the pointer's answer lost twice": Fault("PUT", "LATEST", after=0, how="close", times=2),
    "sizes that cannot be asked for": Fault("HEAD", status=503, times=2),
    "no list to clean up by": Fault("GET", "list-type=2", status=500, times=2),
    "a list cut short": Fault("GET", "list-type=2", after=50, how="short"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_goes_wrong_on_the_way_every_state_arrives(
    bucket: Bucket, blobs: Blobs, proxy: FaultProxy, name: str
) -> None:
    through = open_blobs(f"s3://{bucket.name}/checkpoints")
    fault = Fault(**vars(FAULTS[name]))
    with CheckpointWriter(CheckpointStore(through)) as writer:
        writer.offer(lambda: FIRST, clock=10)
        writer.flush()
        proxy.faults.append(fault)
        for clock, files in ((20, SECOND), (30, THIRD)):
            writer.offer(lambda files=files: files, clock=clock)
            writer.flush()
    assert fault.times == 0, "it was never met"
    assert found(blobs) == (Checkpoint(30, THIRD), [])


READ_FAULTS = {
    "503": Fault("GET", status=503, times=3),
    "an answer broken off": Fault("GET", "/state", after=100, how="reset"),
    "an answer closed early": Fault("GET", "/state", after=100, how="close"),
    "an answer said to end early": Fault("GET", "/state", after=100, how="short"),
    "403 for a while": Fault("GET", status=403, times=3),
}


@pytest.mark.parametrize("name", READ_FAULTS)
def test_an_answer_that_does_not_come_is_no_damage(bucket: Bucket, blobs: Blobs, proxy: FaultProxy, name: str) -> None:
    saved(blobs)
    fault = Fault(**vars(READ_FAULTS[name]))
    proxy.faults.append(fault)
    through = open_blobs(f"s3://{bucket.name}/checkpoints")
    assert found(through) == (Checkpoint(20, SECOND), [])
    assert fault.times == 0


def test_a_claim_whose_answer_is_lost_is_still_a_claim(bucket: Bucket, blobs: Blobs, proxy: FaultProxy) -> None:
    former = saved(blobs)
    proxy.faults.append(Fault("PUT", "LATEST", after=0))
    successor = CheckpointStore(open_blobs(f"s3://{bucket.name}/checkpoints"))
    assert successor.resume(on_damage=pytest.fail) == Checkpoint(20, SECOND)
    with pytest.raises(CheckpointsTaken):
        former.save(THIRD, clock=30)
    successor.save(THIRD, clock=30)


def test_a_server_that_answers_never_is_given_up_with_its_name_and_without_a_secret(
    bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_blobs, "READ_SECONDS", 0.5)
    monkeypatch.setattr(checkpoint, "READ_SECONDS", 1.0)
    through = open_blobs(f"s3://{bucket.name}/checkpoints")
    proxy.faults.append(Fault("PUT", times=1000, delay=30))
    with CheckpointWriter(CheckpointStore(through), give_up_seconds=1) as writer:
        writer.offer(lambda: FIRST, clock=10)
        with pytest.raises(TransientError, match=r"s3://.*ReadTimeoutError") as raised:
            writer.flush()
    assert SECRET not in str(raised.value)


def test_a_state_of_many_parts_arrives_whole(blobs: Blobs, monkeypatch: pytest.MonkeyPatch, bucket: Bucket) -> None:
    monkeypatch.setattr(s3_blobs, "PART", 5 * 2**20)
    in_parts = open_blobs(f"s3://{bucket.name}/checkpoints")
    content = bytes(range(256)) * (12 * 2**12)
    CheckpointStore(in_parts).save({"state": content}, clock=10)
    assert found(blobs)[0] == Checkpoint(10, {"state": content})


def test_wrong_credentials_are_found_before_training(
    blobs: Blobs, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(blobs)
    assert blobs.names() == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(PreflightError, match="checkpoints cannot be kept") as raised:
        check_writable(open_blobs(f"s3://{bucket.name}/checkpoints"))
    assert "a-wrong-secret" not in str(raised.value)


def test_a_bucket_holds_what_it_held(blobs: Blobs, tmp_path: Path) -> None:
    saved(blobs)
    assert sorted(blobs.names()) == [
        "LATEST",
        *(f"step-0000000000{clock}-000001/{name}" for clock in (10, 20) for name in ("manifest.json", "meta", "state")),
    ]
