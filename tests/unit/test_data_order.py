"""In which order does training see the images: each once an epoch, however the work is shared or cut?"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from diffusion.gaussian import DiffusionConfig
from diffusion.train_config import TrainConfig
from diffusion.unet import UNetConfig
from orchestrator.backend import SpmdContext
from pipelines.order import ShuffledOrder
from pipelines.readers import ImageReader, open_reader
from pipelines.train import TrainingRun
from pipelines.trained import TrainStepConfig
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


def training(output: Path, reader: ImageReader, *, flip: bool = False) -> TrainingRun:
    model = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
        num_heads=1,
    )  # fmt: skip
    diffusion = DiffusionConfig(num_timesteps=20)
    train = TrainConfig(images=10 * BATCH, batch_size=BATCH, flip=flip)
    config = TrainStepConfig(model=model, diffusion=diffusion, train=train, seed=0)
    return TrainingRun(config, worker(0, 1), output, reader)


def seen(run: TrainingRun, *, steps: int) -> list[tuple[int, int, int]]:
    """(step, place in the batch, row of the image), as training gets them in its next steps."""
    found = []
    for examples in islice(run._batches(), steps):
        rows = ((examples.x_start[:, 0, 0, 0] + 1) * 127.5).round().int()
        places = zip(examples.index.tolist(), rows.tolist(), strict=True)
        found += [(examples.step, place, row) for place, row in places]
        run.state.images_seen += BATCH
    return found


def test_training_takes_the_images_in_the_order_of_its_seed(tmp_path: Path, reader: ImageReader) -> None:
    order = ShuffledOrder(seed=0, count=COUNT, shard_rows=COUNT, window_shards=1).rows(torch.arange(10 * BATCH))
    found = [row for _, _, row in seen(training(tmp_path, reader), steps=20)]  # and ends after train.images
    assert found == order.tolist()


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_workers_shares_make_up_the_batches_of_one_worker(
    tmp_path: Path, reader: ImageReader, workers: int
) -> None:
    shares = []
    for rank in range(workers):
        run = training(tmp_path / str(rank), reader)
        run.spmd = worker(rank, workers)  # the others are needed for gradients only
        shares += seen(run, steps=10)
    assert sorted(shares) == seen(training(tmp_path / "alone", reader), steps=10)


def test_a_resumed_training_goes_on_in_the_order_of_one_that_never_stopped(tmp_path: Path, reader: ImageReader) -> None:
    stopped = training(tmp_path / "stopped", reader)
    before = seen(stopped, steps=4)
    stopped.save()
    resumed = training(tmp_path / "stopped", reader)
    resumed.resume()
    assert before + seen(resumed, steps=6) == seen(training(tmp_path / "whole", reader), steps=10)


def test_images_are_mirrored_when_asked_for_and_the_same_ones_by_any_number_of_workers(tmp_path: Path) -> None:
    slope = gray(COUNT)
    slope[..., 4:, :] += 100  # brighter on the right
    write_data_set(tmp_path / "slope", slope, shard_rows=6)
    kept = {"memory_bytes": 2**20, "cache": tmp_path}

    def mirrored(run: TrainingRun) -> list[tuple[int, int, bool]]:
        found = []
        for examples in islice(run._batches(), 10):
            brighter_left = examples.x_start[:, 0, 0, 0] > examples.x_start[:, 0, 0, -1]
            places = zip(examples.index.tolist(), brighter_left.tolist(), strict=True)
            found += [(examples.step, place, there) for place, there in places]
            run.state.images_seen += BATCH
        return found

    with open_reader(tmp_path / "slope", "train", seed=0, batch_size=BATCH, shuffle_bytes=2**20, **kept) as reader:
        assert not any(there for *_, there in mirrored(training(tmp_path / "plain", reader)))
        alone = mirrored(training(tmp_path / "alone", reader, flip=True))
        assert 20 < sum(there for *_, there in alone) < 60  # of 80: 40, and 4.5 standard deviations either way
        shares = []
        for rank in range(2):
            run = training(tmp_path / str(rank), reader, flip=True)
            run.spmd = worker(rank, 2)
            shares += mirrored(run)
    assert sorted(shares) == alone
