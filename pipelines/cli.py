"""What do the command lines have in common? Where things are kept, and what an error looks like to a user."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from diffusion.train_config import TrainConfig
from orchestrator.blobs import open_blobs
from orchestrator.checkpoint import check_writable
from orchestrator.config import hint
from orchestrator.errors import Interrupted, PapertableError
from orchestrator.signals import interruptible
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore

BAD_CONFIGURATION = 2


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def default_store() -> str:
    """A folder beside the code; in a job, whose code is a temporary copy, one that outlives it."""
    return str(Path.home() / "papertable-artifacts") if in_ray_job() else "artifacts"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a command keeps its artifacts, and where it runs. None of it is part of a result's identity."""

    store: str = default_store()
    """Folder of all artifacts. The same folder again goes on where the last run stopped."""
    workers: int = 1
    """Workers that train one model together."""
    min_workers: int | None = None
    """With fewer nodes than that takes, training goes on with half the workers, and so on, down to these."""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker."""
    checkpoint_seconds: float = 30.0
    """Training keeps a checkpoint about so often."""
    checkpoint_steps: int | None = None
    """And after so many steps; later, while the one before is still being stored."""
    checkpoints: str | None = None
    """Where training keeps them: a shared folder, or s3://BUCKET/PREFIX; by default with the step, in the store."""
    grace_seconds: float = 25.0
    """On SIGTERM (a spot machine's notice) and Ctrl-C, training has so long to keep its state, and is then ended."""
    data_mib: int = 8192
    """MiB of decoded images that a node may hold for a training; a data set that takes more streams by."""
    batch: int | None = None
    """Images that a worker draws at a time: fewer take less memory, more keep a large GPU busy."""
    address: str | None = os.environ.get("RAY_ADDRESS") or None
    """A running Ray cluster; by default the one RAY_ADDRESS names."""

    def artifact_store(self) -> ArtifactStore:
        """The store; nothing is written to it yet."""
        if in_ray_job() and "://" not in self.store and not Path(self.store).expanduser().is_absolute():
            raise ValueError(
                f"--store {self.store}: inside a Ray job this is a folder within Ray's temporary copy of the code; "
                f"name an absolute path"
            )
        return ArtifactStore(self.store)

    def checkpoint_place(self) -> str | None:
        """Where checkpoints are kept, whatever folder a process is in: Ray's workers are in others."""
        if self.checkpoints is None or "://" in self.checkpoints:
            return self.checkpoints
        folder = Path(self.checkpoints).expanduser()
        if in_ray_job() and not folder.is_absolute():
            raise ValueError(
                f"--checkpoints {self.checkpoints}: inside a Ray job this is a folder within Ray's temporary copy of "
                f"the code; name an absolute path"
            )
        return str(folder.resolve())

    def check_checkpoints(self) -> None:
        """Raises PreflightError when no checkpoint can be kept where they should be."""
        place = self.checkpoint_place()
        if place is not None:
            check_writable(open_blobs(place))

    def resources(self) -> Resources:
        """What each step may use."""
        return Resources(
            workers=self.workers,
            min_workers=self.min_workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            checkpoint_seconds=self.checkpoint_seconds,
            checkpoint_steps=self.checkpoint_steps,
            checkpoints=self.checkpoint_place(),
            data_mib=self.data_mib,
            batch=self.batch,
        )


HERE = Places()

Overrides = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="A setting, such as train.images=50000; repeatable."),
]


def run(main: Callable[..., int | None]) -> None:
    """Run a command line and exit with its code; a user's mistake is one paragraph, not a traceback."""
    try:
        with interruptible():
            code = tyro.cli(main, description=(main.__doc__ or "").partition("\n\n")[0]) or 0
    except (PapertableError, Interrupted) as error:
        code = fail(error, error.exit_code)
    except ValueError as error:
        code = fail(error, BAD_CONFIGURATION)
    sys.exit(code)


def fail(error: BaseException, code: int) -> int:
    """Print an error as a paragraph and return the exit code."""
    # A path must stay one word, or it cannot be copied.
    print(textwrap.fill(f"error: {error}", 110, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
    return code


def check_workers(config: TrainConfig, places: Places) -> None:
    """Raises ValueError when the workers are none, or cannot train this together."""
    for workers in places.resources().numbers_of_workers():
        config.check_workers(workers)


def choose(what: str, name: str, choices: dict[str, Any]) -> Any:
    """choices[name], or ValueError with the nearest name and all allowed ones."""
    if name in choices:
        return choices[name]
    raise ValueError(f"unknown {what} {name!r}{hint(name, choices) or '.'} There are: {', '.join(choices)}")
