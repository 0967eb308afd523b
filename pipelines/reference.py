"""What are samples compared with? Moments of all reference images, and some of these, in a file for evaluate.py.

python pipelines/reference.py images.npz reference.npz
python pipelines/reference.py flowers reference.npz --split train --store artifacts
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from diffusion.metrics.features import Extractor, Features
from orchestrator.config import override, parse_settings
from orchestrator.errors import DamagedArtifact
from orchestrator.store import ArtifactStore
from pipelines.cli import HERE, Overrides, Places, choose, run
from pipelines.evaluate_files import NETWORKS, loaded
from pipelines.features import PublishedConfig, images_of, libraries_of
from pipelines.images_file import BLOCK, ImagesFile, progressing
from pipelines.moments import MOST_IMAGES, Moments, evenly
from pipelines.named_data import named
from pipelines.prepare_command import StoreFlag
from pipelines.shards import Manifest, Split, read_images


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """Whose features the moments are of."""

    features: PublishedConfig


def main(
    source: Annotated[str, tyro.conf.Positional],
    output: Annotated[Path, tyro.conf.Positional],
    /,
    network: str = "inception",
    set: Overrides = (),
    split: Split | None = None,
    images: int = MOST_IMAGES,
    device: str | None = None,
    store: StoreFlag = HERE.store,
) -> int:
    """Write a reference file: the first argument of evaluate.py, and of the published evaluator.

    Args:
        source: An npz with arr_0 (uint8, NHWC), or a prepared data set by name; python pipelines/data.py list shows
            them.
        output: The npz to write: mu, sigma, mu_s and sigma_s of all images, arr_0 of some, and what they are of.
        network: What sees the images: inception, whose weights PAPERTABLE_WEIGHTS names, or efficientnet-lite0.
        set: Settings changed, such as features.mode=clean.
        split: Of a data set: train or test, by default test.
        images: How many images to put beside the moments, over which precision, recall and KID are; 0: none. The
            published evaluator needs some.
        device: cuda, cuda:1 or cpu; by default a GPU where there is one.
    """
    base = ReferenceConfig(features=choose("network", network, dict(NETWORKS)))
    config = override(base, parse_settings(base, set))
    _check(output, images=images)
    found = _of_file(Path(source), split) if source.endswith(".npz") else _of_data_set(source, split, store)
    sees, device = loaded(config.features, device)
    moments, kept = _seen(sees, found, most=images)
    partial = output.with_name(f".{uuid.uuid4().hex}.npz")
    try:
        moments.save(
            partial,
            network=sees.protocol,
            of=found.of,
            images=kept,
            libraries=f"{libraries_of(config.features)}, on {device}",
        )
        partial.rename(output)  # whole or not there
    finally:
        partial.unlink(missing_ok=True)
    print(output)
    return 0


class Source(NamedTuple):
    """Images, and what a protocol says of them."""

    name: str
    images: int
    blocks: Iterator[NDArray[np.uint8]]
    of: dict[str, str]


def _check(output: Path, *, images: int) -> None:
    """Raises ValueError before anything is read."""
    if output.suffix != ".npz":
        raise ValueError(f"{output}: name a file that ends in .npz")
    if output.exists():
        raise ValueError(f"{output} is there already: name another file")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: its folder is not there; make it first")
    if images < 0:
        raise ValueError(f"--images {images}: 0 or more")


def _of_file(path: Path, split: Split | None) -> Source:
    if split is not None:
        raise ValueError(f"--split {split}: a file has no splits; leave it out")
    file = ImagesFile.open(path)
    if file.count < 2:
        raise DamagedArtifact(path, f"holds {file.count} images: moments are of at least 2, in arr_0")
    if file.moments:
        raise ValueError(
            f"{path} holds {', '.join(file.moments)} already, maybe of other images than arr_0: it is a "
            f"reference file as it is"
        )
    of = {"reference": f"{file.count} images", "dataset": file.sha256[:12]}
    return Source(path.name, file.count, file.blocks(), of)


def _of_data_set(name: str, split: Split | None, store: str) -> Source:
    artifacts: ArtifactStore = Places(store=store).artifact_store()
    dataset = named(artifacts, name)
    chosen: Split = split or "test"
    manifest = Manifest.read(dataset)
    count = manifest.images[chosen]
    if count < 2:
        raise ValueError(f"--split {chosen}: {name} has {count} such images, and moments are of at least 2")

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for shard in manifest.of_split(chosen):
            images = read_images(dataset, shard, manifest).images
            yield from (images[first : first + BLOCK] for first in range(0, len(images), BLOCK))

    return Source(name, count, blocks(), images_of(dataset, count, chosen))


def _seen(sees: Extractor, source: Source, *, most: int) -> tuple[Moments, NDArray[np.uint8]]:
    """The moments of all images, and some of these; features are forgotten block by block."""
    chosen = evenly(source.images, most=most)
    kept: list[NDArray[np.uint8]] = []

    def features() -> Iterator[Features]:
        first = 0
        for block in progressing(source.blocks, name=source.name, count=source.images):
            kept.append(block[chosen[(chosen >= first) & (chosen < first + len(block))] - first])
            first += len(block)
            yield sees(block)

    return Moments.of(features()), np.concatenate(kept)


if __name__ == "__main__":
    run(main)
