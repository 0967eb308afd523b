"""Readers: the same bits resident or streaming, alone or shared, from any step on; damage is named, memory bounded."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.errors import DamagedArtifact
from pipelines import decoded, presets
from pipelines.decoded import MIB, decoded_bytes
from pipelines.order import ShuffledOrder
from pipelines.plan import check
from pipelines.readers import ImageReader, ResidentReader, Share, StreamingReader, open_reader
from pipelines.shards import Manifest
from tests.small_data import noise, write_data_set

COUNT, SHARD_ROWS, BATCH = 46, 5, 12  # ten shards, the last of one image; a batch straddles windows and epochs
WINDOW = 2  # shards
PIXELS = 4 * 4 * 3
STEPS = range(9)
IMAGES = noise(COUNT)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "noise"
    write_data_set(folder, IMAGES, shard_rows=SHARD_ROWS)
    return folder


def two_windows(dataset: Path, *, batch_of_windows: int = WINDOW) -> int:
    rows = batch_of_windows * SHARD_ROWS
    return 2 * decoded_bytes(Manifest.read(dataset), rows=rows, files=batch_of_windows)


def resident(dataset: Path, cache: Path, *, seed: int = 3) -> ImageReader:
    return reader_of(dataset, cache, seed=seed, memory_bytes=2**20)


def streaming(dataset: Path, cache: Path, *, seed: int = 3) -> ImageReader:
    return reader_of(dataset, cache, seed=seed, memory_bytes=two_windows(dataset))


def reader_of(dataset: Path, cache: Path, *, seed: int, memory_bytes: int) -> ImageReader:
    cache.mkdir(exist_ok=True)
    return open_reader(
        dataset, "train", seed=seed, batch_size=BATCH, shuffle_bytes=WINDOW * SHARD_ROWS * PIXELS,
        memory_bytes=memory_bytes, cache=cache,
    )  # fmt: skip


Opener = Callable[..., ImageReader]
both = pytest.mark.parametrize("opener", [resident, streaming])


def everything(reader: ImageReader, share: Share = slice(None)) -> tuple[Tensor, Tensor]:
    batches = [reader.batch(step, share) for step in STEPS]
    return torch.stack([batch.images for batch in batches]), torch.stack([batch.labels for batch in batches])


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def settle(reader: ImageReader) -> None:
    """Wait for what the thread is at."""
    assert isinstance(reader, StreamingReader)
    wait_until(lambda: all(window.done() for window in reader._windows.values()))


@both
def test_a_batch_holds_the_images_of_the_order_with_their_labels(dataset: Path, tmp_path: Path, opener: Opener) -> None:
    with opener(dataset, tmp_path) as reader:
        images, labels = everything(reader)
    order = ShuffledOrder(seed=3, count=COUNT, shard_rows=SHARD_ROWS, window_shards=WINDOW)
    rows = order.rows(torch.arange(len(STEPS) * BATCH))
    assert torch.equal(labels.flatten(), rows)
    assert torch.equal(images.flatten(0, 1), torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[rows])
    assert images.is_contiguous()


def test_what_fits_the_memory_is_resident_and_what_does_not_streams(dataset: Path, tmp_path: Path) -> None:
    with resident(dataset, tmp_path) as small, streaming(dataset, tmp_path) as large:
        assert isinstance(small, ResidentReader)
        assert isinstance(large, StreamingReader)
        assert isinstance(small, ImageReader)
        assert isinstance(large, ImageReader)


@both
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_shares_of_all_workers_make_up_the_same_batches(
    dataset: Path, tmp_path: Path, opener: Opener, workers: int
) -> None:
    with resident(dataset, tmp_path / "whole") as reader:
        images, labels = everything(reader)
    size = BATCH // workers
    with ExitStack() as opened:
        readers = [opened.enter_context(opener(dataset, tmp_path / "node")) for _ in range(workers)]
        for step in STEPS:  # side by side, as workers of a node are
            parts = [reader.batch(step, slice(rank * size, (rank + 1) * size)) for rank, reader in enumerate(readers)]
            assert torch.equal(torch.cat([part.images for part in parts]), images[step])
            assert torch.equal(torch.cat([part.labels for part in parts]), labels[step])


@both
def test_a_share_may_be_any_examples_in_any_order(dataset: Path, tmp_path: Path, opener: Opener) -> None:
    share = torch.tensor([11, 0, 5, 5])
    with opener(dataset, tmp_path) as reader:
        images, labels = everything(reader)
        for step in STEPS:
            batch = reader.batch(step, share)
            assert torch.equal(batch.images, images[step][share])
            assert torch.equal(batch.labels, labels[step][share])


@both
def test_a_step_gives_the_same_batch_whichever_steps_came_before(dataset: Path, tmp_path: Path, opener: Opener) -> None:
    with opener(dataset, tmp_path / "whole") as reader:
        images, _ = everything(reader)
    for first in STEPS:
        with opener(dataset, tmp_path / f"from {first}") as fresh:
            assert torch.equal(fresh.batch(first, slice(None)).images, images[first])
    with opener(dataset, tmp_path / "jumping") as reader:
        for step in (7, 2, 3, 700, 2, 8, 0):
            assert torch.equal(reader.batch(step, slice(None)).images, reader.batch(step, slice(None)).images)
            if step < len(STEPS):
                assert torch.equal(reader.batch(step, slice(None)).images, images[step])


def test_windows_of_one_shard_stream_through_a_batch_that_spans_many(dataset: Path, tmp_path: Path) -> None:
    settings = {"seed": 3, "batch_size": 4 * SHARD_ROWS, "shuffle_bytes": 1}
    memory = two_windows(dataset, batch_of_windows=1)
    (tmp_path / "other").mkdir()
    with (
        open_reader(dataset, "train", **settings, memory_bytes=memory, cache=tmp_path) as lean,
        open_reader(dataset, "train", **settings, memory_bytes=2**20, cache=tmp_path / "other") as whole,
    ):
        for step in range(5):
            assert torch.equal(lean.batch(step, slice(None)).images, whole.batch(step, slice(None)).images)


def mapped(cache: Path) -> set[str]:
    """The files of a cache that this process maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5].removesuffix(" (deleted)") for line in lines if str(cache) in line}


