"""What will a study cost, by what its work takes here? Its steps, what they repeat, how long that takes, all told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch

from orchestrator.backend import Backend, LocalBackend
from orchestrator.display import duration
from orchestrator.experiment import Trial
from orchestrator.planner import Estimate, StudyPlan, plan_study
from orchestrator.prices import Price
from orchestrator.run import prepare_sources
from orchestrator.step import Resources, Step, walk
from orchestrator.store import ArtifactStore
from pipelines.calibration import Calibration, calibrate
from pipelines.timed import Timed
from pipelines.work import Sources, Work, work_of

SPEED = {"CPU": 40e9, "GPU": 20e12}
"""FLOP/s of a device, by which it is guessed whether a study takes minutes or days: nothing else rests on it."""
START_GUESS = 15.0
"""Seconds that the starts of a cell's workers take by the same guess."""
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.05, 2.0, 45.0
"""Of the guessed time, so much goes into the calibration, and at least and at most so many seconds."""
WORKER_START_SECONDS = 5.0
"""Where none is started, and Ray was not either: as on two CPU cores that have nothing else to do."""
START_SHARE = 0.6
"""Of what Ray takes to start on a machine, a worker then takes so much: its processes start in the same way."""
SMALL_SECONDS = 90.0
"""By that guess: of a shorter study the work is tried in this process, for which no worker needs to start."""

Missing = Mapping[Trial, Sequence[Step]]
"""The steps that each cell lacks, in their order."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The plan of a study, and what it rests on."""

    plan: StudyPlan
    estimates: Mapping[str, Estimate]
    """By the key of a step."""
    calibration: Calibration
    steps: Mapping[str, Step]
    """That have inputs, by their keys."""
    work: Mapping[Timed, float]
    """What is repeated, and how often, in all cells."""
    unknown: tuple[str, ...]
    """Names of steps of which nothing is known here: they are not in the plan."""
    concurrent: int
    resources: Resources
    price: Price | None

    def to_text(self) -> str:
        """The plan as a table, and what was measured."""
        return "\n".join([*_rows(self), *_basis(self)])


@contextmanager
def sources_of(missing: Missing, store: ArtifactStore, resources: Resources) -> Iterator[Sources]:
    """Where the artifacts of steps without inputs are: in the store, or prepared for the time of the block.

    Raises PreflightError for bad data.
    """
    steps = [step for step in walk(step for steps in missing.values() for step in steps) if not step.inputs]
    absent = [step for step in steps if not store.is_done(step)]
    with TemporaryDirectory() as folder:
        elsewhere = ArtifactStore(folder)
        if absent:
            prepare_sources(absent, elsewhere, resources)
        yield lambda step: (elsewhere if step in absent else store).path(step)


def works_of(missing: Missing, store: ArtifactStore, sources: Sources, resources: Resources) -> dict[str, Work | None]:
    """What every step does that has inputs, by its key; None for those of which nothing is known."""
    steps = {step.key: step for steps in missing.values() for step in steps if step.inputs}
    return {key: work_of(step, store, sources, resources) for key, step in steps.items()}


def repetitions(works: Mapping[str, Work | None]) -> dict[Timed, float]:
    """What all steps repeat, and how often."""
    repeated: dict[Timed, float] = {}
    for work in works.values():
        for timed, count in work.parts if work is not None else ():
            repeated[timed] = repeated.get(timed, 0.0) + count
    return repeated


def guessed_seconds(
    missing: Missing, works: Mapping[str, Work | None], resources: Resources, *, concurrent: int
) -> float:
    """Of the whole study, roughly."""
    flops = sum(timed.flops * count for timed, count in repetitions(works).items())
    speed = SPEED[resources.device] * resources.devices / resources.workers
    cells = sum(1 for steps in missing.values() if steps)
    return (flops / speed + cells * START_GUESS) / min(concurrent, max(cells, 1))


def is_small(seconds: float) -> bool:
    """Whether a study is tried in this process."""
    return seconds < SMALL_SECONDS


