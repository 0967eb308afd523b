"""How fast does a folder of JPEGs become a data set, beside a loop over Pillow and beside Ray Data? Images a second.

All shrink and crop as published, and write what training can read: the loop one .npz, Ray Data Parquet, ours verified
shards and a manifest. Ours reads every image twice: once to know the data set by its content, once to shrink it. They
take turns; Ray is started before, and its workers are warm. Printed are medians of the rounds, least and most.

    PYTHONPATH=. python benchmarks/data_preparation.py > docs/results/data_preparation.md
    PYTHONPATH=. python benchmarks/data_preparation.py --images 200 --rounds 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.data import DataConfig, dataset_step
from pipelines.import_images import ImportOptions, digest_of, look_at
from pipelines.shards import SPLITS, read_split

SIDE = 64
PICTURE = (500, 375)  # ImageNet's most frequent size
CLASSES = 10


def write_pictures(folder: Path, images: int) -> None:
    """Smooth noise: it compresses as photographs do, to some 50 kB."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize(PICTURE, Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(fine + rng.integers(-12, 13, fine.shape), 0, 255).astype(np.uint8)
        (folder / f"{number % CLASSES}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number % CLASSES}" / f"{number:06d}.jpg", quality=90)


def shrunk(image: Image.Image) -> np.ndarray:
    """As published, in a user's own words."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * SIDE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - SIDE) // 2, (image.width - SIDE) // 2
    return np.asarray(image)[top : top + SIDE, left : left + SIDE]


def pillow_loop(pictures: Path, output: Path) -> None:
    """One process."""
    images, labels = [], []
    for file in sorted(pictures.glob("*/*.jpg")):
        with Image.open(file) as image:
            images.append(shrunk(image))
        labels.append(int(file.parent.name))
    np.savez(output / "images.npz", arr_0=np.stack(images), arr_1=np.array(labels))


def shrunk_row(row: dict[str, Any]) -> dict[str, Any]:
    """Of Ray Data."""
    with Image.open(row["path"]) as image:
        return {"pixels": shrunk(image).tobytes(), "label": int(Path(row["path"]).parent.name)}


def ray_data(pictures: Path, output: Path) -> None:
    """On all CPUs."""
    paths = [{"path": str(file)} for file in sorted(pictures.glob("*/*.jpg"))]
    ray.data.from_items(paths, override_num_blocks=8).map(shrunk_row).write_parquet(str(output / "parquet"))


def ours(processes: int) -> Callable[[Path, Path], None]:
    """The command data.py prepare, without its screen."""

    def prepare(pictures: Path, output: Path) -> None:
        backend, resources = LocalBackend(processes=processes), Resources(workers=processes)
        options = ImportOptions(path=pictures)
        entries = look_at(options)
        content = digest_of(
            options, len(entries), kept=output, backend=backend, resources=resources, on_done=lambda _: None
        )
        config = DataConfig(source="files", content=content, image_size=SIDE, channels=3, test_percent=10)
        materialize([dataset_step(config, options)], ArtifactStore(str(output)), backend=backend, resources=resources)

    return prepare


CONTESTANTS: dict[str, Callable[[Path, Path], None]] = {
    "loop over Pillow": pillow_loop,
    f"Ray Data, {os.cpu_count()} CPUs": ray_data,
    "ours, 1 process": ours(1),
    "ours, 2 processes": ours(2),
}


def check_same(looped: Path, prepared: Path) -> None:
    """Raises AssertionError unless both hold the same pictures."""
    dataset = next((prepared / "dataset").iterdir())
    mine = np.concatenate([read_split(dataset, split).images for split in SPLITS])
    theirs = np.load(looped / "images.npz")["arr_0"]
    assert sorted(image.tobytes() for image in mine) == sorted(image.tobytes() for image in theirs)


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as temporary:
        folder, numbers = Path(temporary), count()
        write_pictures(folder / "pictures", flags.images)
        speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        outputs = dict[str, Path]()
        for turn in range(flags.rounds + 1):  # the first warms files and workers
            for name, prepare in CONTESTANTS.items():
                outputs[name] = folder / str(next(numbers))
                outputs[name].mkdir()
                began = time.perf_counter()
                prepare(folder / "pictures", outputs[name])
                if turn:
                    speeds[name].append(flags.images / (time.perf_counter() - began))
        check_same(outputs["loop over Pillow"], outputs["ours, 1 process"])
    ray.shutdown()
    first = statistics.median(speeds["loop over Pillow"])
    print(
        f"# A folder of JPEGs becomes a data set\n\n{flags.images:,} images of {PICTURE[0]}x{PICTURE[1]} to "
        f"{SIDE}x{SIDE}, {flags.rounds} rounds, {os.cpu_count()} CPUs.\n"
        f"`PYTHONPATH=. python benchmarks/data_preparation.py`\n\n"
        f"| who | images/s | least to most | times the loop |\n|---|---:|---:|---:|"
    )
    for name, measured in speeds.items():
        median = statistics.median(measured)
        print(f"| {name} | {median:,.0f} | {min(measured):,.0f} to {max(measured):,.0f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
