"""What will this study take here? Its work, by what the devices do in a minute of real steps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.backend import Backend, SpmdContext
from orchestrator.display import duration
from orchestrator.experiment import Experiment, Trial
from orchestrator.files import write_whole
from orchestrator.materialize import pending
from orchestrator.planner import TRAINING, Cost, Forecast, Schedule, forecast, misses, summed
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.estimate import KINDS, Work, chosen, cost_of, work_of
from pipelines.plan import plan
from pipelines.probes import Probe, measured

FORECAST_FILE = "forecast.json"


@dataclass(frozen=True)
class Expected:
    """A study's forecast, and what it rests on."""

    forecast: Forecast
    costs: Mapping[Step, Cost]
    devices_per_cell: float
    device: str
    """What devices are counted: GPU or CPU."""
    measured: int
    reckoned: int
    """Networks that were timed, and those that follow from their compute."""
    notes: tuple[str, ...] = ()

    @property
    def device_hours(self) -> float:
        """Of all workers."""
        return self.forecast.work_seconds * self.devices_per_cell / 3600

    def to_text(self, *, price: tuple[str, float] | None = None) -> str:
        """For people; price: a currency, and what a device's hour costs."""
        plan_of, cells = self.forecast, self.forecast.cells
        lines = [f"cells              {cells.to_train} to train, {cells.to_evaluate} to evaluate, {cells.done} done"]
        by_kind = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in plan_of.seconds.items() if seconds)
        share = f"evaluation {plan_of.evaluation_share:.0%}"
        lines += [
            f"work               {duration(plan_of.work_seconds)} ({by_kind}); {share}",
            f"{self.device}-hours          {self.device_hours:.3g}",
            f"wall time          {duration(plan_of.wall_seconds)} with the cells that run at once",
            f"storage            {plan_of.bytes / 2**20:.0f} MiB",
            f"measured           {self.measured} kinds of work here; {self.reckoned} more follow from their compute",
        ]
        if price is not None:
            lines.append(f"money              {price[0]} {self.device_hours * price[1]:.2f}")
        return "\n".join([*lines, *self.notes])


def expected(
    experiment: Experiment[RunConfig], store: ArtifactStore, resources: Resources, backend: Backend, *, at_once: int
) -> Expected:
    """Measure what the missing steps consist of, as many at once as cells will run, and add it up."""
    trials = [(trial, pending(plan(trial.config).values(), store)) for trial in experiment.trials()]
    schedule: Schedule[Trial, Step] = Schedule(dict(trials))
    works = {step: work_of(step, store) for step in schedule.once()}
    wanted = list(dict.fromkeys(probe for work in works.values() for probe, units in work.units if units))
    probes = chosen(wanted)
    rates = _rates(probes, resources, backend, at_once=at_once)
    begins, cell = _starting(resources, backend, works)
    costs = {step: cost_of(work, rates, resources, begins=begins) for step, work in works.items()}
    gpu = resources.gpus_per_worker > 0
    per_worker = resources.gpus_per_worker if gpu else resources.cpus_per_worker
    unseen = any(work.kind == "features" and not work.units for work in works.values())
    notes = ("What Inception takes to see images is not in it: its weights are the user's.",) if unseen else ()
    return Expected(
        forecast(schedule, costs, at_once=at_once, cell_seconds=cell), costs, resources.workers * per_worker,
        "GPU" if gpu else "CPU", len(probes), len(wanted) - len(probes), notes,
    )  # fmt: skip


def _rates(
    probes: Sequence[Probe], resources: Resources, backend: Backend, *, at_once: int
) -> dict[Probe, float]:  # fmt: skip
    """Seconds a unit, with as many copies side by side as there will be cells: they slow each other down."""
    copies = [probe for probe in probes for _ in range(at_once)]
    pool = replace(resources, workers=at_once, min_workers=None)
    seconds = backend.map(partial(measured, resources=resources), copies, resources=pool)
    return {probe: fmean(seconds[number * at_once : (number + 1) * at_once]) for number, probe in enumerate(probes)}


def _nothing(context: SpmdContext, payload: Any) -> None:
    """A training of no steps."""


def _none(item: int) -> int:
    """Work on an item that takes none."""
    return item


def _starting(
    resources: Resources, backend: Backend, works: Mapping[Step, Work]
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Seconds until the workers of a training are there, and until those of a cell's evaluation are."""
    if not works:
        return {}, 0.0
    backend.release()
    began = time.perf_counter()
    backend.map(_none, [0], resources=resources)
    evaluation = time.perf_counter() - began
    backend.release()
    if not any(work.kind == TRAINING for work in works.values()):
        return {}, evaluation
    began = time.perf_counter()
    backend.spmd(_nothing, None, name="calibration", resources=resources)
    return {TRAINING: time.perf_counter() - began}, evaluation


def compared(expected: Expected, store: ArtifactStore, folder: Path) -> str:
    """How right it was, of the steps that are done now: as text, and kept as forecast.json."""
    done = {step: record for step in expected.costs if (record := store.record(step)) is not None}
    foreseen = summed((expected.costs[step].kind, expected.costs[step].seconds) for step in done)
    found = summed((KINDS.get(step.name, "data"), record.seconds) for step, record in done.items())
    apart = misses(foreseen, found)
    content = {"forecast": asdict(expected.forecast), "seconds": foreseen, "actual_seconds": found, "misses": apart}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FORECAST_FILE, json.dumps(content, indent=1))
    return "forecast against actual: " + ", ".join(f"{kind} {share:+.0%}" for kind, share in apart.items())
