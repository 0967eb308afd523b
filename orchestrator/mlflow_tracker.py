"""How does a study look in MLflow? A parent run with the table, a child run for every cell. The only mlflow import."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from orchestrator.errors import PreflightError
from orchestrator.journal import Point
from orchestrator.step import DatasetFacts
from orchestrator.tracker import Status, StudyInfo, TrackerUnavailable, TrialInfo

KEY, DIGEST, ROLE = "papertable.key", "papertable.complete", "papertable.role"
PROTOCOL = "papertable.protocol"
STATUS: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
BATCH = 1000  # most metrics MLflow takes in one call
PARAMS_BATCH = 100
TABLE_FILE = "comparison.json"


class MlflowTracker:
    """Writes one study to an MLflow server or database. Runs are found again by their key, never made twice.

    `artifact_root` is where files go that a database cannot hold; a server has a place of its own.
    Raises ValueError for an address that is neither.
    """

    def __init__(self, tracking_uri: str, *, artifact_root: Path) -> None:
        _check_uri(tracking_uri)
        # A server that is down is noticed in seconds; the journal keeps what it misses.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        self._uri = tracking_uri
        self._artifact_root = artifact_root
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._study = ""
        self._trials: dict[str, str] = {}
        self._complete: dict[str, str] = {}
        self._sent: dict[tuple[str, str], int] = {}  # (run, metric) -> the last step it has there

    def open_study(self, study: StudyInfo) -> None:
        """See Tracker."""
        with self._answering() as client:
            self._experiment = self._open_experiment(client, study.name)
            tags = {
                **study.tags,
                "papertable.study": study.name,
                MLFLOW_RUN_NOTE: f"{study.question}\n\n{study.title}",
            }
            self._study = self._open_run(client, study.key, "study", study.title, study.params, tags)

    def open_trial(self, trial: TrialInfo) -> None:
        """See Tracker."""
        with self._answering() as client:
            tags = {
                **trial.tags,
                MLFLOW_PARENT_RUN_ID: self._study,
                "papertable.variant": trial.variant,
                "papertable.seed": str(trial.seed),
            }
            # The same cell may stand in two studies: it is a child of each.
            key = f"{self._study}/{trial.identity}"
            self._trials[trial.key] = self._open_run(client, key, "trial", trial.name, trial.params, tags)

    def is_complete(self, trial_key: str, digest: str) -> bool:
        """See Tracker."""
        return self._complete.get(self._trials[trial_key]) == digest

    def send_points(self, trial_key: str, points: Sequence[Point]) -> None:
        """See Tracker."""
        run_id = self._trials[trial_key]
        with self._answering() as client:
            new = [point for point in points if point.step > self._last_sent(client, run_id, point.key)]
            metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in new]
            for first in range(0, len(metrics), BATCH):
                client.log_batch(run_id, metrics=metrics[first : first + BATCH])
        self._sent.update({(run_id, point.key): point.step for point in new})

    def finish_trial(
        self, trial_key: str, *, status: Status, metrics: Mapping[str, float], notes: Sequence[str],
        files: Mapping[str, Path], digest: str, datasets: Sequence[tuple[str, DatasetFacts]] = (),
        protocols: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """See Tracker."""
        run_id = self._trials[trial_key]
        with self._answering() as client:
            began = client.get_run(run_id).info.start_time  # one time for all: sent again, a point is the same point
            final = [Metric(key, value, began, 0) for key, value in metrics.items()]
            tags = [RunTag(f"{PROTOCOL}.{metric}", fingerprint) for metric, fingerprint in protocols.items()]
            client.log_batch(run_id, metrics=final, tags=[RunTag(MLFLOW_RUN_NOTE, "\n".join(notes)), *tags])
            self._attach(client, run_id, files)
            if datasets:
                client.log_inputs(run_id, [_dataset_input(uri, facts) for uri, facts in datasets])
            client.set_tag(run_id, DIGEST, digest)  # last: all before it has arrived
            client.set_terminated(run_id, STATUS[status])
            self._complete[run_id] = digest

    def finish_study(
        self, *, status: Status, table_records: list[dict[str, Any]], files: Mapping[str, Path], tags: Mapping[str, str]
    ) -> None:
        """See Tracker."""
        with self._answering() as client:
            if table_records:
                headings = list(table_records[0])
                rows = [[record[heading] for heading in headings] for record in table_records]
                # The layout of MLflow's own tables; log_table would append to the table of the last call.
                client.log_text(self._study, json.dumps({"columns": headings, "data": rows}), TABLE_FILE)
                shown = json.dumps([{"path": TABLE_FILE, "type": "table"}])
                client.set_tag(self._study, MLFLOW_LOGGED_ARTIFACTS, shown)
            self._attach(client, self._study, files)
            for key, value in tags.items():
                client.set_tag(self._study, key, value)
            client.set_terminated(self._study, STATUS[status])

    def how_to_look(self) -> str:
        """See Tracker."""
        if _is_server(self._uri):
            return without_credentials(self._uri)
        mlflow = shlex.join([sys.executable, "-m", "mlflow"])
        return f"{mlflow} ui --backend-store-uri {shlex.quote(without_credentials(self._uri))} --host 127.0.0.1"

    def _open_experiment(self, client: MlflowClient, name: str) -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            location = None if _is_server(self._uri) else self._artifact_root.as_uri()
            return client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _open_run(
        self, client: MlflowClient, key: str, role: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        found = client.search_runs([self._experiment], f"tags.`{KEY}` = '{key}' and tags.`{ROLE}` = '{role}'")
        run = (
            found[0]
            if found
            else client.create_run(self._experiment, run_name=name, tags={**tags, KEY: key, ROLE: role})
        )
        self._complete[run.info.run_id] = run.data.tags.get(DIGEST, "")
        if self._complete[run.info.run_id]:
            return run.info.run_id
        if found:
            client.update_run(run.info.run_id, status="RUNNING")
        entries = [Param(key, str(value)) for key, value in params.items()]  # equal values may be sent again
        for first in range(0, len(entries), PARAMS_BATCH):
            client.log_batch(run.info.run_id, params=entries[first : first + PARAMS_BATCH])
        return run.info.run_id

    def _last_sent(self, client: MlflowClient, run_id: str, key: str) -> int:
        """The last step a metric has in a run; -1 without any. Asked once, then known: there is one writer."""
        if (run_id, key) not in self._sent:
            history = client.get_metric_history(run_id, key)
            self._sent[run_id, key] = max((point.step for point in history), default=-1)
        return self._sent[run_id, key]

    def _attach(self, client: MlflowClient, run_id: str, files: Mapping[str, Path]) -> None:
        for name, file in files.items():
            folder = str(Path(name).parent)
            client.log_artifact(run_id, str(file), None if folder == "." else folder)

    @contextmanager
    def _answering(self) -> Iterator[MlflowClient]:
        """The client; whatever it cannot do becomes TrackerUnavailable, without the credentials in its address."""
        try:
            if self._client is None:
                self._client = MlflowClient(tracking_uri=self._uri)
            yield self._client
        except (ImportError, UnsupportedModelRegistryStoreURIException) as error:
            raise PreflightError(
                f"tracking URI {without_credentials(self._uri)}: MLflow cannot use it ({self._first_line(error)}). "
                f"Name a server (http://...) or a database (sqlite:///FILE, or one whose driver is installed)"
            ) from error
        except Exception as error:  # MLflow passes on whatever its databases and clouds raise
            raise TrackerUnavailable(
                f"MLflow at {without_credentials(self._uri)}: {self._first_line(error)}"
            ) from error

    def _first_line(self, error: Exception) -> str:
        said = str(error).replace(self._uri, without_credentials(self._uri)).splitlines()
        return said[0][:300] if said else type(error).__name__


def _dataset_input(uri: str, facts: DatasetFacts) -> DatasetInput:
    source = json.dumps({"uri": uri})
    kind = {"s3": "s3", "gs": "gs"}.get(urlsplit(uri).scheme, "local")
    dataset = Dataset(facts.name, facts.digest, kind, source, profile=json.dumps(facts.profile))
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _check_uri(uri: str) -> None:
    if not _is_server(uri) and urlsplit(uri).scheme.partition("+")[0] not in DATABASES:
        raise ValueError(
            f"tracking URI {without_credentials(uri)!r}: name a server (http://..., https://...) or a database "
            f"(sqlite:///FILE, {', '.join(f'{name}://...' for name in DATABASES[1:])})"
        )


def without_credentials(uri: str) -> str:
    """The address with its user, password and whatever follows a question mark replaced by ***."""
    parts = urlsplit(uri)
    netloc = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    if netloc == parts.netloc and not parts.query:
        return uri  # urlunsplit would drop slashes of sqlite:////
    return urlunsplit(parts._replace(netloc=netloc, query="***" if parts.query else ""))
