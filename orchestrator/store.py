"""Where do artifacts live, and when do they exist? In {store}/{name}/{fingerprint}/, from the moment of record.json."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from pyarrow import fs

from orchestrator.attempts import ATTEMPTS_FILE
from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.failpoints import failpoint
from orchestrator.files import sync, write_durably
from orchestrator.history import HISTORY_FILE
from orchestrator.lease import Fence, guarded
from orchestrator.step import FAILURE_FILE, METRICS_FILE, PROGRESS_FILE, DatasetFacts, Step
from orchestrator.stopping import LISTENING_FILE, STOP_FILE

RECORD_FILE = "record.json"
WORKING_STATE = {
    RECORD_FILE, PROGRESS_FILE, FAILURE_FILE, HISTORY_FILE, STOP_FILE, LISTENING_FILE, ATTEMPTS_FILE, "checkpoints"
}  # fmt: skip
"""What a step's directory holds besides its output: not listed in the record, free to be removed."""


@dataclass(frozen=True)
class Record:
    """Written last: the step is done, and these are its files."""

    identity: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    """Path within the artifact -> {"size": bytes, "sha256": hexadecimal}."""
    seconds: float
    """Of the attempt that led to it."""
    finished_at: str
    provenance: Mapping[str, Any]
    spent: Mapping[str, float] = field(default_factory=dict)
    """By all attempts: seconds, and the cpus and gpus that they held; empty in records of before it was noted."""


@dataclass(frozen=True)
class StepMetrics:
    """What a step wrote with StepContext.write_metrics."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    datasets: tuple[tuple[str, DatasetFacts], ...] = ()
    """Each with the URI of its artifact."""


class ArtifactStore:
    """Artifacts by identity. Local folders today: a path, or file://."""

    def __init__(self, root: str) -> None:
        self.root = _local_path(root)
        self._files = fs.LocalFileSystem()

    def check_writable(self) -> None:
        """Raises PreflightError when nothing can be written here."""
        probe = str(self.root / f".probe-{uuid.uuid4().hex}")
        try:
            self._files.create_dir(str(self.root), recursive=True)
            with self._files.open_output_stream(probe) as stream:
                stream.write(b"papertable")
            self._files.delete_file(probe)
        except OSError as error:
            raise PreflightError(
                f"store {self.root}: cannot be written ({error}). Name a folder you may write with --store"
            ) from error

    def path(self, step: Step) -> Path:
        """The step's directory, whether it is done, at work or not begun."""
        return self.root / step.name / step.fingerprint

    def record(self, step: Step) -> Record | None:
        """The record of a step that is done, else None. Raises DamagedArtifact when a file is missing or cut."""
        directory = self.path(step)
        text = self._read(directory / RECORD_FILE)
        if text is None:
            return None
        try:
            record = Record(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DamagedArtifact(directory / RECORD_FILE, f"no record ({error}); {_remedy(directory)}") from error
        selector = fs.FileSelector(str(directory), recursive=True)
        sizes = {info.path: info.size for info in self._files.get_file_info(selector)}
        for name, expected in record.files.items():
            size = sizes.get(str(directory / name))
            if size != expected["size"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {expected['size']}"
                raise DamagedArtifact(directory / name, f"{found}; {_remedy(directory)}")
        return record

    def verify(self, step: Step) -> None:
        """Read every file of a step that is done; raises DamagedArtifact for one whose SHA-256 changed."""
        record = self.record(step)
        for name, expected in (record.files if record is not None else {}).items():
            file = self.path(step) / name
            if self._sha256(file) != expected["sha256"]:
                raise DamagedArtifact(file, f"its SHA-256 is not the recorded one; {_remedy(self.path(step))}")

    def is_done(self, step: Step) -> bool:
        """Whether the step has its record."""
        return self.record(step) is not None

    def commit(
        self, step: Step, *, seconds: float, provenance: Mapping[str, Any], fence: Fence | None = None,
        spent: Mapping[str, float] | None = None,
    ) -> Record:  # fmt: skip
        """Declare what lies in the step's directory its output. From here on it is never written again.

        When this returns a power cut loses nothing of it.

        Raises LeaseLost, and declares nothing, when somebody else has taken the step over.
        """
        directory = self.path(step)
        record = Record(
            identity=step.identity(),
            files={name: self._describe(directory / name) for name in self._outputs(directory)},
            seconds=round(seconds, 3),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            provenance=dict(provenance),
            spent=dict(spent or {}),
        )
        content = json.dumps(asdict(record), indent=1).encode()
        for folder in {(directory / name).parent for name in record.files}:
            sync(folder)
        write_durably(
            directory / RECORD_FILE, content, halfway=lambda: failpoint("step.in-commit"), turn=guarded(fence)
        )
        return record

    def metrics(self, step: Step) -> StepMetrics:
        """The numbers a step left; empty when it leaves none."""
        text = self._read(self.path(step) / METRICS_FILE)
        if text is None:
            return StepMetrics()
        said = json.loads(text)
        dataset = said.get("dataset")
        facts = None if dataset is None else DatasetFacts(**dataset)
        datasets = () if facts is None else ((facts.uri or self.path(step).as_uri(), facts),)
        return StepMetrics(said["metrics"], said["protocol"], tuple(said["notes"]), datasets)

    def all_metrics(self, steps: Iterable[Step]) -> StepMetrics:
        """The numbers and notes of several steps together; where two leave the same number, the later one's."""
        metrics: dict[str, float] = {}
        protocol: dict[str, Mapping[str, Any]] = {}
        notes: list[str] = []
        datasets: list[tuple[str, DatasetFacts]] = []
        for step in steps:
            said = self.metrics(step)
            metrics |= {f"{step.prefix}{name}": value for name, value in said.metrics.items()}
            protocol |= {f"{step.prefix}{name}": how for name, how in said.protocol.items()}
            notes += [f"{step.prefix.rstrip('_')}: {note}" if step.prefix else note for note in said.notes]
            datasets += said.datasets
        return StepMetrics(metrics, protocol, tuple(notes), tuple(datasets))

    def _outputs(self, directory: Path) -> list[str]:
        infos = self._files.get_file_info(fs.FileSelector(str(directory), recursive=True))
        names = [str(Path(info.path).relative_to(directory)) for info in infos if info.type == fs.FileType.File]
        return sorted(name for name in names if Path(name).parts[0] not in WORKING_STATE and "/." not in f"/{name}")

    def _describe(self, file: Path) -> dict[str, Any]:
        sync(file)
        return {"size": self._files.get_file_info(str(file)).size, "sha256": self._sha256(file)}

    def _sha256(self, file: Path) -> str:
        digest = hashlib.sha256()
        with self._files.open_input_stream(str(file)) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _read(self, file: Path) -> str | None:
        try:
            with self._files.open_input_stream(str(file)) as stream:
                return stream.read().decode()
        except FileNotFoundError:
            return None


def _local_path(root: str) -> Path:
    parsed = urlparse(root)
    if "://" in root and parsed.scheme != "file":
        raise ValueError(
            f"a store on {parsed.scheme}:// is not available yet; name a folder, or a file:// URL. On several machines "
            f"it must be a folder they all share"
        )
    if not root:
        raise ValueError("store '': name a folder")
    if parsed.scheme == "file" and parsed.netloc not in ("", "localhost"):
        raise ValueError(f"store {root!r}: a file URL of this machine has three slashes: file:///FOLDER")
    path = Path(url2pathname(parsed.path)) if parsed.scheme == "file" else Path(root)
    return path.expanduser().resolve()


def _remedy(directory: Path) -> str:
    return f"remove {directory} and run again: the step is then done anew"
