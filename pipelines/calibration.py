"""How long does the work of a study take here? It is tried, for seconds, by the workers that will do it, side by side.

What cannot all be tried in the time there is, is reckoned from another network's by their FLOPs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from orchestrator.backend import Backend, SpmdContext
from orchestrator.step import Resources
from pipelines.timed import Timed

SHORTEST_SECONDS = 0.25
"""For which a thing is tried, at least: a shorter look at a busy machine says little."""
STARTS_TRIED_FROM = 15.0
"""Seconds of calibration from which on it is also tried how long a training's workers take to start."""
STARTS_AS_LONG = 1.75
"""As a worker of a pool: a training's workers and what leads them, where that is not tried."""


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    once: float
    """What comes before: building networks, first calls."""
    each: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found."""

    timings: Mapping[Timed, Timing]
    tried: frozenset[Timed]
    """The others are reckoned from these."""
    worker_start_seconds: float
    """Until a worker of a pool is there."""
    training_start_seconds: float
    """Until the workers of a training are there, and after it, until they are gone."""
    assumed: tuple[str, ...]
    """What was not tried, for people."""
    side_by_side: int
    seconds: float
    """That it took."""


def calibrate(
    work: Mapping[Timed, float], *, backend: Backend, resources: Resources, side_by_side: int, seconds: float,
    worker_start_seconds: float | None,
) -> Calibration:  # fmt: skip
    """Try what is repeated so often, for about so many seconds in all, starts of workers not counted.

    side_by_side: workers that are kept busy meanwhile, as they will be. worker_start_seconds is what is assumed of a
    backend that starts none; None: that is seen.
    """
    began = time.monotonic()
    chosen = _chosen(work, seconds)
    share = seconds / max(len(chosen), 1)
    try_all = partial(_try_all, tuple(chosen), resources, max(share, SHORTEST_SECONDS))
    pool = replace(resources, workers=side_by_side, min_workers=None)
    found = backend.map(try_all, range(side_by_side), resources=pool)
    backend.release()
    took = time.monotonic() - began
    tried = {
        timed: Timing(fmean(run[0][place].once for run in found), fmean(run[0][place].each for run in found))
        for place, timed in enumerate(chosen)
    }
    assumed: list[str] = []
    worker_start = worker_start_seconds
    if worker_start is None:
        worker_start = max(took - max(run[1] for run in found), 0.0)
    else:
        assumed.append(f"a worker takes {worker_start:.0f} s to start")
    if worker_start_seconds is None and seconds >= STARTS_TRIED_FROM:
        training_start = _start_of_training(backend, resources)
    else:
        training_start = STARTS_AS_LONG * worker_start
        assumed.append(f"a training's workers take {training_start:.0f} s to start")
    return Calibration(
        timings={timed: tried.get(timed) or _reckoned(timed, tried) for timed in work},
        tried=frozenset(tried),
        worker_start_seconds=worker_start,
        training_start_seconds=training_start,
        assumed=tuple(assumed),
        side_by_side=side_by_side,
        seconds=time.monotonic() - began,
    )


def _chosen(work: Mapping[Timed, float], seconds: float) -> list[Timed]:
    """One of each group, and then as many as there is time for; first those in which there is most to do."""
    by_size = sorted(work, key=lambda timed: -timed.flops * work[timed])
    first = list({timed.group: timed for timed in reversed(by_size)}.values())
    others = [timed for timed in by_size if timed not in first]
    room = max(int(seconds / SHORTEST_SECONDS) - len(first), 0)
    return [*first, *others[:room]]


def _try_all(chosen: Sequence[Timed], resources: Resources, seconds: float, number: int) -> tuple[list[Timing], float]:
    """On a worker: each timing, and the seconds that all took together."""
    began, threads = time.monotonic(), torch.get_num_threads()
    try:
        return [_try(timed, resources, seconds) for timed in chosen], time.monotonic() - began
    finally:
        torch.set_num_threads(threads)


def _try(timed: Timed, resources: Resources, seconds: float) -> Timing:
    began = time.monotonic()
    repeat = timed.prepare(resources)
    prepared = time.monotonic()
    first = repeat()
    _wait_for_device()
    ready = now = time.monotonic()
    if ready - prepared >= seconds:
        return Timing(prepared - began, (ready - prepared) / first)
    done = 0.0
    while now - prepared < seconds or not done:
        done += repeat()
        _wait_for_device()
        now = time.monotonic()
    each = (now - ready) / done
    return Timing(max(ready - began - first * each, 0.0), each)


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _reckoned(timed: Timed, tried: Mapping[Timed, Timing]) -> Timing:
    """From the one of its group whose FLOPs are nearest."""
    near = min(
        (other for other in tried if other.group == timed.group),
        key=lambda other: max(other.flops, timed.flops) / min(other.flops, timed.flops),
    )
    return Timing(tried[near].once, tried[near].each * timed.flops / near.flops)


def _start_of_training(backend: Backend, resources: Resources) -> float:
    began = time.monotonic()
    backend.spmd(_nothing, None, name="calibration", resources=resources)
    return time.monotonic() - began


def _nothing(spmd: SpmdContext, payload: None) -> None:
    """The workers are there: that is all."""
