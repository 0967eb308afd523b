"""A shuffle that is asked place by place: everything once, as random as it should be, the same for ever."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from diffusion.permutation import KeyedPermutation
from diffusion.randomness import DATA_ORDER, SHARD_ORDER

IMAGENET = 1_281_167
seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**32 - 1)


def shuffle(n: int, *, seed: int = 0, epoch: int = 0) -> KeyedPermutation:
    return KeyedPermutation(n, seed=seed, stream=DATA_ORDER, step=epoch)


def shuffled(n: int, *, seed: int = 0, epoch: int = 0) -> Tensor:
    return shuffle(n, seed=seed, epoch=epoch).at(torch.arange(n))


def test_everything_stands_somewhere_once() -> None:
    for n in (*range(1, 301), 4095, 4096, 4097, 65_537, IMAGENET):
        assert torch.equal(shuffled(n, seed=n, epoch=n).sort().values, torch.arange(n))


@given(seed=seeds, epoch=epochs, n=st.integers(1, 2**20), place=st.integers(0, 2**20))
def test_where_a_value_stands_is_where_it_is_found(seed: int, epoch: int, n: int, place: int) -> None:
    permutation, positions = shuffle(n, seed=seed, epoch=epoch), torch.tensor([place % n, n - 1, 0])
    assert torch.equal(permutation.position_of(permutation.at(positions)), positions)
    assert torch.equal(permutation.at(permutation.position_of(positions)), positions)


@given(seed=seeds, epoch=epochs, n=st.integers(1, 1000), asked=st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_a_place_holds_the_same_whatever_is_asked_beside_it(seed: int, epoch: int, n: int, asked: list[int]) -> None:
    permutation, positions = shuffle(n, seed=seed, epoch=epoch), torch.tensor(asked) % n
    alone = [permutation.at(position) for position in positions.split(1)]
    assert torch.equal(permutation.at(positions), torch.cat(alone))


def test_every_part_of_the_key_changes_the_order() -> None:
    orders = [
        shuffled(1000),
        shuffled(1000, epoch=1),
        shuffled(1000, seed=1),
        shuffled(1000, seed=1 << 63),
        KeyedPermutation(1000, seed=0, stream=SHARD_ORDER, step=0).at(torch.arange(1000)),
    ]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).sum() < 10  # chance leaves one in place, give or take one


@pytest.mark.parametrize("n", [2, 10, 100])
def test_over_many_epochs_every_value_comes_first_equally_often(n: int) -> None:
    first = torch.cat([shuffle(n, epoch=epoch).at(torch.tensor([0])) for epoch in range(2000)])
    assert stats.chisquare(first.bincount(minlength=n).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n", [3, 4])
def test_all_orders_of_few_are_equally_likely(n: int) -> None:
    orders = torch.stack([shuffled(n, epoch=epoch) for epoch in range(2400)])
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == math.factorial(n)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n", [10_000, IMAGENET])
def test_values_are_moved_as_far_as_chance_would_and_neighbours_are_strangers(n: int) -> None:
    order, places = shuffled(n, seed=3).double(), torch.arange(n).double()
    # |X - Y| of two uniforms has mean n / 3 and standard deviation n / sqrt(18).
    assert abs((order - places).abs().mean() / n - 1 / 3) < 5 / math.sqrt(18 * n)
    for lag in (1, 2, 3, 64, 128):
        pairs = torch.stack([order[:-lag], order[lag:]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / math.sqrt(n)


def test_the_order_stays_what_it_was_when_the_first_models_were_trained() -> None:
    assert shuffled(10).tolist() == [2, 6, 1, 8, 3, 4, 5, 9, 7, 0]
    assert shuffled(10, seed=1, epoch=2).tolist() == [8, 1, 6, 2, 7, 9, 4, 5, 3, 0]
    big = shuffle(IMAGENET, seed=2**40 + 7, epoch=89)
    assert big.at(torch.tensor([0, 1, 1000, IMAGENET - 1])).tolist() == [819349, 870176, 861006, 525232]


@pytest.mark.parametrize("n", [0, -1, 2**40 + 1])
def test_a_count_that_cannot_be_shuffled_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}: must be between 1 and"):
        shuffle(n)
