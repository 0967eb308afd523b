"""The generator against the known answers its authors publish with Random123."""

from __future__ import annotations

import pytest
import torch

from diffusion.randomness import TRAIN_NOISE, philox, random_uint32

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox((c0, c1, c2, c3), key=key)) == expected


def test_a_draw_is_the_generator_at_block_index_step_and_stream_under_the_seed() -> None:
    words = random_uint32(seed=(7 << 32) + 5, stream=TRAIN_NOISE, step=2, index=torch.tensor([3]), count=8)
    for block in range(2):
        counter = torch.tensor([[block], [3], [2], [TRAIN_NOISE]])
        assert [int(word) for word in philox(tuple(counter), key=(5, 7))] == words[0, 4 * block :][:4].tolist()
