"""Which images does a study train and test on? Real images turned into verified Parquet shards.

python pipelines/data.py prepare digits
python pipelines/data.py prepare ~/flowers --image-size 32 --name flowers
python pipelines/data.py inspect flowers
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from orchestrator.errors import PreflightError
from orchestrator.step import DatasetFacts, Step, StepContext
from pipelines.builtin_data import load_digits, load_fashion_mnist
from pipelines.import_images import ImportOptions, Target, import_images
from pipelines.shards import MANIFEST_FILE, Manifest, ShardWriter, sha256_of

VERSION = 3
DIGITS = tuple(str(digit) for digit in range(10))
DIGEST_DIGITS = 32  # MLflow keeps 36
BUILT_IN_SIZES = {"digits": (4, 8), "fashion-mnist": (16, 28, 32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A data set and how it is split. Its images are uint8; training sees them scaled to [-1, 1]."""

    source: Literal["digits", "fashion-mnist", "files"] = "digits"
    """files: images that data.py prepare has read, from wherever they were."""
    content: str | None = None
    """Of files: the SHA-256 of all their names, labels and bytes, which data.py prepare works out."""
    image_size: int = 8
    """Height and width in pixels: 8 for digits; 28, or 32 with a black border, for fashion-mnist; any for files."""
    channels: Literal[1, 3] = 1
    """1 gray, as both built-in sources are; 3 RGB."""
    test_percent: int | None = 20
    """Share of the images held out, chosen by the hash of their bytes; null where the data set brings its own split."""

    def __post_init__(self) -> None:
        if (self.source == "files") != (self.content is not None):
            raise ValueError(
                f"data.content={self.content!r} with data.source={self.source!r}: files, and they alone, are known by "
                f"their content; name a prepared data set with --data NAME"
            )
        if self.image_size < 1:
            raise ValueError(f"data.image_size={self.image_size}: must be 1 or more")
        if self.source == "files":
            if self.test_percent is not None:
                self._check_percent(highest=90)
        else:
            self._check_built_in()

    def _check_built_in(self) -> None:
        allowed = BUILT_IN_SIZES[self.source]
        if self.image_size not in allowed:
            raise ValueError(
                f"data.image_size={self.image_size}: {self.source} is available at "
                f"{' or '.join(map(str, allowed))} pixels; set data.image_size to that"
            )
        if self.channels != 1:
            raise ValueError(f"data.channels={self.channels}: {self.source} is gray; set data.channels=1")
        if self.source == "fashion-mnist" and self.test_percent is not None:
            raise ValueError(
                f"data.test_percent={self.test_percent}: fashion-mnist brings its own split; set it to null"
            )
        if self.source == "digits":
            self._check_percent(highest=50)

    def _check_percent(self, *, highest: int) -> None:
        if not 1 <= (self.test_percent or 0) <= highest:
            raise ValueError(f"data.test_percent={self.test_percent}: must be between 1 and {highest}")


def dataset_step(config: DataConfig, options: ImportOptions | None = None) -> Step:
    """The data set as an artifact: one Parquet file a shard, manifest.json over all of them.

    options say where files are: they can be read once, and are then known by their content.
    """
    return Step(name="dataset", version=VERSION, config=config, inputs={}, run=partial(prepare, options=options))


def prepare(config: DataConfig, ctx: StepContext, *, options: ImportOptions | None = None) -> None:
    """Write both splits as shards and a manifest with their SHA-256.

    Raises PreflightError for files that nobody has named here.
    """
    notes: list[str] = []
    if config.source == "files":
        if options is None:
            raise PreflightError(
                f"the data set with content {config.content} is not in this store: attach it, or prepare it first, "
                f"with python pipelines/data.py prepare SOURCE --image-size {config.image_size} --channels "
                f"{config.channels} --test-percent {config.test_percent or 'own'} --store STORE"
            )
        assert config.content is not None
        target = Target(config.image_size, config.channels, config.test_percent)
        manifest, notes = import_images(options, ctx, content=config.content, target=target)
    else:
        manifest = _write_built_in(config, ctx)
    height, width, channels = manifest.shape
    counts = " and ".join(f"{count:,} {split}" for split, count in manifest.images.items())
    ctx.write_metrics(
        {},
        notes=[f"ours: {manifest.source}, {height}x{width}x{channels}, {counts} images", *notes],
        dataset=DatasetFacts(
            name=manifest.source,
            digest=sha256_of(ctx.output / MANIFEST_FILE)[:DIGEST_DIGITS],
            profile={"images": manifest.images, "shape": manifest.shape, "classes": len(manifest.classes)},
        ),
    )


def _write_built_in(config: DataConfig, ctx: StepContext) -> Manifest:
    if config.source == "digits":
        assert config.test_percent is not None
        splits = load_digits(config.image_size, config.test_percent)
    else:
        splits = load_fashion_mnist(config.image_size)
    writer = ShardWriter(ctx.output, shape=(config.image_size, config.image_size, 1), num_classes=len(DIGITS))
    for split, images in splits.items():
        images.require(image_size=config.image_size, num_classes=len(DIGITS))
        for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            writer.add(split, image, int(label), f"{split}/{number}")
    return writer.finish(source=config.source, classes=DIGITS)


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.data_commands import main  # needs this module under its own name

    run(main)
