"""Where is a shard: beside its manifest, or on object storage, where location.json says? Either way it is verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import DamagedArtifact
from orchestrator.files import write_whole
from pipelines.object_storage import Location, open_location

LOCATION_FILE = "location.json"
SHARDS_FOLDER = "shards"


@dataclass(frozen=True)
class Elsewhere:
    """Of an attached data set: where its shards are read from."""

    url: str
    """The data set's folder there; its shards are in a folder beside it, which several data sets may share."""
    sizes: Mapping[str, int]
    """Bytes of each shard, by the manifest's name of it."""

    @classmethod
    def of(cls, dataset: Path) -> Elsewhere | None:
        """What the data set's location.json says; None for one that was prepared here."""
        file = dataset / LOCATION_FILE
        try:
            return cls(**json.loads(file.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DamagedArtifact(file, f"no location ({error}); remove {dataset} and attach it again") from error

    def write(self, dataset: Path) -> None:
        """Into the data set's directory."""
        write_whole(dataset / LOCATION_FILE, json.dumps(asdict(self), indent=1))

    def shard(self, shard: Mapping[str, Any]) -> Location:
        """The object that holds it."""
        return shard_location(open_location(self.url).parent, shard)

    def fetch(self, shard: Mapping[str, Any]) -> bytes:
        """The shard's bytes. Raises DamagedArtifact, with the URL, unless they are what was written."""
        where = self.shard(shard)
        try:
            return where.read(
                is_whole=lambda content: hashlib.sha256(content).hexdigest() == shard["sha256"],
                size=self.sizes.get(shard["file"]),
            )
        except DamagedArtifact as damage:
            raise DamagedArtifact(
                damage.path,
                f"{damage.what}; it is {shard['file']} of data set {Location(self.url).name}: python pipelines/data.py "
                f"push --reread puts it right, where the data set is whole",
            ) from damage


def shard_location(root: Location, shard: Mapping[str, Any]) -> Location:
    """Named by its content: what is there under this name, whole, is this shard."""
    return root / SHARDS_FOLDER / f"{shard['sha256']}.parquet"


def shard_bytes(dataset: Path, shard: Mapping[str, Any]) -> bytes:
    """The shard's file, or else its object. Raises DamagedArtifact unless it is what was written."""
    file = dataset / shard["file"]
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        elsewhere = Elsewhere.of(dataset)
        if elsewhere is None:
            raise DamagedArtifact(file, "is missing") from error
        return elsewhere.fetch(shard)
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        elsewhere = Elsewhere.of(dataset)
        remedy = "" if elsewhere is None else f"; remove it, and it is read from {elsewhere.url}"
        raise DamagedArtifact(file, f"its SHA-256 is not the manifest's{remedy}")
    return content


def where(dataset: Path, shards: Sequence[Mapping[str, Any]]) -> str:
    """ "here" when all of them have a file here; else where they are read from."""
    elsewhere = Elsewhere.of(dataset)
    if elsewhere is None or all((dataset / shard["file"]).is_file() for shard in shards):
        return "here"
    return f"at {elsewhere.url}"
