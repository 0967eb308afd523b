"""Where does a step's work run? The protocol every backend follows, and the one that stays in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

from orchestrator.step import Resources

POLL_SECONDS = 0.5

OnResult = Callable[[int, Any], None]


@dataclass(frozen=True)
class SpmdContext:
    """Who this worker is, among the workers that run the same function together."""

    rank: int
    world_size: int
    local_rank: int
    device: str  # "cpu" or "cuda:0": the one device this worker may use


@dataclass(frozen=True)
class Resumable:
    """What work can do that goes on from states of its own."""

    kept: Callable[[], float]
    """How far the newest of them is."""
    pause: Callable[[], None]
    """Ask it to keep one, and to raise Preempted."""


class Backend(Protocol):
    """The two shapes of work there are: one program on many workers, and many items over a pool of workers."""

    def spmd(
        self, fn: Callable[[SpmdContext, Any], Any], payload: Any, *, name: str, resources: Resources,
        resumable: Resumable | None = None,
    ) -> Any:  # fmt: skip
        """Run fn(context, payload) on resources.workers workers that form one process group; return rank 0's value.

        A worker that dies is replaced and fn starts again on all of them, so fn resumes from its own checkpoints: as
        long as what is kept grows, workers may be lost as often as they are. Between resources.min_workers and
        resources.workers there are as many of them as there is room for. An exception that fn itself raises is not
        retried: it is raised here.
        """

    def map(
        self, fn: Callable[[Any], Any], items: Sequence[Any], *, resources: Resources, on_result: OnResult | None = None
    ) -> list[Any]:
        """Run fn on every item, on up to resources.workers workers; return the values in the items' order.

        fn must be a pure function of its item: an item whose worker died is run again elsewhere.
        """

    def release(self) -> None:
        """Give back the workers that map keeps warm from one call to the next."""


class LocalBackend:
    """Everything on this machine without Ray: programs in this process, as one worker; items too, or over processes.

    A process that dies is not replaced: the map raises.
    """

    def __init__(self, *, processes: int = 1) -> None:
        self._processes = processes
        self._stopped = get_context("spawn").Event() if processes > 1 else None

    def spmd(
        self, fn: Callable[[SpmdContext, Any], Any], payload: Any, *, name: str, resources: Resources,
        resumable: Resumable | None = None,
    ) -> Any:  # fmt: skip
        """Run fn here as the only worker. Raises ValueError for more than one worker."""
        if resources.workers != 1:
            raise ValueError(
                f"resources.workers={resources.workers}: the local backend runs exactly 1 worker; "
                f"use the Ray backend for more"
            )
        return fn(SpmdContext(rank=0, world_size=1, local_rank=0, device="cpu"), payload)

    def map(
        self, fn: Callable[[Any], Any], items: Sequence[Any], *, resources: Resources, on_result: OnResult | None = None
    ) -> list[Any]:
        """Run fn on the items, one after the other in this process, or side by side in processes of their own."""
        if self._processes == 1:
            return _collected(map(fn, items), on_result)
        # Not forked: threads of ours and of libraries would be torn.
        with ProcessPoolExecutor(
            self._processes, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(), self._stopped)
        ) as pool:
            return _collected(pool.map(fn, items), on_result)

    def stop(self) -> None:
        """End the processes of a map that runs in another thread, which raises BrokenProcessPool there."""
        if self._stopped is not None:
            self._stopped.set()

    def release(self) -> None:
        """There is nothing to give back."""


def _end_with(parent: int, stopped: Any) -> None:
    """End this process with its parent, however that ends, or when it is told to."""

    def watch() -> None:
        while not stopped.wait(POLL_SECONDS):
            if os.getppid() != parent:
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _collected(results: Iterable[Any], on_result: OnResult | None) -> list[Any]:
    kept = []
    for index, result in enumerate(results):
        kept.append(result)
        if on_result is not None:
            on_result(index, result)
    return kept
