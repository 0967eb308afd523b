"""A bucket answers late, wrongly or not at all while a training keeps its checkpoints there: nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.journal import read_points
from tests.chaos.guarantees import Finding, record
from tests.chaos.small_training import OFTEN, SAME, Left, begun, call, left, steps_done
from tests.fault_proxy import Fault, FaultProxy
from tests.seaweedfs import PRIVATE_BUCKET, seaweedfs
from tests.small_study import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def test_checkpoints_in_a_bucket_behind_a_failing_proxy_lose_nothing_and_slow_no_step(
    tmp_path: Path, undisturbed: Left
) -> None:
    (tmp_path / "s3").mkdir()
    with seaweedfs(tmp_path / "s3") as server, FaultProxy(server.url) as proxy:
        access = server.access(proxy.url)
        place = ("--checkpoints", f"s3://{PRIVATE_BUCKET}/checkpoints")
        calm = call(tmp_path / "calm", *place, *OFTEN, **access)
        assert calm.returncode == 0, calm.stderr
        proxy.requests.clear()
        store = tmp_path / "store"
        other = ("--checkpoints", f"s3://{PRIVATE_BUCKET}/others")
        for round in range(3):
            proxy.faults[:] = [
                Fault("PUT", spared=2, status=(500, 503, 403)[round], times=20),
                Fault("PUT", spared=8, delay=2.0, times=6),
                Fault("PUT", "/state", spared=3, after=0, how="reset", times=3),
                Fault("HEAD", spared=3, status=503, times=3),
                Fault("GET", "/state", after=1000, how="reset", times=2),
                Fault("GET", "/state", after=5000, how="short", times=1),
            ]
            with begun(store, *other, *OFTEN, **access) as process:
                until = 30 * (round + 1)
                wait_until(lambda until=until: steps_done(store) >= until, process)
                process.kill()
        proxy.faults[:] = [Fault("PUT", spared=9, status=503, times=8)]
        ended = call(store, *other, *OFTEN, **access)
        assert ended.returncode == 0, ended.stderr
        met = sum(fault for _, _, fault in proxy.requests)
        same = left(store).weights == undisturbed.weights and left(store).losses == undisturbed.losses
        speeds = [_median_speed(tmp_path / "calm"), _median_speed(store)]
    notes = f"{met} faults met, killed 3 times; steps at {speeds[1] / speeds[0]:.2f} of the speed without; {SAME}"
    record(Finding("S3 that answers 500, 503, 403, late, broken off or cut", met, met * same, notes=notes))
    assert same
    assert met > 20
    assert speeds[1] > 0.7 * speeds[0]


def _median_speed(store: Path) -> float:
    journal = next(iter(store.glob("train/*/journal.jsonl")))
    speeds = sorted(point.value for point in read_points(journal)[0] if point.key == "images_per_second")
    return speeds[len(speeds) // 2]


def test_a_minute_of_refusals_delays_checkpoints_and_no_step(tmp_path: Path, undisturbed: Left) -> None:
    (tmp_path / "s3").mkdir()
    with seaweedfs(tmp_path / "s3") as server, FaultProxy(server.url) as proxy:
        access = server.access(proxy.url)
        store, place = tmp_path / "store", ("--checkpoints", f"s3://{PRIVATE_BUCKET}/checkpoints")
        with begun(store, *place, *OFTEN, **access) as process:
            wait_until(lambda: steps_done(store) >= 10, process)
            refusing = Fault("PUT", status=403, times=10**6)
            proxy.faults.append(refusing)
            refused = time.monotonic()
            wait_until(lambda: steps_done(store) >= 100, process)  # training ends all its steps meanwhile
            trained = time.monotonic() - refused
            time.sleep(max(0.0, 60 - trained))
            assert process.poll() is None  # it waits to keep its last state
            refusing.times = 0
            assert process.wait(120) == 0
        same = left(store).weights == undisturbed.weights
    notes = f"all steps were taken meanwhile, in {trained:.0f} s; the last state was kept when it answered"
    record(Finding("60 s of 403 from S3", 1, int(same), notes=notes))
    assert same
