"""How are gradients added up? Over a fixed binary tree, so that the sum's bits hang on no number of workers.

The leaves are the gradients of a batch's shards, in order. A worker holds a run of them and sums its own subtree;
workers then sum theirs, level by level. Floating-point addition commutes but does not associate: on one tree, every
element is the same sum whoever computes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

Gradients = list[Tensor]


class TreeSum:
    """The sum of shards' gradients as they come, one after the other: at most log2(shards) + 1 of them are kept."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, Gradients]] = []  # height, sum; heights fall from left to right

    def add(self, gradients: Gradients) -> None:
        """Take in the next shard's gradients, which are then this object's to change."""
        height = 0
        while self._subtrees and self._subtrees[-1][0] == height:
            _, left = self._subtrees.pop()
            torch._foreach_add_(left, gradients)
            gradients, height = left, height + 1
        self._subtrees.append((height, gradients))

    def total(self) -> Gradients:
        """The sum over a whole tree. Raises ValueError unless a power of two of shards were added."""
        if len(self._subtrees) != 1:
            raise ValueError("gradients of no whole tree: a power of two of shards are needed")
        return self._subtrees[0][1]


def sum_over_workers(gradients: Gradients) -> None:
    """Replace every worker's subtree sum by the sum over all workers, in place; workers are a power of two.

    Recursive halving, then doubling: each worker sends and receives twice the gradients' size, as a ring does.
    """
    workers = dist.get_world_size()
    if workers & (workers - 1):
        raise ValueError(f"{workers} workers: a tree needs a power of two of them")
    flat = torch.cat([_in_memory_order(gradient) for gradient in gradients])
    length = -(-len(flat) // workers) * workers
    total = _summed(functional.pad(flat, (0, length - len(flat))))
    for gradient, part in zip(gradients, total[: len(flat)].split([g.numel() for g in gradients]), strict=True):
        _in_memory_order(gradient).copy_(part)


def _summed(flat: Tensor) -> Tensor:
    """The tree's sum of all workers' vectors, whose length is a multiple of their number."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    begin, end, distance = 0, len(flat), 1
    halves: list[tuple[int, int, int]] = []
    while distance < workers:
        middle = (begin + end) // 2
        keeps_first = rank & distance == 0
        kept, given = ((begin, middle), (middle, end)) if keeps_first else ((middle, end), (begin, middle))
        theirs = _exchanged(flat[given[0] : given[1]], kept[1] - kept[0], peer=rank ^ distance)
        flat[kept[0] : kept[1]] += theirs
        halves.append((distance, *given))
        begin, end = kept
        distance *= 2
    for distance, low, high in reversed(halves):
        flat[low:high] = _exchanged(flat[begin:end], high - low, peer=rank ^ distance)
        begin, end = min(begin, low), max(end, high)
    return flat


def _exchanged(sent: Tensor, length: int, *, peer: int) -> Tensor:
    received = torch.empty(length, dtype=sent.dtype, device=sent.device)
    operations = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received


def gathered(rows: Tensor) -> Tensor:
    """All workers' (rows, examples), beside each other in the order of ranks: of the whole batch, in order."""
    if world_size() == 1:
        return rows
    everybody = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, rows.contiguous())
    return torch.cat(everybody, dim=1)


def summed(values: Tensor) -> Tensor:
    """The sum of all workers' tensors; exact where every element is one worker's, and the others' are 0."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def told_by_first(
    like: Mapping[str, Tensor], tensors: Mapping[str, Tensor] | None, meta: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The first worker's tensors, and its JSON, on every worker; None when it has none.

    like: tensors of the same names, shapes and dtypes, on the workers' devices. What others than the first give besides
    is not looked at.
    """
    device = next(iter(like.values())).device
    said = json.dumps(None if meta is None else dict(meta)).encode()
    length = torch.tensor([len(said)], device=device)
    dist.broadcast(length, 0)
    text = torch.tensor(list(said.ljust(int(length))[: int(length)]), dtype=torch.uint8, device=device)
    dist.broadcast(text, 0)
    told = json.loads(bytes(text.tolist()))
    if told is None:
        return None
    copies = {}
    for name in sorted(like):
        copies[name] = torch.empty(like[name].shape, dtype=like[name].dtype, device=device)
        if rank() == 0:
            assert tensors is not None
            copies[name].copy_(tensors[name])
        dist.broadcast(copies[name], 0)
    return copies, told


def world_size() -> int:
    """Workers that train together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker among them."""
    return dist.get_rank() if world_size() > 1 else 0


def like_parameters(parameters: Sequence[Tensor]) -> Gradients:
    """The parameters' gradients, each laid out in memory as its parameter is, and taken away from them."""
    gradients = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        same = gradient.stride() == parameter.stride()
        gradients.append(gradient if same else torch.empty_like(parameter).copy_(gradient))
        parameter.grad = None
    return gradients


def _in_memory_order(tensor: Tensor) -> Tensor:
    """A flat view, without a copy: channels-last tensors are dense, but not contiguous."""
    return tensor.as_strided((tensor.numel(),), (1,))
