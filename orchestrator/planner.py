"""What will a study take, before it is run, and how right was that? Steps that rows share are counted once."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")
TRAINING = "training"


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    kind: str
    """training, or a kind of evaluation."""
    seconds: float
    """On the workers that it is given."""
    bytes: int = 0
    """What it leaves."""


@dataclass(frozen=True)
class Cells:
    """How much of a table is there."""

    to_train: int
    to_evaluate: int
    """Whose model is trained already, or by another cell."""
    done: int


@dataclass(frozen=True)
class Forecast:
    """Of what is still to run."""

    cells: Cells
    seconds: Mapping[str, float]
    """By kind, of all steps; of the workers of one step, not of each."""
    wall_seconds: float
    """With so many cells side by side."""
    bytes: int

    @property
    def work_seconds(self) -> float:
        """Of all kinds."""
        return sum(self.seconds.values())

    @property
    def evaluation_share(self) -> float:
        """Of the work, what is not training; 0 where there is none."""
        return 1 - self.seconds.get(TRAINING, 0.0) / self.work_seconds if self.work_seconds else 0.0


@dataclass(frozen=True)
class Schedule(Generic[T, S]):
    """Cells in the order in which they begin, each with the steps that it lacks, in theirs."""

    steps: Mapping[T, Sequence[S]]

    def wall_seconds(self, seconds: Mapping[S, float], *, at_once: int, cell_seconds: float = 0.0) -> float:
        """Until the last cell ends, when a cell takes the first place that is free, and waits for shared steps.

        cell_seconds: what each takes besides its steps. Raises ValueError for no place at all.
        """
        if at_once < 1:
            raise ValueError(f"at_once={at_once}: at least one cell must run at a time")
        free = [0.0] * at_once
        heapq.heapify(free)
        ends: dict[S, float] = {}
        last = 0.0
        for steps in self.steps.values():
            if not steps:
                continue
            now = heapq.heappop(free) + cell_seconds
            for step in steps:
                if step not in ends:
                    ends[step] = now + seconds[step]
                now = max(now, ends[step])
            heapq.heappush(free, now)
            last = max(last, now)
        return last

    def once(self) -> list[S]:
        """Every step, as often as it is run."""
        return list(dict.fromkeys(step for steps in self.steps.values() for step in steps))


def forecast(
    schedule: Schedule[T, S], costs: Mapping[S, Cost], *, at_once: int, cell_seconds: float = 0.0
) -> Forecast:  # fmt: skip
    """Of a schedule whose steps cost so much."""
    seconds: dict[str, float] = {}
    for step in schedule.once():
        seconds[costs[step].kind] = seconds.get(costs[step].kind, 0.0) + costs[step].seconds
    wall = schedule.wall_seconds({step: cost.seconds for step, cost in costs.items()}, at_once=at_once,
                                 cell_seconds=cell_seconds)  # fmt: skip
    return Forecast(_cells(schedule, costs), seconds, wall, sum(costs[step].bytes for step in schedule.once()))


def _cells(schedule: Schedule[T, S], costs: Mapping[S, Cost]) -> Cells:
    trained: set[S] = set()
    to_train = to_evaluate = done = 0
    for steps in schedule.steps.values():
        new = {step for step in steps if costs[step].kind == TRAINING} - trained
        trained |= new
        to_train += bool(new)
        to_evaluate += bool(steps) and not new
        done += not steps
    return Cells(to_train, to_evaluate, done)


def misses(forecast: Mapping[str, float], actual: Mapping[str, float]) -> dict[str, float]:
    """By kind, and of all: how far actual seconds are from those forecast, as a share of the actual."""
    both = {**{kind: (forecast.get(kind, 0.0), actual[kind]) for kind in actual if actual[kind] > 0},
            "all": (sum(forecast.values()), sum(actual.values()))}  # fmt: skip
    return {kind: expected / found - 1 for kind, (expected, found) in both.items() if found}


def summed(costs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by kind."""
    found: dict[str, float] = {}
    for kind, seconds in costs:
        found[kind] = found.get(kind, 0.0) + seconds
    return found
