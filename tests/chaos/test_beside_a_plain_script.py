"""The same kills befall our training and the script that people write today: what becomes of curves and weights?"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.data import dataset_step
from pipelines.decoded import MIB, decoded_split
from pipelines.presets import tiny
from pipelines.train import to_unit_range
from tests.chaos.guarantees import Finding, record
from tests.chaos.small_training import begun, environment, left
from tests.small_study import ROOT, descendants, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

KILLS, STEPS = 4, 150
WORKER = "ray::RayTrainWorker"


@dataclass(frozen=True)
class Outcome:
    """What the plain script left."""

    points: Counter[int]
    """How often MLflow has each step, in all runs together."""
    average: dict[str, torch.Tensor]
    calls: int
    """How often it had to be called."""


def killed_workers(process: subprocess.Popen[bytes], kills: int) -> int:
    """Kill the training worker again and again, some seconds after it began; how often that was possible."""
    waits, killed = random.Random(4), set()
    while len(killed) < kills and process.poll() is None:
        workers = [pid for pid in descendants(process.pid, named=WORKER) if pid not in killed]
        if not workers:
            time.sleep(0.2)
            continue
        time.sleep(waits.uniform(8, 16))
        if process.poll() is None:
            os.kill(workers[0], signal.SIGKILL)
            killed.add(workers[0])
    return len(killed)


def plain(home: Path, images: Path, *, kills: int) -> Outcome:
    home.mkdir()
    script = [sys.executable, "benchmarks/_plain_ray_train.py", str(home), str(images), str(STEPS)]
    ended, calls, killed = 1, 0, 0
    while ended:
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(script, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        killed += killed_workers(process, kills - killed)
        ended, calls = process.wait(900), calls + 1
        assert calls <= kills + 1, (home / "log").read_text()
    assert killed == kills
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("plain")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    points = [point.step for run in runs for point in client.get_metric_history(run.info.run_id, "loss")]
    return Outcome(Counter(points), torch.load(home / "average.pt", weights_only=True), calls)


def test_the_same_kills_beside_a_plain_script(tmp_path: Path) -> None:
    store, dataset = ArtifactStore(str(tmp_path / "data")), dataset_step(tiny().data)
    materialize([dataset], store, backend=LocalBackend(), resources=Resources())
    pixels = decoded_split(store.path(dataset), "train", memory_bytes=2**10 * MIB).pixels
    torch.save(to_unit_range(torch.from_numpy(pixels.copy())), tmp_path / "images.pt")
    whole = plain(tmp_path / "whole", tmp_path / "images.pt", kills=0)
    again = plain(tmp_path / "again", tmp_path / "images.pt", kills=0)
    disturbed = plain(tmp_path / "disturbed", tmp_path / "images.pt", kills=KILLS)
    twice = sum(count > 1 for count in disturbed.points.values())
    missing = len(whole.points) - len(disturbed.points)
    differ = _distance(disturbed.average, whole.average)
    record(
        Finding(
            "the same kills of a plain Ray Train script with MLflow", KILLS, KILLS * (twice == missing == differ == 0),
            notes=f"{twice} of {len(whole.points)} points in MLflow more than once, {missing} missing; weights off by "
            f"{differ:.1e} of their norm ({_distance(again.average, whole.average):.1e} between two undisturbed runs); "
            f"it ended with an error and was called again {disturbed.calls - 1} times",
            is_ours=False,
        )
    )  # fmt: skip
    with begun(tmp_path / "ours-whole", "--ray", images=64 * STEPS) as process:
        assert process.wait(600) == 0
    with begun(tmp_path / "ours", "--ray", images=64 * STEPS) as process:
        wait_until(lambda: descendants(process.pid, named=WORKER), process)
        killed = killed_workers(process, KILLS)
        assert process.wait(900) == 0
    ours, undisturbed = left(tmp_path / "ours"), left(tmp_path / "ours-whole")
    same = ours == undisturbed
    notes = f"0 of {len(ours.losses)} points twice, 0 missing; weights equal to the bit"
    record(Finding("the same kills of ours", killed, killed * same, notes=notes))
    assert same


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of two sets of weights, as a share of the second's norm."""
    names = sorted(one)
    first, second = (torch.cat([weights[name].flatten().double() for name in names]) for weights in (one, other))
    return float((first - second).norm() / second.norm())
