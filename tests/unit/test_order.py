"""The order of training: each image once an epoch however they lie in shards, and never more than a window of them."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order import ShuffledOrder
from pipelines.shards import Manifest

seeds = st.integers(0, 2**64 - 1)
orders = st.builds(
    ShuffledOrder,
    seed=seeds,
    count=st.integers(1, 60),
    shard_rows=st.integers(1, 20),
    window_shards=st.integers(1, 12),
)


def manifest(*rows: int, shape: tuple[int, int, int] = (2, 2, 3)) -> Manifest:
    shards = tuple({"split": "train", "file": f"{number}", "rows": n, "sha256": ""} for number, n in enumerate(rows))
    return Manifest(
        source="", shape=shape, classes=(), images={"train": sum(rows)}, images_per_class={}, mean=[], std=[],
        shards=shards, left_out=0, made_with={},
    )  # fmt: skip


@given(order=orders, epochs=st.integers(1, 4), batch=st.integers(1, 70))
def test_every_epoch_holds_every_image_once(order: ShuffledOrder, epochs: int, batch: int) -> None:
    rows = torch.cat([order.rows(positions) for positions in torch.arange(epochs * order.count).split(batch)])
    for epoch in rows.split(order.count):
        assert sorted(epoch.tolist()) == list(range(order.count))


@given(order=orders, asked=st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_what_stands_at_a_position_does_not_depend_on_what_was_asked_beside_it(
    order: ShuffledOrder, asked: list[int]
) -> None:
    alone = [order.rows(position) for position in torch.tensor(asked).split(1)]
    assert torch.equal(order.rows(torch.tensor(asked)), torch.cat(alone))


@given(order=orders, epochs=st.integers(1, 3))
def test_windows_follow_each_other_and_hold_whole_shards(order: ShuffledOrder, epochs: int) -> None:
    positions = torch.arange(epochs * order.count)
    windows, rows = order.windows(positions), order.rows(positions)
    assert windows.unique_consecutive().tolist() == list(range(epochs * order.windows_per_epoch))
    for window in range(epochs * order.windows_per_epoch):
        shards = order.shards_of(window)
        assert 1 <= len(shards) <= order.window_shards
        there = sorted(rows[windows == window].tolist())
        assert there == [row for row in range(order.count) if row // order.shard_rows in shards]


@given(seed=seeds, count=st.integers(1, 60), shard_rows=st.integers(1, 20))
def test_a_data_set_that_fits_one_window_is_shuffled_as_if_there_were_no_shards(
    seed: int, count: int, shard_rows: int
) -> None:
    positions = torch.arange(2 * count)
    whole = ShuffledOrder(seed=seed, count=count, shard_rows=count, window_shards=1)
    cut = ShuffledOrder(seed=seed, count=count, shard_rows=shard_rows, window_shards=count)
    assert torch.equal(whole.rows(positions), cut.rows(positions))


def test_epochs_seeds_and_windows_are_shuffled_differently() -> None:
    def epochs(seed: int, window_shards: int) -> list[list[int]]:
        order = ShuffledOrder(seed=seed, count=40, shard_rows=4, window_shards=window_shards)
        return [order.rows(positions).tolist() for positions in torch.arange(3 * order.count).split(order.count)]

    found = [*epochs(0, 2), *epochs(1, 2), *epochs(0, 3), *epochs(0, 10), list(range(40))]
    assert all(first != second for first, second in combinations(found, 2))


def test_the_order_of_a_seed_stays_what_it_was() -> None:
    order = ShuffledOrder(seed=5, count=11, shard_rows=2, window_shards=2)
    assert order.rows(torch.arange(22)).tolist() == [
        6, 7, 2, 3, 10, 8, 9, 0, 1, 5, 4,
        10, 0, 1, 7, 4, 6, 5, 2, 8, 3, 9,
    ]  # fmt: skip


def test_a_position_far_into_a_large_data_set_costs_no_list_of_its_images() -> None:
    order = ShuffledOrder(seed=0, count=2**32 - 5, shard_rows=2**14, window_shards=16)
    positions = 7 * order.count + torch.arange(order.count - 2, order.count + 2)  # across epochs
    rows = order.rows(positions)
    shards = [order.shards_of(int(window)) for window in order.windows(positions)]
    assert all(int(row) // 2**14 in held for row, held in zip(rows, shards, strict=True))
    small = ShuffledOrder(seed=0, count=60, shard_rows=7, window_shards=2)
    assert len(small.rows(torch.tensor([0, 2**32]))) == 2  # nor one of the epochs between


def test_a_window_is_as_many_shards_as_the_mebibytes_hold_and_at_least_one() -> None:
    layout = manifest(10, 10, 10, 3)  # 12 bytes an image
    windows = [ShuffledOrder.of(layout, "train", seed=0, shuffle_bytes=size).window_shards for size in (1, 120, 359)]
    assert windows == [1, 1, 2]


@pytest.mark.parametrize("rows", [(10, 9, 10), (9, 10), (10, 0)])
def test_shards_of_unequal_length_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shards of train hold .* all must hold the same number"):
        ShuffledOrder.of(manifest(*rows), "train", seed=0, shuffle_bytes=1)