def forecast(
    missing: Missing, works: Mapping[str, Work | None], *, backend: Backend | None, concurrent: int,
    resources: Resources, price: Price | None, start_seconds: float | None,
) -> Forecast:  # fmt: skip
    """Try the work on the backend, as many cells side by side as will be, or, without one, in this process.

    start_seconds: what Ray took to start; None where it was there already, or is not there.
    """
    repeated = repetitions(works)
    cells = sum(1 for steps in missing.values() if steps)
    at_once = min(concurrent, cells)
    guess = guessed_seconds(missing, works, resources, concurrent=concurrent)
    calibration = calibrate(
        repeated, backend=backend or LocalBackend(), resources=resources,
        side_by_side=1 if backend is None else at_once * resources.workers,
        seconds=min(max(SHARE * guess, LEAST_SECONDS), MOST_SECONDS),
        worker_start_seconds=None if backend is not None else _assumed_start(start_seconds),
    )  # fmt: skip
    estimates = _estimates(missing, works, calibration, resources)
    plan = plan_study(
        [[step.key for step in steps if step.key in estimates] for steps in missing.values()],
        estimates,
        concurrent=concurrent,
        start_seconds=calibration.worker_start_seconds,
        instance=None if price is None else price.instance,
    )
    by_key = {step.key: step for steps in missing.values() for step in steps if step.inputs}
    unknown = tuple(sorted({by_key[key].name for key, work in works.items() if work is None}))
    return Forecast(
        plan=plan, estimates=estimates, calibration=calibration, steps=by_key, work=repeated, unknown=unknown,
        concurrent=concurrent, resources=resources, price=price,
    )  # fmt: skip


def _assumed_start(start_seconds: float | None) -> float:
    return WORKER_START_SECONDS if start_seconds is None else START_SHARE * start_seconds


def _estimates(
    missing: Missing, works: Mapping[str, Work | None], calibration: Calibration, resources: Resources
) -> dict[str, Estimate]:
    """Of each step, with the start of workers at the first that needs some, as the cell that comes first has it."""
    found: dict[str, Estimate] = {}
    for steps in missing.values():
        has_pool = False
        for step in steps:
            work = works.get(step.key)
            if work is None:
                continue
            start = calibration.training_start_seconds if work.is_training else 0.0
            if not work.is_training and work.uses_pool and not has_pool:
                start = calibration.worker_start_seconds
            has_pool = not work.is_training and (has_pool or work.uses_pool)
            found.setdefault(step.key, _estimate(work, calibration, start, resources))
    return found


def _estimate(work: Work, calibration: Calibration, start: float, resources: Resources) -> Estimate:
    timings = [(calibration.timings[timed], count) for timed, count in work.parts]
    return Estimate(
        kind=work.kind,
        seconds=start + sum(timing.once + timing.each * count for timing, count in timings),
        cpus=work.workers * resources.cpus_per_worker,
        gpus=work.workers * resources.gpus_per_worker,
        bytes=work.bytes,
    )


def room_here(resources: Resources) -> int:
    """How many cells this machine has room for at a time, at least one."""
    workers = (os.cpu_count() or 1) // resources.cpus_per_worker
    if resources.gpus_per_worker:
        workers = min(workers, int(torch.cuda.device_count() / resources.gpus_per_worker))
    return max(workers // resources.workers, 1)


def _rows(found: Forecast) -> list[str]:
    plan, device = found.plan, found.resources.device
    lines = [
        f"  {'cells':<22} {plan.to_train} to train, {plan.to_evaluate} to evaluate only, {plan.done} done; "
        f"{found.concurrent} at a time"
    ]
    for kind, seconds in plan.device_seconds.items():
        lines.append(f"  {kind:<22} {seconds / 3600:9.3f} {device}-hours")
    lines.append(
        f"  {'all':<22} {plan.total_device_seconds / 3600:9.3f} {device}-hours, "
        f"{plan.evaluation_share:.0%} of them evaluation"
    )
    lines += [f"  {'time':<22} {duration(plan.wall_seconds):>9}", f"  {'storage':<22} {_size(plan.bytes):>9}"]
    if plan.money is not None and found.price is not None:
        lines.append(
            f"  {'cost':<22} {found.price.money(plan.money):>9}, of {found.price.name}, while its devices work"
        )
    return lines


def _basis(found: Forecast) -> list[str]:
    tried, rest = found.calibration.tried, [timed for timed in found.work if timed not in found.calibration.tried]
    side = found.calibration.side_by_side
    where = f"by {side} worker{'s' if side > 1 else ''} side by side" if side > 1 else "by one worker alone"
    lines = [f"  measured {where}, in {found.calibration.seconds:.0f} s: {_groups(tried)}"]
    if rest:
        lines.append(f"  extrapolated from these by FLOPs: {_groups(rest)}")
    if found.calibration.assumed:
        lines.append(f"  assumed: {'; '.join(found.calibration.assumed)}")
    if found.unknown:
        lines.append(f"  not in the plan, since nothing is known of them: {', '.join(found.unknown)}")
    return lines


def _groups(timed: Sequence[Timed] | frozenset[Timed]) -> str:
    names = sorted(one.group for one in timed)
    return ", ".join(
        f"{name} ({names.count(name)})" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