def test_a_stream_maps_and_keeps_no_more_than_its_memory_and_never_reads_beyond_the_next_window(
    dataset: Path, tmp_path: Path
) -> None:
    order = ShuffledOrder(seed=3, count=COUNT, shard_rows=SHARD_ROWS, window_shards=WINDOW)
    with streaming(dataset, tmp_path) as reader:
        for step in range(30):
            reader.batch(step, slice(None))
            settle(reader)
            last = int(order.windows(torch.tensor([(step + 1) * BATCH - 1])))
            shards = set(order.shards_of(last)) | set(order.shards_of(last + 1))
            assert len(mapped(tmp_path)) == 2 * len(shards)
            assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= two_windows(dataset)
    assert not mapped(tmp_path)


def test_a_window_that_is_not_needed_yet_is_read_while_the_one_before_is_in_use(dataset: Path, tmp_path: Path) -> None:
    with streaming(dataset, tmp_path) as reader:
        assert isinstance(reader, StreamingReader)
        reader.batch(0, slice(0, 1))
        settle(reader)
        assert sorted(reader._windows) == [0, 1]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """What is said of 546,100 images of 64x64; there are none."""
    rows = 5461  # as such images lie in shards
    shards = tuple({"split": "train", "file": "", "rows": rows, "sha256": ""} for _ in range(100))
    shards += ({"split": "test", "file": "", "rows": 1000, "sha256": ""},)
    Manifest(
        source="", shape=(64, 64, 3), classes=(), images={"train": 100 * rows, "test": 1000}, images_per_class={},
        mean=[], std=[], shards=shards, left_out=0, made_with={},
    ).write(tmp_path)  # fmt: skip
    return tmp_path


def test_a_node_with_too_little_memory_is_refused_before_a_worker_starts(large: Path) -> None:
    config = presets.tiny()
    check(config, {"dataset": large}, data_mib=2050)
    with pytest.raises(ValueError, match=r"data_mib=1024: .* or lower train\.shuffle_mib below 512"):
        check(config, {"dataset": large}, data_mib=1024)


