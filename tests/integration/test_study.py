"""A small study, run as a user runs it: the command line, a real Ray, a real MLflow store, real digits."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from orchestrator.lease import hold
from tests.small_study import ROWS, begun, call, report, trained, training, wait_until

pytestmark = pytest.mark.ray


def tables(text: str) -> str:
    """What was printed, up to the line that tells how long it took, and how right the forecast of that was."""
    return text.partition(" cells run in ")[0].rpartition("\n")[0]


@dataclass
class Study:
    store: Path
    output: str
    said: str
    """While it ran."""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    store = tmp_path_factory.mktemp("study")
    ended = call(store)
    assert ended.returncode == 0, ended.stderr
    return Study(store, ended.stdout, ended.stderr)


@pytest.fixture(scope="session")
def client(study: Study) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{study.store / 'mlflow.db'}")


@pytest.fixture(scope="session")
def parent(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("iddpm-cifar10")
    assert experiment is not None
    (run,) = [
        run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" not in run.data.tags
    ]
    return run


@pytest.fixture(scope="session")
def children(client: MlflowClient, parent: Run) -> dict[str, Run]:
    runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.data.tags["papertable.variant"]: run for run in runs}


def test_the_table_has_every_row_with_the_papers_numbers_beside_ours(study: Study) -> None:
    for row, paper_nll, paper_fid in zip(
        ROWS, (3.73, 3.37, 3.26, 3.26, 3.17, 2.94), (3.29, 2.90, 3.07, 3.05, 3.19, 11.47), strict=True
    ):
        (line,) = [line for line in study.output.splitlines() if row in line and f"{paper_fid:.2f}" in line]
        assert f"{paper_nll:.2f}" in line
        assert len(re.findall(r"\d+\.\d+", line)) >= 5  # paper's two, our NLL, distance and KID


def test_the_table_is_also_left_as_markdown_csv_and_pictures(study: Study) -> None:
    (directory,) = (study.store / "studies").iterdir()
    markdown = (directory / "comparison.md").read_text()
    assert all(row in markdown for row in ROWS)
    with (directory / "comparison.csv").open() as stream:
        assert {line["variant"] for line in csv.DictReader(stream)} >= set(ROWS)
    for picture in ("nll_bpd-fd.png", "curves.png", "samples.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_a_run_says_what_it_will_take_and_how_right_that_was(study: Study) -> None:
    assert "6 to train, 0 to evaluate only, 0 done" in study.said
    assert re.search(r"^all +\d+s +\d+s +[+-]\d+%$", study.output, re.MULTILINE)
    (file,) = study.store.glob("studies/*/forecast.json")
    (run,) = json.loads(file.read_text())
    assert [row["what"] for row in run["compared"]] == [
        "features and metrics", "training", "likelihood", "sampling", "all", "time",
    ]  # fmt: skip
    assert all(row["forecast"] > 0 and row["actual"] > 0 for row in run["compared"])


def test_a_second_call_runs_nothing_and_prints_the_same_table(study: Study) -> None:
    records = {file: file.stat().st_mtime_ns for file in study.store.glob("*/*/record.json")}
    again = call(study.store)
    assert again.returncode == 0
    assert tables(again.stdout) == tables(study.output)
    assert {file: file.stat().st_mtime_ns for file in study.store.glob("*/*/record.json")} == records
    assert "0 cells run" in again.stdout


@pytest.mark.mlflow
def test_mlflow_has_one_parent_and_a_child_for_each_row(parent: Run, children: dict[str, Run]) -> None:
    assert sorted(children) == sorted(ROWS)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children.values()} == {"FINISHED"}


@pytest.mark.mlflow
def test_mlflow_children_carry_the_config_of_their_row(children: dict[str, Run]) -> None:
    assert children["1K linear simple"].data.params["diffusion.num_timesteps"] == "1000"
    assert children["4K cosine vlb"].data.params["train.timesteps.kind"] == "loss_second_moment"
    assert children["4K cosine vlb"].data.params["diffusion.loss"] == "vlb"


@pytest.mark.mlflow
def test_mlflow_children_name_the_data_they_were_made_from(study: Study, children: dict[str, Run]) -> None:
    (manifest,) = study.store.glob("dataset/*/manifest.json")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
    used = [
        (entry.dataset.name, entry.dataset.digest) for run in children.values() for entry in run.inputs.dataset_inputs
    ]
    assert used == [("digits", digest)] * len(ROWS)


@pytest.mark.mlflow
def test_mlflow_curves_are_the_journals_point_for_point(
    study: Study, client: MlflowClient, children: dict[str, Run]
) -> None:
    journals = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in study.store.glob("train/*/journal.jsonl")
    ]
    expected = sorted(sorted((line["step"], round(line["metrics"]["loss"], 9)) for line in lines) for lines in journals)
    histories = [client.get_metric_history(run.info.run_id, "loss") for run in children.values()]
    assert sorted(sorted((p.step, round(p.value, 9)) for p in history) for history in histories) == expected


@pytest.mark.mlflow
def test_mlflow_children_show_a_sample_grid_and_the_final_metrics(
    client: MlflowClient, children: dict[str, Run]
) -> None:
    for run in children.values():
        assert "grid.png" in [file.path for file in client.list_artifacts(run.info.run_id)]
        assert {"nll_bpd", "nll_bpd_se", "fd", "fd_se", "kid", "kid_se", "recall_se", "loss"} <= set(run.data.metrics)
        assert len(run.data.metrics) < 40


@pytest.mark.mlflow
def test_the_mlflow_parent_holds_the_table(client: MlflowClient, parent: Run, tmp_path: Path) -> None:
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {
        "comparison.md",
        "comparison.csv",
        "comparison.json",
        "nll_bpd-fd.png",
        "curves.png",
        "samples.png",
    } <= files
    downloaded = Path(client.download_artifacts(parent.info.run_id, "comparison.md", str(tmp_path)))
    assert all(row in downloaded.read_text() for row in ROWS)


def test_the_table_can_be_printed_from_the_store_alone(study: Study) -> None:
    printed = report("table", study.store)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.strip() in study.output


@pytest.mark.mlflow
def test_another_mlflow_learns_everything_from_the_store(
    study: Study, client: MlflowClient, children: dict[str, Run], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    told = report("sync", study.store, "--tracking-uri", uri)
    assert told.returncode == 0, told.stderr
    other = MlflowClient(tracking_uri=uri)
    experiment = other.get_experiment_by_name("iddpm-cifar10")
    assert experiment is not None
    runs = {run.data.tags.get("papertable.variant"): run for run in other.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for row, run in children.items():
        assert runs[row].data.metrics == run.data.metrics
        first, second = (c.get_metric_history(r.info.run_id, "loss") for c, r in ((client, run), (other, runs[row])))
        assert [(p.step, p.value, p.timestamp) for p in first] == [(p.step, p.value, p.timestamp) for p in second]


@pytest.mark.mlflow
def test_a_cell_without_a_result_is_told_as_interrupted(study: Study, tmp_path: Path) -> None:
    store, uri = Path(shutil.copytree(study.store, tmp_path / "store")), f"sqlite:///{tmp_path / 'other.db'}"
    nll = next(store.glob("nll/*"))
    shutil.rmtree(nll)
    with hold(store / ".leases" / f"nll-{nll.name}.lease", "a step"):
        refused = report("sync", store, "--tracking-uri", uri)
    assert refused.returncode == 3
    assert f"nll/{nll.name} is being run" in " ".join(refused.stderr.split())
    told = report("sync", store, "--tracking-uri", uri)
    assert told.returncode == 0, told.stderr
    assert "FAILED (it has no result yet)" in told.stdout
    other = MlflowClient(tracking_uri=uri)
    experiment = other.get_experiment_by_name("iddpm-cifar10")
    assert experiment is not None
    states = [run.info.status for run in other.search_runs([experiment.experiment_id])]
    assert sorted(states) == ["FINISHED"] * (len(ROWS) - 1) + ["KILLED"] * 2  # the cell, and the study


def test_a_row_that_fails_leaves_the_others_and_is_the_only_one_to_run_again(study: Study, tmp_path: Path) -> None:
    store = Path(shutil.copytree(study.store, tmp_path / "store"))
    nll = next(store.glob("nll/*"))
    shutil.rmtree(nll)
    (nll / "nll.npz").mkdir(parents=True)  # in the way of the step's output

    failed = call(store)
    assert failed.returncode == 4, failed.stderr
    assert "Traceback" not in failed.stdout
    assert "seed 0 FAILED (IsADirectoryError: " in failed.stdout
    with next(store.glob("studies/*/comparison.csv")).open() as stream:
        (reason,) = [line["failed"] for line in csv.DictReader(stream) if line["failed"]]
    assert reason.endswith(f"(step nll/{nll.name}, whose files are in {nll})")
    assert "5/6 cells done, 0 at work, 1 failed" in failed.stderr
    told = report("sync", store, "--tracking-uri", f"sqlite:///{tmp_path / 'other.db'}")
    assert told.returncode == 0, told.stderr
    assert "FAILED (IsADirectoryError: " in told.stdout
    other = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")
    runs = other.search_runs([experiment.experiment_id for experiment in other.search_experiments()])
    assert sorted(run.info.status for run in runs) == ["FAILED"] * 2 + ["FINISHED"] * (len(ROWS) - 1)

    (nll / "nll.npz").rmdir()
    again = call(store)
    assert again.returncode == 0, again.stderr
    assert "1 cells run" in again.stdout
    assert tables(again.stdout).replace(str(store), str(study.store)) == tables(study.output)


def test_of_one_more_seed_only_the_new_cells_are_to_run(study: Study) -> None:
    lines = call(study.store, "--seeds", "2", "--dry-run").stdout.splitlines()[1:]
    assert sorted(line.split()[-1] for line in lines if "seed 0" in line) == ["done"] * len(ROWS)
    new = [line for line in lines if "seed 1" in line]
    assert len(new) == len(ROWS)
    assert all("to run: train," in line for line in new)


@pytest.mark.chaos
def test_one_more_seed_trains_only_the_new_cells(study: Study, tmp_path: Path) -> None:
    store = Path(shutil.copytree(study.store, tmp_path / "store"))
    before = {record: record.stat().st_mtime_ns for record in store.glob("train/*/record.json")}
    ended = call(store, "--seeds", "2")
    assert ended.returncode == 0, ended.stderr
    assert "6 cells run" in ended.stdout
    assert "2 seeds, ± 95% interval" in ended.stdout
    assert len(trained(store)) == 12
    assert {record: record.stat().st_mtime_ns for record in before} == before


def test_a_study_ended_while_ray_starts_says_that_it_was_interrupted(tmp_path: Path) -> None:
    log = tmp_path / "store.log"
    with begun(tmp_path / "store", images=6_400) as process:
        wait_until(lambda: "cells to run" in log.read_text(), process)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert "run the same command again to go on" in log.read_text()


def test_a_study_that_is_ended_while_it_trains_keeps_every_step_and_ends_with_75(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with begun(store, "--checkpoint-steps", "7", images=6_400) as process:
        wait_until(lambda: training(store), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert "run the same command again to go on" in Path(f"{store}.log").read_text()
    for name in training(store):
        last = json.loads((store / "train" / name / "journal.jsonl").read_text().splitlines()[-1])["step"]
        kept = json.loads((store / "train" / name / "checkpoints" / "LATEST").read_text())["clock"]
        assert last <= kept < 6_400


@pytest.mark.chaos
def test_a_study_whose_driver_was_ended_and_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    store, often = tmp_path / "store", ("--checkpoint-seconds", "0.5")
    with begun(store, *often, images=6_400) as process:
        wait_until(lambda: training(store), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    with begun(store, *often, images=6_400) as process:
        wait_until(lambda: len(trained(store)) >= 2 and training(store), process)
        process.kill()
    done, interrupted = trained(store), training(store)
    assert interrupted
    times = {name: (store / "train" / name / "record.json").stat().st_mtime_ns for name in done}
    first_lines = {name: (store / "train" / name / "journal.jsonl").read_text().splitlines()[0] for name in interrupted}

    again = call(store, *often, images=6_400)

    assert again.returncode == 0, again.stderr
    assert {name: (store / "train" / name / "record.json").stat().st_mtime_ns for name in done} == times
    for name, line in first_lines.items():
        journal = (store / "train" / name / "journal.jsonl").read_text().splitlines()
        assert journal[0] == line, "training began anew instead of going on"
        steps = [json.loads(entry)["step"] for entry in journal]
        assert steps == sorted(set(steps))
