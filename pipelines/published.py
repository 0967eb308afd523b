"""How do the papers' own weights become a step's output? From a .pt file of the user's, known by its hash."""

from __future__ import annotations

import hashlib
import json
import tempfile
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
class PublishedWeights:
    """Which weights."""

    model: str
    """By the file it was published as: a key of PUBLISHED."""
    sha256: str
    """Of the file at hand."""


def published_step(url: str, *, option: str, name: str | None = None) -> Step:
    """The network of a .pt file, as a step without inputs: such run first, on the machine where the command does.

    url: a path, s3://, gs:// or http(s)://, by choice with #sha256=HEX behind it, which it must then have. Raises
    ValueError for an unknown name, or a file of another model; PreflightError where there is none, or another one.
    """
    where, _, wanted = url.partition("#sha256=")
    file = _File.of(where, option=option)
    if wanted and file.sha256 != wanted.lower():
        raise PreflightError(f"{option} {where} has SHA-256 {file.sha256}, not {wanted}: it is not loaded")
    possible = recognise(read_published(file.path))
    if name is not None:
        model = choose("published model", name, {**ALIASES, **{model: model for model in PUBLISHED}})
        if model not in possible:
            raise ValueError(f"{option} {where}: by its names and shapes it is {' or '.join(possible)}, not {model}")
    elif len(possible) == 1:
        (model,) = possible
    else:
        raise ValueError(f"{option} {where}: it may be {' or '.join(possible)}, of which the file does not tell")
    config = PublishedWeights(model=model, sha256=file.sha256)
    return Step(name="published", version=VERSION, config=config, inputs={}, run=partial(_convert, file))


@dataclass(frozen=True)
class _File:
    """Where it lies, or where it was fetched to: once, and for as long as this process needs it."""

    path: Path
    sha256: str
    fetched: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def of(cls, url: str, *, option: str) -> _File:
        """Raises PreflightError where there is none."""
        if "://" not in url:
            path = Path(url).expanduser()
            if not path.is_file():
                raise PreflightError(f"{option} {url}: no such file")
            return cls(path, _sha256(path))
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "weights.pt"
        path.write_bytes(read_named(url, named_by=option))
        return cls(path, _sha256(path), folder)


def _convert(file: _File, config: PublishedWeights, ctx: StepContext) -> None:
    """Leave model.safetensors, as a training would."""
    if (found := _sha256(file.path)) != config.sha256:
        raise PreflightError(f"{file.path}: its SHA-256 is {found} now, and was {config.sha256}: not loaded")
    network, published = from_published(file.path), PUBLISHED[config.model]
    said = {
        "model": to_dict(published.network),
        "diffusion": to_dict(published.diffusion),
        "published": f"published {config.model}, SHA-256 {config.sha256}",
    }
    network.save(ctx.output / MODEL_FILE, metadata={CONFIG: json.dumps(said, sort_keys=True)})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
