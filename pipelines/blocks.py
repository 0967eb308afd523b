"""How is work on many images shared out? In blocks of indices over a pool of workers, with progress as they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.step import StepContext

R = TypeVar("R")
Block = tuple[int, int]
"""Indices first..stop-1 of images."""


def map_blocks(
    ctx: StepContext, work: Callable[[Block], R], count: int, *, block_size: int, pass_number: int = 1, passes: int = 1
) -> list[R]:
    """work(block) for all blocks of 0..count-1, on the step's workers; the results, in the blocks' order.

    Progress counts this as one of so many passes over all of them.
    """
    blocks = [(first, min(first + block_size, count)) for first in range(0, count, block_size)]
    done = count * (pass_number - 1)

    def show(index: int, _: object) -> None:
        nonlocal done
        done += blocks[index][1] - blocks[index][0]
        ctx.progress(done=done, total=count * passes, unit="img")

    ctx.progress(done=done, total=count * passes, unit="img")
    return ctx.backend.map(work, blocks, resources=ctx.resources, on_result=show)
