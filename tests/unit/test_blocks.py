"""Work on many images goes on where it was killed; what was kept of it and is not whole is done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.backend import LocalBackend
from orchestrator.step import PROGRESS_FILE, Resources, StepContext
from orchestrator.store import RECORD_FILE
from pipelines.blocks import Block, Kept, kept_arrays, map_blocks
from pipelines.shards import decoded_images, encoded_images

COUNT, SIZE = 23, 5


def context(folder: Path) -> StepContext:
    return StepContext(inputs={}, output=folder, backend=LocalBackend(), resources=Resources())


def squares(block: Block) -> np.ndarray:
    return np.arange(*block) ** 2


class Work:
    """Squares, and which blocks they were asked of; killed at one of them."""

    def __init__(self, *, killed_at: int | None = None) -> None:
        self.asked: list[Block] = []
        self._killed_at = killed_at

    def __call__(self, block: Block) -> np.ndarray:
        if block[0] == self._killed_at:
            raise KeyboardInterrupt
        self.asked.append(block)
        return squares(block)


@pytest.fixture
def kept(tmp_path: Path) -> Kept[np.ndarray]:
    return kept_arrays(tmp_path / "blocks", 1, lambda result: {"x": result}, lambda arrays: arrays["x"])


def run(work: Work, folder: Path, kept: Kept[np.ndarray]) -> np.ndarray:
    return np.concatenate(map_blocks(context(folder), work, COUNT, block_size=SIZE, kept=kept))


def test_work_that_was_killed_goes_on_with_the_blocks_it_lacks(tmp_path: Path, kept: Kept[np.ndarray]) -> None:
    first, second = Work(killed_at=10), Work()
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path, kept)
    assert np.array_equal(run(second, tmp_path, kept), np.arange(COUNT) ** 2)
    assert first.asked == [(0, 5), (5, 10)]
    assert second.asked == [(10, 15), (15, 20), (20, 23)]
    assert '"done": 23' in (tmp_path / PROGRESS_FILE).read_text()


def test_what_is_all_kept_is_read_and_nothing_is_computed(tmp_path: Path, kept: Kept[np.ndarray]) -> None:
    run(Work(), tmp_path, kept)
    again = Work()
    assert np.array_equal(run(again, tmp_path, kept), np.arange(COUNT) ** 2)
    assert again.asked == []


def test_what_was_made_of_other_inputs_or_by_another_version_is_made_again(
    tmp_path: Path, kept: Kept[np.ndarray]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ctx = replace(context(tmp_path), inputs={"source": source})
    for changed, record, version in ((True, "one", 1), (False, "one", 1), (True, "two", 1), (True, "two", 2)):
        (source / RECORD_FILE).write_text(record)
        work = Work()
        map_blocks(ctx, work, COUNT, block_size=SIZE, kept=replace(kept, version=version))
        assert len(work.asked) == (5 if changed else 0)


def test_blocks_of_another_size_do_not_stay_beside_the_new_ones(tmp_path: Path, kept: Kept[np.ndarray]) -> None:
    run(Work(), tmp_path, kept)
    found = map_blocks(context(tmp_path), Work(), COUNT, block_size=SIZE + 5, kept=kept)
    assert np.array_equal(np.concatenate(found), np.arange(COUNT) ** 2)
    assert len(list(kept.folder.iterdir())) == len(found)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_block_that_is_damaged_is_computed_again(tmp_path: Path, kept: Kept[np.ndarray], harm: str) -> None:
    run(Work(), tmp_path, kept)
    file = kept.file((5, 10))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"cut": file.read_bytes()[:-30], "flipped": bytes(content), "empty": b""}[harm])
    again = Work()
    assert np.array_equal(run(again, tmp_path, kept), np.arange(COUNT) ** 2)
    assert again.asked == [(5, 10)]


def test_images_in_parquet_come_back_or_are_said_not_to_be_whole() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)
    content = encoded_images((images, np.arange(7)))
    for found, expected in zip(decoded_images(content), (images, np.arange(7)), strict=True):
        assert np.array_equal(found, expected)
    harmed = bytearray(content)
    harmed[len(content) // 3] ^= 1
    for other in (bytes(harmed), content[:-20], b"", b"PAR1"):
        with pytest.raises(ValueError, match="no Parquet file of images"):
            decoded_images(other)
