"""What will a study cost, and how right was that? From an estimate for each step that has no record yet."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from orchestrator.prices import Instance

TRAINING = "training"
"""The kind of work that is no evaluation."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one step."""

    kind: str
    """Of work: steps of one kind are added up."""
    seconds: float
    """From its begin to its record, on its workers."""
    cpus: float
    gpus: float
    """What its workers hold together meanwhile."""
    bytes: int
    """What it leaves."""

    @property
    def device_seconds(self) -> float:
        """Of the GPUs, where it takes any, else of the CPUs."""
        return self.seconds * (self.gpus or self.cpus)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What there is to do, before anything of it is done."""

    to_train: int
    """Cells."""
    to_evaluate: int
    """Cells whose training is done."""
    done: int
    device_seconds: Mapping[str, float] = field(default_factory=dict)
    """By kind of work, in the order in which the kinds first occur."""
    wall_seconds: float = 0.0
    bytes: int = 0
    money: float | None = None
    """None where no prices were given."""

    @property
    def total_device_seconds(self) -> float:
        """Of all kinds."""
        return sum(self.device_seconds.values())

    @property
    def evaluation_share(self) -> float:
        """Of the device-seconds, what is not training's; 0 where there is nothing to do."""
        total = self.total_device_seconds
        return (total - self.device_seconds.get(TRAINING, 0.0)) / total if total else 0.0


def plan_study(
    cells: Sequence[Sequence[str]], estimates: Mapping[str, Estimate], *, concurrent: int, start_seconds: float = 0.0,
    instance: Instance | None = None,
) -> StudyPlan:  # fmt: skip
    """cells: for each cell the keys of the steps that it lacks, in their order; none where it is done.

    A step that several cells need is counted once. start_seconds pass before the first cell begins, and cost nothing.
    Raises ValueError for a step that has no estimate.
    """
    missing = sorted({key for cell in cells for key in cell} - estimates.keys())
    if missing:
        raise ValueError(f"no estimate for {', '.join(missing)}")
    steps = [estimates[key] for key in dict.fromkeys(key for cell in cells for key in cell)]
    device_seconds: dict[str, float] = {}
    for step in steps:
        device_seconds[step.kind] = device_seconds.get(step.kind, 0.0) + step.device_seconds
    waiting = [cell for cell in cells if cell]
    trains = [any(estimates[key].kind == TRAINING for key in cell) for cell in waiting]
    seconds = {key: estimate.seconds for key, estimate in estimates.items()}
    return StudyPlan(
        to_train=sum(trains),
        to_evaluate=len(waiting) - sum(trains),
        done=len(cells) - len(waiting),
        device_seconds=device_seconds,
        wall_seconds=start_seconds + wall_seconds(waiting, seconds, concurrent=concurrent) if waiting else 0.0,
        bytes=sum(step.bytes for step in steps),
        money=None if instance is None else sum(instance.cost(s.seconds, cpus=s.cpus, gpus=s.gpus) for s in steps),
    )


def wall_seconds(cells: Sequence[Sequence[str]], seconds: Mapping[str, float], *, concurrent: int) -> float:
    """Until the last cell ends, with so many at work at a time, each one's steps one after the other.

    The next cell begins when one ends. A step that another cell has begun is waited for, in its place. Raises
    ValueError where no cell may work.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: at least 1 cell must be able to work")
    waiting = iter(range(len(cells)))
    at_work = [(0.0, number, 0) for number in islice(waiting, concurrent)]
    ends: dict[str, float] = {}
    now = 0.0
    while at_work:
        now, number, position = heapq.heappop(at_work)
        if position == len(cells[number]):
            for following in islice(waiting, 1):
                heapq.heappush(at_work, (now, following, 0))
            continue
        key = cells[number][position]
        end = ends.setdefault(key, now + seconds[key])
        heapq.heappush(at_work, (max(end, now), number, position + 1))
    return now


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A forecast beside what came of it, in seconds."""

    what: str
    forecast: float
    actual: float

    @property
    def error(self) -> float | None:
        """Of the forecast, as a share of what came of it; None where nothing did."""
        return (self.forecast - self.actual) / self.actual if self.actual else None


def compare(estimates: Mapping[str, Estimate], actual_seconds: Mapping[str, float]) -> list[Compared]:
    """Device-seconds of the steps that have an actual value: by kind of work, and of all together, last."""
    finished = [(step, actual_seconds[key]) for key, step in estimates.items() if key in actual_seconds]
    by_kind = [
        Compared(
            what=kind,
            forecast=sum(step.device_seconds for step, _ in finished if step.kind == kind),
            actual=sum(seconds * (step.gpus or step.cpus) for step, seconds in finished if step.kind == kind),
        )
        for kind in dict.fromkeys(step.kind for step, _ in finished)
    ]
    together = Compared(what="all", forecast=sum(c.forecast for c in by_kind), actual=sum(c.actual for c in by_kind))
    return [*by_kind, together]
