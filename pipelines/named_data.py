"""Which data sets have been prepared in a store, and by what names are they known?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from orchestrator.config import canonical_json, from_dict, to_dict
from orchestrator.errors import PreflightError
from orchestrator.files import write_whole
from orchestrator.store import ArtifactStore
from pipelines.cli import choose
from pipelines.data import DataConfig, dataset_step
from pipelines.import_images import SKIPPED_FILE

NAMES_FOLDER = "datasets"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def data_changes(
    name: str | None, store: ArtifactStore, *, data: str = "data", network: str = "model"
) -> dict[str, Any]:  # fmt: skip
    """The settings that put a prepared data set in the place of a set-up's, as override() takes them; none for no name.

    The image size and channels of the network, whose U-Net is the setting `network`, follow those of `data`. Raises
    PreflightError for a name that is not in the store.
    """
    if name is None:
        return {}
    named(store, name)  # raises where it is not whole
    chosen = known(store)[name]
    size, channels = chosen.image_size, chosen.channels
    return {**{f"{data}.{key}": value for key, value in to_dict(chosen).items()},
            f"{network}.image_size": size, f"{network}.channels": channels}  # fmt: skip


def known(store: ArtifactStore) -> dict[str, DataConfig]:
    """The prepared data sets by name."""
    files = sorted((store.root / NAMES_FOLDER).glob("*.json"))
    return {file.stem: from_dict(DataConfig, json.loads(file.read_text())) for file in files}


def named(store: ArtifactStore, name: str) -> Path:
    """Where a data set is. Raises PreflightError for one that is not there, or is not whole."""
    try:
        step = dataset_step(choose("data set", name, known(store)))
    except ValueError as error:
        raise PreflightError(f"{error or 'none'}; python pipelines/data.py prepare makes one") from error
    if not store.is_done(step):
        raise PreflightError(f"data set {name!r} is not whole in {store.root}: prepare it again")
    return store.path(step)


def check_free(name: str, config: DataConfig, store: ArtifactStore, *, replace: bool) -> None:
    """Raises ValueError when the name stands for another data set, unless it may be replaced."""
    if known(store).get(name) not in (None, config) and not replace:
        raise ValueError(
            f"{name!r} is another data set already: choose another with --name, or say --replace (the other stays in "
            f"the store, without a name)"
        )


def remember(name: str, config: DataConfig, store: ArtifactStore) -> None:
    """Let a name stand for a data set."""
    kept = store.root / NAMES_FOLDER / f"{name}.json"
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, canonical_json(to_dict(config)))


def checked_name(name: str) -> str:
    """The name itself. Raises ValueError for one that could not be a file's."""
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: letters, digits, dots, _ and -, at most 64; name it with --name")
    return name


def skipped(dataset: Path) -> list[str]:
    """Which images a data set was made without, and why."""
    file = dataset / SKIPPED_FILE
    return json.loads(file.read_text()) if file.is_file() else []
