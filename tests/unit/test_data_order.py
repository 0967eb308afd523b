"""In which order does training see the images: each once an epoch, however the work is shared or cut?"""

from itertools import combinations, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.gaussian import DiffusionConfig
from diffusion.training import TrainConfig
from diffusion.unet import UNetConfig
from orchestrator.backend import SpmdContext
from pipelines.train import EpochOrder, TrainingRun
from pipelines.trained import TrainStepConfig

COUNT, BATCH = 20, 8  # epochs end within a batch
IMAGES = torch.arange(COUNT, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # gray, by their row


def worker(rank: int, world_size: int) -> SpmdContext:
    return SpmdContext(rank=rank, world_size=world_size, local_rank=rank, device="cpu")


def training(output: Path, *, seed: int = 0) -> TrainingRun:
    model = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
        num_heads=1,
    )  # fmt: skip
    diffusion, train = DiffusionConfig(num_timesteps=20), TrainConfig(images=10 * BATCH, batch_size=BATCH)
    config = TrainStepConfig(model=model, diffusion=diffusion, train=train, seed=seed)
    return TrainingRun(config, worker(0, 1), output, IMAGES)


def seen(run: TrainingRun, *, steps: int) -> list[tuple[int, int, int]]:
    """(step, place in the batch, row of the image), as training gets them in its next steps."""
    found = []
    for step, index, x_start in islice(run._batches(), steps):
        rows = ((x_start[:, 0, 0, 0] + 1) * 127.5).round().int()
        found += [(step, place, row) for place, row in zip(index.tolist(), rows.tolist(), strict=True)]
        run.state.images_seen += BATCH
    return found


@given(seed=st.integers(0, 2**64 - 1), count=st.integers(1, 50), epochs=st.integers(1, 4), batch=st.integers(1, 60))
def test_every_epoch_holds_every_image_once(seed: int, count: int, epochs: int, batch: int) -> None:
    order = EpochOrder(seed=seed, count=count)
    rows = torch.cat([order.rows(positions) for positions in torch.arange(epochs * count).split(batch)])
    for epoch in rows.split(count):
        assert sorted(epoch.tolist()) == list(range(count))


@given(asked=st.lists(st.integers(0, 5 * COUNT), min_size=1))
def test_what_stands_at_a_position_does_not_depend_on_what_was_asked_before(asked: list[int]) -> None:
    order = EpochOrder(seed=0, count=COUNT)
    alone = [EpochOrder(seed=0, count=COUNT).rows(torch.tensor([position])).item() for position in asked]
    assert [order.rows(torch.tensor([position])).item() for position in asked] == alone


def test_epochs_and_seeds_are_shuffled_differently(tmp_path: Path) -> None:
    def epochs(seed: int) -> tuple[list[int], list[int]]:
        rows = [row for _, _, row in seen(training(tmp_path / str(seed), seed=seed), steps=5)]
        return rows[:COUNT], rows[COUNT:]

    orders = [*epochs(0), *epochs(1), list(range(COUNT))]
    assert all(first != second for first, second in combinations(orders, 2))


def test_training_takes_the_images_in_that_order(tmp_path: Path) -> None:
    order = EpochOrder(seed=0, count=COUNT).rows(torch.arange(10 * BATCH)).tolist()
    assert [row for _, _, row in seen(training(tmp_path), steps=20)] == order  # and ends after train.images


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_the_workers_shares_make_up_the_batches_of_one_worker(tmp_path: Path, workers: int) -> None:
    shares = []
    for rank in range(workers):
        run = training(tmp_path / str(rank))
        run.spmd = worker(rank, workers)  # the others are needed for gradients only
        shares += seen(run, steps=10)
    assert sorted(shares) == seen(training(tmp_path / "alone"), steps=10)


def test_a_resumed_training_goes_on_in_the_order_of_one_that_never_stopped(tmp_path: Path) -> None:
    stopped = training(tmp_path / "stopped")
    before = seen(stopped, steps=4)
    stopped.save()
    resumed = training(tmp_path / "stopped")
    resumed.resume()
    assert before + seen(resumed, steps=6) == seen(training(tmp_path / "whole"), steps=10)
