"""How are steps run by hand, outside a study? With all they need, in this process or on Ray."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from orchestrator.backend import Backend, LocalBackend
from orchestrator.config import override, parse_settings
from orchestrator.display import StepDisplay
from orchestrator.errors import Interrupted
from orchestrator.materialize import materialize, pending
from orchestrator.progress import StepProgress
from orchestrator.run import prepare_sources
from orchestrator.signals import Background
from orchestrator.step import Step, walk
from orchestrator.stopping import stop_all
from orchestrator.store import ArtifactStore
from pipelines.cli import HERE, Overrides, Places, check_workers, choose
from pipelines.named_data import data_changes
from pipelines.on_ray import on_ray
from pipelines.plan import check, plan
from pipelines.presets import PRESETS

WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Family:
    """Set-ups of one kind, and what they have in common."""

    presets: dict[str, Callable[[], Any]]
    plan: Callable[[Any], Mapping[str, Step]]
    check: Callable[..., None]
    """check(config, {"dataset": path}, data_mib=...) raises ValueError when it asks for what the data has not."""
    network: str = "model"
    """The setting that holds the U-Net, whose image size follows the data."""


DIFFUSION = Family(PRESETS, plan, check)


def command(role: str, what: str, family: Family = DIFFUSION) -> Callable[..., int]:
    """The command line that materializes one role of a preset's plan, and prints where it lies and what it measured."""

    def main(
        preset: Annotated[str, tyro.conf.Positional] = "tiny",
        /,
        places: Annotated[Places, tyro.conf.arg(name="")] = HERE,
        set: Overrides = (),
        data: str | None = None,
        ray: bool = False,
    ) -> int:
        base = choose("preset", preset, family.presets)()
        config = override(
            base, {**data_changes(data, places.artifact_store(), network=family.network), **parse_settings(base, set)}
        )
        check_workers(config.train, places)
        check_ray(places, ray=ray)
        store, steps = places.artifact_store(), family.plan(config)
        places.check_checkpoints()
        prepare_sources(list(steps.values()), store, places.resources())
        family.check(config, {"dataset": store.path(steps["dataset"])}, data_mib=places.data_mib)
        run_steps([steps[role]], store, places, ray=ray)
        said = store.metrics(steps[role])
        artifact = str(store.path(steps[role]))
        print(json.dumps({"artifact": artifact, "metrics": said.metrics, "notes": said.notes}, indent=1))
        return 0

    main.__doc__ = f"""{what}

    Args:
        preset: A set-up: {", ".join(family.presets)}.
        places: Where artifacts are kept and how many workers there are.
        set: Settings changed in the preset.
        data: A prepared data set by name, in place of the preset's; python pipelines/data.py list shows them.
        ray: Run on a Ray that is started for this command, instead of in this process.
    """
    return main


def check_ray(places: Places, *, ray: bool) -> None:
    """Raises ValueError for workers that only Ray could give, where it was not asked for."""
    if not ray and places.address is None and (places.workers > 1 or places.gpus_per_worker):
        raise ValueError(
            f"--workers {places.workers}, --gpus-per-worker {places.gpus_per_worker:g}: without Ray there is one "
            f"worker on CPUs; add --ray, or name a cluster with --address"
        )


def run_steps(steps: Sequence[Step], store: ArtifactStore, places: Places, *, ray: bool) -> None:
    """Run what has no record yet, of these steps and all they need, and show how far it is."""
    resources, began_by = places.resources(), uuid.uuid4().hex
    use_ray = ray or places.address is not None
    with on_ray(store, address=places.address, resources=resources) if use_ray else _here() as backend:
        work = Background(lambda: materialize(steps, store, backend=backend, resources=resources, began_by=began_by))
        try:
            with StepDisplay() as display:
                while not work.wait(WAIT_SECONDS):  # Ray would take over a main thread's signals
                    _show(display, steps, store)
        except Interrupted:
            stop_all(map(store.path, walk(steps)), began_by=began_by, seconds=places.grace_seconds)
            raise
        work.value()


def _show(display: StepDisplay, steps: Sequence[Step], store: ArtifactStore) -> None:
    """How far the first step is that has no record."""
    current = next(iter(pending(steps, store)), None)
    if current is not None:
        display.show(current, StepProgress.read(store.path(current)))


@contextmanager
def _here() -> Iterator[Backend]:
    yield LocalBackend()
