"""The MLflow tracker against a real database and a real server: nothing doubled, nothing lost, nothing leaked."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.errors import PreflightError
from orchestrator.journal import Point
from orchestrator.mlflow_tracker import MlflowTracker, without_credentials
from orchestrator.step import DatasetFacts
from orchestrator.tracker import StudyInfo, TrackerUnavailable, TrialInfo
from tests.small_study import MlflowServer, free_port

pytestmark = pytest.mark.mlflow

STUDY = StudyInfo(
    name="depths", key="s1", title="Depths", question="Is deeper better?", params={"lr": 0.1}, tags={"a": "b"}
)
TRIAL = TrialInfo(key="t1", identity="i1", name="deep · seed 0", variant="deep", seed=0, params={"depth": 4}, tags={})
DIGITS = DatasetFacts(name="digits", digest="d" * 32, profile={"images": {"train": 1439, "test": 358}})
POINTS = [Point("loss", 1.0 / step, step, 1_790_000_000_000 + step) for step in range(1, 1500)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db" if request.param == "database" else request.getfixturevalue("server")


def tracker(uri: str, tmp_path: Path) -> MlflowTracker:
    return MlflowTracker(uri, artifact_root=tmp_path / "artifacts")


def send_all(uri: str, tmp_path: Path, *, key: str) -> MlflowTracker:
    """A whole study, as one call of a driver sends it."""
    study = StudyInfo(**{**STUDY.__dict__, "key": key})
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"picture")
    sender = tracker(uri, tmp_path)
    sender.open_study(study)
    sender.open_trial(TRIAL)
    sender.send_points("t1", POINTS)
    sender.finish_trial(
        "t1", status="finished", metrics={"nll": 3.5}, notes=["a note"], files={"grid.png": picture}, digest="d1",
        datasets=[("file:///store/dataset/1", DIGITS)], protocols={"nll": "3f9a1c2e-7b21"},
    )  # fmt: skip
    sender.finish_study(status="finished", table_records=[{"": "deep", "nll": "3.5"}], files={}, tags={"x": "y"})
    return sender


def test_sending_everything_twice_leaves_everything_once(uri: str, tmp_path: Path) -> None:
    send_all(uri, tmp_path, key="twice")
    send_all(uri, tmp_path, key="twice")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("depths")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`papertable.key` = 'twice'")
    (child,) = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    history = client.get_metric_history(child.info.run_id, "loss")
    assert [(p.step, p.value, p.timestamp) for p in history] == [(p.step, p.value, p.time_ms) for p in POINTS]
    assert len(client.get_metric_history(child.info.run_id, "nll")) == 1
    assert child.data.params == {"depth": "4"}
    assert (child.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["mlflow.note.content"] == "a note"
    assert child.data.tags["papertable.protocol.nll"] == "3f9a1c2e-7b21"
    (used,) = client.get_run(child.info.run_id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "d" * 32)
    assert json.loads(used.dataset.source) == {"uri": "file:///store/dataset/1"}
    assert json.loads(used.dataset.profile) == DIGITS.profile
    table = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "comparison.json", str(tmp_path))).read_text()
    )
    assert table == {"columns": ["", "nll"], "data": [["deep", "3.5"]]}
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "comparison.json", "type": "table"}]


def test_what_a_resumed_trainer_measured_anew_is_not_doubled(uri: str, tmp_path: Path) -> None:
    send_all(uri, tmp_path, key="resumed")
    anew = [Point(p.key, p.value, p.step, p.time_ms + 60_000) for p in POINTS[-100:]]
    further = Point("loss", 0.5, 1500, anew[-1].time_ms + 1)
    again = tracker(uri, tmp_path)
    again.open_study(StudyInfo(**{**STUDY.__dict__, "key": "resumed"}))
    again.open_trial(TRIAL)
    again.send_points("t1", anew)
    again.send_points("t1", [*anew[-5:], further])
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("depths")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`papertable.key` = 'resumed'")
    (child,) = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    history = client.get_metric_history(child.info.run_id, "loss")
    assert [(p.step, p.timestamp) for p in history] == [(p.step, p.time_ms) for p in [*POINTS, further]]


def test_a_finished_trial_is_known_by_its_digest(uri: str, tmp_path: Path) -> None:
    send_all(uri, tmp_path, key="digest")
    again = tracker(uri, tmp_path)
    again.open_study(StudyInfo(**{**STUDY.__dict__, "key": "digest"}))
    again.open_trial(TRIAL)
    assert again.is_complete("t1", "d1")
    assert not again.is_complete("t1", "d2")


def test_a_server_that_is_down_is_told_within_seconds_and_without_its_password(tmp_path: Path) -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(TrackerUnavailable) as outage:
        tracker(uri, tmp_path).open_study(STUDY)
    assert time.monotonic() - began < 60
    assert "secret" not in str(outage.value)
    assert "secret" not in tracker(uri, tmp_path).how_to_look()


def test_addresses_are_shown_without_credentials() -> None:
    assert without_credentials("postgresql://u:p@host:5432/db") == "postgresql://***@host:5432/db"
    assert without_credentials("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert without_credentials("postgresql://host/db?password=p") == "postgresql://host/db?***"


@pytest.mark.parametrize("uri", ["htp://127.0.0.1:5000", "./mlruns", "file:///tmp/mlruns"])
def test_an_address_of_no_server_and_no_database_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name a server .* or a database"):
        tracker(uri, tmp_path)


def test_a_database_without_its_driver_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"tracking URI .*Name a server"):
        tracker("postgresql://127.0.0.1/db", tmp_path).open_study(STUDY)


def test_the_command_to_look_with_is_a_local_one(tmp_path: Path) -> None:
    words = shlex.split(tracker(f"sqlite:///{tmp_path}/a b.db", tmp_path).how_to_look())
    assert words[1:] == [
        "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{tmp_path}/a b.db", "--host", "127.0.0.1",
    ]  # fmt: skip
    assert words[0] == sys.executable


def test_files_that_cannot_be_sent_are_missed_like_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    MlflowClient(tracking_uri=uri).create_experiment("depths", artifact_location="s3://bucket/x")
    with pytest.raises(TrackerUnavailable, match="credentials"):
        send_all(uri, tmp_path, key="s-cloud")