def test_memory_for_less_than_two_windows_is_refused_with_what_would_help(large: Path, tmp_path: Path) -> None:
    def opened(*, shuffle_mib: int, data_mib: int) -> None:
        open_reader(
            large, "train", seed=0, batch_size=BATCH, shuffle_bytes=shuffle_mib * MIB, memory_bytes=data_mib * MIB,
            cache=tmp_path,
        ).close()  # fmt: skip

    with pytest.raises(ValueError, match=r"data_mib=1024: .* or lower train\.shuffle_mib below 512") as refused:
        opened(shuffle_mib=1024, data_mib=1024)
    needed = re.search(r"take (\d+) MiB of a node: raise --data-mib to that", str(refused.value))
    assert needed is not None
    opened(shuffle_mib=1024, data_mib=int(needed[1]))
    opened(shuffle_mib=511, data_mib=1024)
    with pytest.raises(ValueError, match=r"raise --data-mib to that$"):
        opened(shuffle_mib=1, data_mib=100)  # one shard is too much already


def spoil(dataset: Path, copy: Path, file: str, how: str) -> Path:
    write_data_set(copy, IMAGES, shard_rows=SHARD_ROWS)
    content = bytearray((copy / file).read_bytes())
    if how == "missing":
        (copy / file).unlink()
    elif how == "truncated":
        (copy / file).write_bytes(content[:-10])
    else:
        content[len(content) // 2] ^= 1
        (copy / file).write_bytes(content)
    return copy


@both
@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_named(dataset: Path, tmp_path: Path, opener: Opener, how: str) -> None:
    copy = spoil(dataset, tmp_path / "copy", "train-00007.parquet", how)
    with pytest.raises(DamagedArtifact, match=r"train-00007\.parquet"), opener(copy, tmp_path / "cache") as reader:
        everything(reader)


def test_damage_that_was_found_ahead_is_told_when_its_images_are_due_and_again_when_asked_again(
    dataset: Path, tmp_path: Path
) -> None:
    order = ShuffledOrder(seed=3, count=COUNT, shard_rows=SHARD_ROWS, window_shards=WINDOW)
    shard = order.shards_of(1)[-1]
    copy = spoil(dataset, tmp_path / "copy", f"train-{shard:05d}.parquet", "flipped")
    with streaming(copy, tmp_path / "cache") as reader:
        reader.batch(0, slice(0, 1))
        settle(reader)
        reader.batch(0, slice(0, 1))
        for _ in range(2):
            with pytest.raises(DamagedArtifact, match=f"{shard:05d}"):
                reader.batch(1, slice(None))


def test_shards_that_do_not_hold_what_the_manifest_says_are_named(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    manifest = write_data_set(copy, IMAGES, shard_rows=SHARD_ROWS)
    Manifest(**{**vars(manifest), "shape": (4, 4, 1)}).write(copy)
    with pytest.raises(DamagedArtifact, match=r"train-0.*does not hold the images that the manifest says"):
        resident(copy, tmp_path / "other")


@both
def test_closing_ends_the_thread_and_unmaps_the_files(
    dataset: Path, tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()
    slow = decoded.read_images

    def read_slowly(*arguments: Any) -> Any:
        time.sleep(0.05)
        return slow(*arguments)

    monkeypatch.setattr(decoded, "read_images", read_slowly)
    reader = opener(dataset, tmp_path)
    reader.batch(0, slice(None))  # and the next window is being read
    reader.close()
    assert threading.active_count() == threads
    del reader
    assert not mapped(tmp_path)


SIDE_BY_SIDE = """
import hashlib, sys
from pathlib import Path
from pipelines.readers import open_reader
dataset, cache, seed, batch, shuffle, memory = sys.argv[1:]
Path(cache).mkdir(exist_ok=True)
with open_reader(Path(dataset), "train", seed=int(seed), batch_size=int(batch), shuffle_bytes=int(shuffle),
                 memory_bytes=int(memory), cache=Path(cache)) as reader:
    digest = hashlib.sha256()
    for step in range(9):
        digest.update(reader.batch(step, slice(None)).images.numpy().tobytes())
print(digest.hexdigest())
"""


@both
def test_processes_that_open_one_set_at_once_read_the_same(dataset: Path, tmp_path: Path, opener: Opener) -> None:
    memory = 2**20 if opener is resident else two_windows(dataset)
    shuffle = WINDOW * SHARD_ROWS * PIXELS
    command = [sys.executable, "-c", SIDE_BY_SIDE, dataset, tmp_path / "node", 3, BATCH, shuffle, memory]
    started = [subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=120)[0] for process in started}
    with resident(dataset, tmp_path / "alone") as reader:
        expected = everything(reader)[0].numpy().tobytes()
    assert [process.returncode for process in started] == [0, 0]
    assert said == {hashlib.sha256(expected).hexdigest() + "\n"}
    assert not list((tmp_path / "node").glob("*.partial"))
