"""In which order does training see the images: each once an epoch, however the work is shared or cut?"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.gaussian import DiffusionConfig
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.unet import UNetConfig
from orchestrator.backend import SpmdContext
from pipelines.order import ShuffledOrder
from pipelines.readers import Batch, ImageReader, Share, open_reader
from pipelines.train import diffusion_training
from pipelines.trained import TrainStepConfig
from pipelines.training_parts import Place
from pipelines.training_run import TrainingRun
from tests.small_data import gray, write_data_set

COUNT, BATCH = 20, 8  # epochs end within a batch


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageReader]:
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder / "gray", gray(COUNT), shard_rows=6)
    kept = {"memory_bytes": 2**20, "cache": folder}
    with open_reader(folder / "gray", "train", seed=0, batch_size=BATCH, shuffle_bytes=2**20, **kept) as opened:
        yield opened


def worker(rank: int, world_size: int) -> SpmdContext:
    return SpmdContext(rank=rank, world_size=world_size, local_rank=rank, device="cpu")


def training(output: Path, reader: ImageReader, *, flip: bool = False, rank: int = 0, workers: int = 1) -> TrainingRun:
    model = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
        num_heads=1,
    )  # fmt: skip
    train = TrainConfig(images=10 * BATCH, batch_size=BATCH, flip=flip, reduction=TreeConfig(shards=8))
    config = TrainStepConfig(model=model, diffusion=DiffusionConfig(num_timesteps=20), train=train, seed=0)
    output.mkdir(exist_ok=True)
    place = Place(output, str(output / "checkpoints"), None, "", checkpoint_seconds=1000.0, checkpoint_steps=None)
    return TrainingRun(diffusion_training(config, "cpu"), worker(rank, workers), place, reader)


def seen(run: TrainingRun, *, steps: Iterable[int]) -> list[tuple[int, int, int]]:
    """(step, place in the batch, row of the image), as training gets them."""
    found = []
    for step in steps:
        examples, _ = run.examples(step)
        rows = ((examples.x_start[:, 0, 0, 0] + 1) * 127.5).round().int()
        found += [(step, place, row) for place, row in zip(examples.index.tolist(), rows.tolist(), strict=True)]
    return found


def test_training_takes_the_images_in_the_order_of_its_seed(tmp_path: Path, reader: ImageReader) -> None:
    order = ShuffledOrder(seed=0, count=COUNT, shard_rows=COUNT, window_shards=1).rows(torch.arange(10 * BATCH))
    found = [row for _, _, row in seen(training(tmp_path, reader), steps=range(10))]
    assert found == order.tolist()


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_workers_shares_make_up_the_batches_of_one_worker(
    tmp_path: Path, reader: ImageReader, workers: int
) -> None:
    shares = []
    for rank in range(workers):
        shares += seen(training(tmp_path / str(rank), reader, rank=rank, workers=workers), steps=range(10))
    assert sorted(shares) == seen(training(tmp_path / "alone", reader), steps=range(10))


class Seen:
    """A reader that remembers for which steps it was asked."""

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader
        self.steps: list[int] = []

    def batch(self, step: int, share: Share) -> Batch:
        self.steps.append(step)
        return self.reader.batch(step, share)


def test_a_resumed_training_goes_on_with_the_step_after_its_checkpoint(tmp_path: Path, reader: ImageReader) -> None:
    first, second = Seen(reader), Seen(reader)
    training(tmp_path, first).train()
    resumed = training(tmp_path, second)
    resumed.resume()
    resumed.training = replace(resumed.training, config=replace(resumed.training.config, images=14 * BATCH))
    resumed.train()
    assert (first.steps, second.steps) == (list(range(10)), list(range(10, 14)))


def test_images_are_mirrored_when_asked_for_and_the_same_ones_by_any_number_of_workers(tmp_path: Path) -> None:
    slope = gray(COUNT)
    slope[..., 4:, :] += 100  # brighter on the right
    write_data_set(tmp_path / "slope", slope, shard_rows=6)
    kept = {"memory_bytes": 2**20, "cache": tmp_path}

    def mirrored(run: TrainingRun) -> list[tuple[int, int, bool]]:
        found = []
        for step in range(10):
            examples, _ = run.examples(step)
            there = (examples.x_start[:, 0, 0, 0] > examples.x_start[:, 0, 0, -1]).tolist()
            found += [(step, place, left) for place, left in zip(examples.index.tolist(), there, strict=True)]
        return found

    with open_reader(tmp_path / "slope", "train", seed=0, batch_size=BATCH, shuffle_bytes=2**20, **kept) as reader:
        assert not any(there for *_, there in mirrored(training(tmp_path / "plain", reader)))
        alone = mirrored(training(tmp_path / "alone", reader, flip=True))
        assert 20 < sum(there for *_, there in alone) < 60  # of 80: 40, and 4.5 standard deviations either way
        shares = []
        for rank in range(2):
            shares += mirrored(training(tmp_path / str(rank), reader, flip=True, rank=rank, workers=2))
    assert sorted(shares) == alone
