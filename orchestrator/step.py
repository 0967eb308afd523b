"""What is a unit of work? A function on directories, known by what goes into it: name, version, config, inputs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config import fingerprint, to_dict
from orchestrator.files import write_whole
from orchestrator.lease import Fence, guarded

if TYPE_CHECKING:
    from orchestrator.backend import Backend

METRICS_FILE = "metrics.json"
PROGRESS_FILE = "progress.json"
FAILURE_FILE = "failure.json"
JOURNAL_FILE = "journal.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Where and how a step runs. Never part of its identity: it must not change a number."""

    workers: int = 1
    min_workers: int | None = None
    """Where the cluster has no room for all workers, half as many, and so on, down to these; null: it is waited for."""
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a step that keeps them, or longer while one is still being stored."""
    checkpoint_steps: int | None = None
    """Steps between two of them, likewise; null: time alone decides."""
    checkpoints: str | None = None
    """Where they are kept, a folder or s3://BUCKET/PREFIX; null: with the step."""
    data_mib: int = 8192
    """MiB of decoded inputs that a node may hold."""
    batch: int | None = None
    """Most examples that a worker computes at a time where the number changes nothing; null: as the step has it."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus_per_worker < 1:
            raise ValueError(f"workers={self.workers}, cpus_per_worker={self.cpus_per_worker}: both must be at least 1")
        if self.min_workers is not None and self.min_workers not in (halved := _halved(self.workers)):
            raise ValueError(
                f"min_workers={self.min_workers}: must be workers={self.workers}, halved as often as you like: "
                f"{', '.join(map(str, halved))}"
            )
        gpus = self.gpus_per_worker
        if not 0 <= gpus < math.inf or (gpus > 1 and gpus % 1):
            raise ValueError(f"gpus_per_worker={gpus}: must be 0, a part of 1, or a whole number")
        if not 0 < self.checkpoint_seconds < math.inf:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds}: must be more than 0, and finite")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps={self.checkpoint_steps}: must be at least 1, or none")
        if self.data_mib < 1:
            raise ValueError(f"data_mib={self.data_mib}: must be at least 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch={self.batch}: must be at least 1, or none")

    @property
    def cpus(self) -> int:
        """Of all workers of a step."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        """Of all workers of a step."""
        return self.workers * self.gpus_per_worker

    @property
    def devices(self) -> float:
        """What a step's workers hold: GPUs, where they take any, else CPUs."""
        return self.gpus or self.cpus

    @property
    def device(self) -> str:
        """Which of the two."""
        return "GPU" if self.gpus else "CPU"

    def numbers_of_workers(self) -> list[int]:
        """How many may work together, most first."""
        least = self.workers if self.min_workers is None else self.min_workers
        return [number for number in _halved(self.workers) if number >= least]


def _halved(number: int) -> list[int]:
    """It, its half, and so on while that is whole."""
    return [number, *_halved(number // 2)] if number % 2 == 0 else [number]


StepFunction = Callable[[Any, "StepContext"], None]


@dataclass(frozen=True)
class Step:
    """One unit of work. `version` is raised by hand when the meaning of its output changes; code is never hashed."""

    name: str
    version: int
    config: Any
    inputs: Mapping[str, Step]
    run: StepFunction = field(compare=False, repr=False)
    prefix: str = field(default="", compare=False)
    """Put before the names of its metrics where they stand beside those of other steps, such as "classifier_"."""

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def identity(self) -> dict[str, Any]:
        """All that decides the output, as JSON types."""
        return {
            "name": self.name,
            "version": self.version,
            "config": to_dict(self.config),
            "inputs": {role: step.key for role, step in sorted(self.inputs.items())},
        }

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the identity's hash."""
        return fingerprint(self.identity())

    @property
    def key(self) -> str:
        """name/fingerprint: where the step's output lies in a store."""
        return f"{self.name}/{self.fingerprint}"


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """A data set as a tracker shows it: what results say they were made from."""

    name: str
    digest: str
    """At most 36 characters, another for other data."""
    profile: Mapping[str, Any]
    """What it holds, in JSON types: counts, shapes."""
    uri: str | None = None
    """Where it is read from, when that is not the step's own artifact."""


@dataclass(frozen=True)
class StepContext:
    """What a step function is given: directories to read, one to write, and something to run work on."""

    inputs: Mapping[str, Path]
    output: Path
    backend: Backend
    resources: Resources
    fence: Fence | None = None
    """Lets the holder of the step's lease write, and nobody else; None where nobody else could."""
    began_by: str = ""
    """The command whose work this is, by a name of its own: stopping.py."""

    def write_metrics(
        self,
        metrics: Mapping[str, float],
        *,
        protocol: Mapping[str, Mapping[str, Any]] | None = None,
        notes: Sequence[str] = (),
        dataset: DatasetFacts | None = None,
    ) -> None:
        """Leave the step's final numbers: each with the protocol it was measured by, and notes for the reader.

        A step that makes a data set says here which.
        """
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"{key} came out as {value}: a table has no place for it; see the step's journal")
        said = {"metrics": dict(metrics), "protocol": dict(protocol or {}), "notes": list(notes)}
        if dataset is not None:
            said["dataset"] = asdict(dataset)
        with guarded(self.fence):
            write_whole(self.output / METRICS_FILE, json.dumps(said, indent=1))

    def progress(self, *, done: float, total: float, unit: str, **facts: object) -> None:
        """Say how far the step is; see write_progress."""
        write_progress(self.output, done=done, total=total, unit=unit, facts=facts)


def write_progress(output: Path, *, done: float, total: float, unit: str, facts: Mapping[str, object]) -> None:
    """Say how far a step is, for whoever watches its directory. Cheap: replaced whole, not fsynced."""
    said = {"done": done, "total": total, "unit": unit, "facts": dict(facts), "time": time.time()}
    write_whole(output / PROGRESS_FILE, json.dumps(said))


def write_failure(output: Path, reason: str) -> None:
    """Say why a step stopped, for whoever watches its directory; on a full disk nobody is told there."""
    with suppress(OSError):
        write_whole(output / FAILURE_FILE, json.dumps({"reason": reason, "time": time.time()}))


def parts_of(step: Step) -> list[Step]:
    """The steps that it goes on from, by the input `start`, first to last, and the step itself."""
    start = step.inputs.get("start")
    return [*([] if start is None else parts_of(start)), step]


def walk(steps: Iterable[Step]) -> list[Step]:
    """The steps and all they need, each once, inputs before what uses them."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key in ordered:
            return
        for needed in step.inputs.values():
            visit(needed)
        ordered[step.key] = step

    for step in steps:
        visit(step)
    return list(ordered.values())
