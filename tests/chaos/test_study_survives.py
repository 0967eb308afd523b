"""Kill workers, drivers, the tracker; damage checkpoints: the study ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.journal import read_points
from tests.chaos.guarantees import Finding, record
from tests.small_study import (
    ROWS,
    MlflowServer,
    begun,
    call,
    descendants,
    models,
    report,
    trained,
    training,
    wait_until,
)

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.mlflow, pytest.mark.timeout(2400)]

IMAGES = 6_400
OFTEN = ("--checkpoint-seconds", "0.5")
WORKER = "ray::RayTrainWorker"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    ended = call(store, images=IMAGES)
    assert ended.returncode == 0, ended.stderr
    assert len(models(store)) == len(ROWS)
    return models(store)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    server.start()
    yield server
    server.kill()


def test_killed_training_workers_are_replaced_and_leave_no_trace(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    store = tmp_path / "store"
    killed = set()
    with begun(store, *OFTEN, images=IMAGES) as process:
        for row in range(3):
            wait_until(lambda row=row: len(trained(store)) >= row and training(store), process)
            killed.add(worker := descendants(process.pid, named=WORKER)[0])
            os.kill(worker, signal.SIGKILL)
            time.sleep(10)
        assert process.wait(900) == 0
    assert len(killed) == 3
    held = models(store) == undisturbed
    record(
        Finding("a study whose training workers are killed", 3, 3 * held, notes="the six rows' weights are the same")
    )
    assert held


def test_a_cell_whose_tune_driver_is_killed_is_the_only_one_to_go_on(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN, images=IMAGES) as process:
        wait_until(lambda: trained(store) and training(store), process)
        os.kill(descendants(process.pid, named="ray::ImplicitFunc")[0], signal.SIGKILL)
        assert process.wait(900) == 4
    log = Path(f"{store}.log").read_text()
    assert "its driver was lost before it could say why" in log
    done = len(list(store.glob("metrics/*/record.json")))  # the cell may have been trained already
    assert len(ROWS) - 2 <= done < len(ROWS)
    ended = call(store, *OFTEN, images=IMAGES)
    assert ended.returncode == 0, ended.stderr
    held = models(store) == undisturbed
    notes = f"{done} of {len(ROWS)} rows went on; the same command again: the six rows' weights are the same"
    record(Finding("a Ray Tune trial's driver killed", 1, int(held), notes=notes))
    assert held


def test_a_driver_killed_again_and_again_gets_there(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    store, waits = tmp_path / "store", random.Random(20210218)
    for _ in range(5):
        with begun(store, *OFTEN, images=IMAGES) as process:
            wait_until(lambda: training(store), process)
            time.sleep(waits.uniform(0, 15))
            process.kill()
    ended = call(store, *OFTEN, images=IMAGES)
    assert ended.returncode == 0, ended.stderr
    held = models(store) == undisturbed
    assert_mlflow_has_each_point_once(f"sqlite:///{store}/mlflow.db", store)
    notes = "the six rows' weights are the same; MLflow has every point of every journal once"
    record(Finding("a study whose driver is killed again and again", 5, 5 * held, notes=notes))
    assert held


def test_an_interrupt_from_the_keyboard_goes_to_everybody_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN, images=IMAGES, new_group=True) as process:
        wait_until(lambda: training(store), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the driver and all it started
        assert process.wait(60) == 128 + signal.SIGINT
    said = Path(f"{store}.log").read_text()
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert call(store, *OFTEN, images=IMAGES).returncode == 0
    assert models(store) == undisturbed


def test_a_damaged_checkpoint_is_noticed_and_costs_only_time(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    store = tmp_path / "store"
    with begun(store, *OFTEN, images=IMAGES) as process:
        wait_until(lambda: any(len(list(train.glob("step-*"))) >= 2 for train in checkpoints(store)), process)
        process.kill()
    time.sleep(5)  # its workers end a moment later
    for train in checkpoints(store):
        state = max(train.glob("step-*")) / "state.safetensors"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    assert call(store, *OFTEN, images=IMAGES).returncode == 0
    assert models(store) == undisturbed


def test_a_study_outlives_its_tracker_which_then_learns_everything(tmp_path: Path, server: MlflowServer) -> None:
    store, tracker = tmp_path / "store", ("--tracking-uri", server.uri)
    with begun(store, *tracker, images=IMAGES) as process:
        wait_until(lambda: trained(store), process)
        server.kill()
        assert process.wait(900) == 0
    assert "MLflow lacks part of this" in Path(f"{store}.log").read_text()
    server.start()
    again = call(store, *tracker, images=IMAGES)
    assert again.returncode == 0
    assert "0 cells run" in again.stdout
    assert "MLflow lacks" not in again.stdout
    assert_mlflow_has_each_point_once(server.uri, store)
    record(Finding("MLflow's server killed while a study runs", 1, 1, notes="it then has exactly the journals' points"))


def test_a_tracker_that_is_down_from_the_beginning_learns_everything_when_it_comes(
    tmp_path: Path, server: MlflowServer
) -> None:
    store, tracker = tmp_path / "store", ("--tracking-uri", server.uri)
    server.kill()
    first = call(store, *tracker, images=1_280)
    assert first.returncode == 0, first.stderr
    server.start()
    told = report("sync", store, *tracker, images=1_280)
    assert told.returncode == 0, told.stderr
    assert_mlflow_has_each_point_once(server.uri, store)
    record(
        Finding(
            "MLflow's server down from before a study to after it",
            1,
            1,
            notes="it then has exactly the journals' points",
        )
    )


def checkpoints(store: Path) -> list[Path]:
    return [folder for folder in store.glob("train/*/checkpoints") if folder.parent.name in training(store)]


def assert_mlflow_has_each_point_once(uri: str, store: Path) -> None:
    """Every point of every journal is in MLflow, once, with its value and its time, and nothing else is."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("iddpm-cifar10")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`papertable.role` = 'trial'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert Counter(map(_in_mlflow, [client] * len(runs), [run.info.run_id for run in runs])) == Counter(
        frozenset((p.key, p.step, p.value, p.time_ms) for p in read_points(file)[0])
        for file in store.glob("train/*/journal.jsonl")
    )


def _in_mlflow(client: MlflowClient, run_id: str) -> frozenset[tuple[str, int, float, int]]:
    """Every point of a run's curves: key, step, value and time."""
    keys = [key for key in client.get_run(run_id).data.metrics if client.get_metric_history(run_id, key)[0].step > 0]
    points = [(p.key, p.step, p.value, p.timestamp) for key in keys for p in client.get_metric_history(run_id, key)]
    assert len(points) == len(set(points))
    return frozenset(points)
