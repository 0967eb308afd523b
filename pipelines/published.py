"""How do the papers' own weights become a step's output? From a .pt file of the user's, once its hash is known."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusion.openai_checkpoints import from_published, read_published, recognise
from diffusion.published import PUBLISHED
from orchestrator.config import to_dict
from orchestrator.errors import PreflightError
from orchestrator.step import Step, StepContext
from pipelines.cli import choose
from pipelines.trained import CONFIG, MODEL_FILE
from pipelines.weights import read_named

VERSION = 1
ALIASES = {
    "adm-imagenet64": "64x64_diffusion", "adm-imagenet128": "128x128_diffusion", "adm-imagenet256": "256x256_diffusion",
    "adm-imagenet256-unconditional": "256x256_diffusion_uncond", "adm-imagenet512": "512x512_diffusion",
    "adm-lsun-bedroom": "lsun_bedroom", "adm-lsun-cat": "lsun_cat", "adm-lsun-horse": "lsun_horse",
    "iddpm-imagenet64": "imagenet64_uncond_100M_1500K", "iddpm-imagenet64-vlb": "imagenet64_uncond_vlb_100M_1500K",
    "iddpm-imagenet64-conditional": "imagenet64_cond_270M_250K", "iddpm-cifar10": "cifar10_uncond_50M_500K",
    "iddpm-cifar10-vlb": "cifar10_uncond_vlb_50M_500K",
}  # fmt: skip
"""Names that people say, and those of the files, which are taken as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedConfig:
    """Which weights."""

    model: str
    """By the file it was published as: a key of PUBLISHED."""
    sha256: str
    """Of the file at hand."""


def published_step(url: str, *, option: str, name: str | None = None) -> Step:
    """The network of a .pt file, as a step without inputs: such run first, on the machine where the command does.

    Raises ValueError for an unknown name, or a file of another model; PreflightError where there is none.
    """
    with _file(url, option=option) as file:
        possible = recognise(read_published(file))
        sha256 = _sha256(file)
    if name is None and len({PUBLISHED[model].diffusion for model in possible}) == 1:
        model = possible[0]
    elif name is None:
        raise ValueError(f"{option} {url}: it may be {' or '.join(possible)}, of which the file does not tell: name it")
    else:
        model = choose("published model", name, {**ALIASES, **{model: model for model in PUBLISHED}})
    if model not in possible:
        raise ValueError(f"{option} {url}: by its names and shapes it is {' or '.join(possible)}, not {model}")
    config = PublishedConfig(model=model, sha256=sha256)
    return Step(name="published", version=VERSION, config=config, inputs={}, run=partial(_convert, url, option))


def _convert(url: str, option: str, config: PublishedConfig, ctx: StepContext) -> None:
    """Leave model.safetensors, as a training would."""
    with _file(url, option=option) as file:
        if (found := _sha256(file)) != config.sha256:
            raise PreflightError(f"{option} {url}: its SHA-256 is {found} now, and was {config.sha256}: not loaded")
        network = from_published(file)
    published = PUBLISHED[config.model]
    said = {
        "model": to_dict(published.network),
        "diffusion": to_dict(published.diffusion),
        "published": f"published {config.model}, SHA-256 {config.sha256}",
    }
    network.save(ctx.output / MODEL_FILE, metadata={CONFIG: json.dumps(said, sort_keys=True)})


@contextmanager
def _file(url: str, *, option: str) -> Iterator[Path]:
    """The file where it lies, or fetched for as long as it is needed."""
    if "://" not in url:
        file = Path(url).expanduser()
        if not file.is_file():
            raise PreflightError(f"{option} {url}: no such file")
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / "weights.pt"
        fetched.write_bytes(read_named(url, named_by=option))
        yield fetched


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
