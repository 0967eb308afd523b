"""Where do weights come from that nobody may hand on? From a file the user names, which is known by its hash.

PAPERTABLE_WEIGHTS names the file, or a folder in which it lies by its published name: a path, s3://, gs:// or http(s)://.
It is read once, before any worker starts; workers find it in the store.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import PurePosixPath
from urllib.parse import urlsplit
from urllib.request import urlopen

from orchestrator.errors import DamagedArtifact, PreflightError
from orchestrator.files import write_durably
from orchestrator.step import Step, StepContext
from pipelines.object_storage import open_location

VARIABLE = "PAPERTABLE_WEIGHTS"
WEIGHTS_FILE = "weights"
VERSION = 1
REQUEST_SECONDS, MOST_BYTES = 60.0, 2**32  # the largest published network takes 2.2 GB


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig:
    """Which file that is."""

    name: str
    """By which it was published."""
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"weights_sha256={self.sha256!r}: 64 hexadecimal digits, as sha256sum prints them")


def weights_step(config: WeightsConfig) -> Step:
    """The file in the store, as a step without inputs: such run first, on the machine where the command does."""
    return Step(name="weights", version=VERSION, config=config, inputs={}, run=fetch)


def fetch(config: WeightsConfig, ctx: StepContext) -> None:
    """Put the file into the store; see read_weights."""
    write_durably(ctx.output / WEIGHTS_FILE, read_weights(config))


def read_weights(config: WeightsConfig) -> bytes:
    """The file that PAPERTABLE_WEIGHTS names. Raises PreflightError when there is none, or it is another one."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise PreflightError(
            f"the weights {config.name} (SHA-256 {config.sha256}) are needed, and no package carries them: set "
            f"{VARIABLE} to the file, or to the folder it is in (a path, s3://, gs:// or https://)"
        )
    path = PurePosixPath(urlsplit(named).path)
    url = named if path.suffix == PurePosixPath(config.name).suffix else f"{named.rstrip('/')}/{config.name}"
    content = read_named(url, named_by=VARIABLE)
    found = hashlib.sha256(content).hexdigest()
    if found != config.sha256:
        raise PreflightError(f"{_shown(url)} has SHA-256 {found}, not {config.sha256}: it is not loaded")
    return content


def read_named(url: str, *, named_by: str) -> bytes:
    """What lies at a path, s3://, gs:// or http(s)://. Raises PreflightError where nothing can be read."""
    if url.startswith(("https://", "http://")):
        return _from_the_web(url, named_by)
    try:
        return open_location(url).read(is_whole=lambda _: True)
    except DamagedArtifact as error:
        raise PreflightError(f"{error}; {named_by} names it") from error


def _shown(url: str) -> str:
    """Without its query, which may hold a token."""
    return url.partition("?")[0]


def _from_the_web(url: str, named_by: str) -> bytes:
    try:
        with urlopen(url, timeout=REQUEST_SECONDS) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise PreflightError(f"{_shown(url)} cannot be read ({error}); {named_by} names it") from error
    if len(content) > MOST_BYTES:
        raise PreflightError(f"{_shown(url)} is larger than {MOST_BYTES:,} bytes: no weights; {named_by} names it")
    return content
