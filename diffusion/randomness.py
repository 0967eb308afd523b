"""Where does randomness come from? A function of (seed, stream, step, index): Philox-4x32-10 (Salmon et al. 2011).

Nothing is saved, nothing depends on how examples are batched or on which worker draws them, and every device gives
the same bits, because the generator is integer arithmetic. Normals add float64 log, cos and sin, then a cast.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Streams: draws for different purposes never share a counter. A new one goes to the end: the others keep their draws.
TIMESTEP, TRAIN_NOISE, SAMPLE_INIT, SAMPLE_NOISE, NLL_DRAWN_NOISE, NLL_TIMESTEP, PILOT, DATA_ORDER, NLL_NOISE = range(9)
SHARD_ORDER, AUGMENTATION, HELD_OUT_TIMESTEP, HELD_OUT_NOISE, SAMPLE_LABEL = range(9, 14)
VARIANCE_NOISE, GRADIENT_IMAGE, GRADIENT_TIMESTEP, GRADIENT_NOISE = range(14, 18)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def random_uint32(
    *, seed: int, stream: int, step: int | Int64[Tensor, "n"], index: Int64[Tensor, "n"], count: int
) -> Int64[Tensor, "n count"]:
    """`count` draws in 0..2^32-1 for every index, on the index's device; step may differ from index to index.

    Raises ValueError for a seed outside 0..2^64-1, or a stream or a whole step outside 0..2^32-1. Tensors count modulo
    2^32, unchecked: looking at them would make the host wait for a GPU.
    """
    _check("seed", seed, 64)
    _check("stream", stream, 32)
    if isinstance(step, int):
        _check("step", step, 32)
        step = torch.full_like(index, step)
    blocks = -(-count // 4)
    counter = torch.broadcast_tensors(
        torch.arange(blocks, device=index.device),
        (index & _MASK)[:, None],
        (step & _MASK)[:, None],
        torch.full_like(index, stream)[:, None],
    )
    words = philox(counter, key=(seed & _MASK, seed >> 32))
    return torch.stack(words, dim=-1).reshape(len(index), 4 * blocks)[:, :count]


def uniform(*, seed: int, stream: int, step: int, index: Int64[Tensor, "n"], count: int) -> Float[Tensor, "n count"]:
    """float64 in [0, 1), with 53 random bits."""
    words = random_uint32(seed=seed, stream=stream, step=step, index=index, count=2 * count)
    high, low = words[:, 0::2], words[:, 1::2]
    return ((high >> 5) * 2.0**26 + (low >> 6)).to(torch.float64) * 2.0**-53


def normal(
    *, seed: int, stream: int, step: int | Int64[Tensor, "n"], index: Int64[Tensor, "n"], shape: tuple[int, ...]
) -> Float[Tensor, "n *shape"]:
    """Standard normals as float32: one tensor of the given shape for every index (Box-Muller in float64)."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    words = random_uint32(seed=seed, stream=stream, step=step, index=index, count=2 * pairs).to(torch.float64)
    # (word + 1/2) / 2^32 is never 0, so its logarithm is finite.
    radius = torch.sqrt(-2.0 * torch.log((words[:, :pairs] + 0.5) * 2.0**-32))
    angle = (2.0 * math.pi * 2.0**-32) * words[:, pairs:]
    values = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]
    return values.to(torch.float32).reshape(len(index), *shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], *, key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 of counters given as four int64 tensors of 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 64-bit product: int64 wraps, which keeps them all; a mask drops the sign >> spreads."""
    product = word * multiplier
    return (product >> 32) & _MASK, product & _MASK


def _check(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name}={value}: must be between 0 and 2^{bits}-1")
