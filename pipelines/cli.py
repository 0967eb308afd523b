"""What do the command lines have in common? Where things are kept, and what an error looks like to a user."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import tyro

from diffusion.training import TrainConfig
from orchestrator.errors import PapertableError
from orchestrator.step import Resources

BAD_CONFIGURATION = 2


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a command keeps its artifacts, and where it runs. Nothing here changes a number."""

    store: str = "artifacts"
    """Folder of all artifacts. The same folder again goes on where the last run stopped."""
    workers: int = 1
    """Workers that train one model together."""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker."""
    checkpoint_seconds: float = 30.0
    """At most so much training is lost when a worker is."""

    def resources(self) -> Resources:
        """What each step may use."""
        return Resources(
            workers=self.workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
            checkpoint_seconds=self.checkpoint_seconds,
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
        code = tyro.cli(main, description=(main.__doc__ or "").partition("\n\n")[0]) or 0
    except PapertableError as error:
        code = fail(error, error.exit_code)
    except ValueError as error:
        code = fail(error, BAD_CONFIGURATION)
    sys.exit(code)


def fail(error: Exception, code: int) -> int:
    """Print an error as a paragraph and return the exit code."""
    print(textwrap.fill(f"error: {error}", width=110), file=sys.stderr)
    return code


def check_workers(config: TrainConfig, places: Places) -> None:
    """Raises ValueError when the workers cannot share a batch evenly, or are none."""
    places.resources()
    if config.batch_size % places.workers:
        raise ValueError(
            f"--workers {places.workers}: train.batch_size={config.batch_size} must be a multiple of it, so that all "
            f"get the same share"
        )


def choose(what: str, name: str, choices: dict[str, Any]) -> Any:
    """choices[name], or ValueError with the nearest name and all allowed ones."""
    if name in choices:
        return choices[name]
    near = get_close_matches(name, choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{hint} There are: {', '.join(choices)}")
