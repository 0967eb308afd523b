"""Which models does a figure compare? Arms: a preset, each with settings of its own, and a step of each that is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config import override, parse_settings
from orchestrator.run import prepare_sources
from orchestrator.step import Step
from orchestrator.store import ArtifactStore
from pipelines.cli import Places, check_workers, choose
from pipelines.configs import RunConfig
from pipelines.named_data import data_changes
from pipelines.plan import check
from pipelines.presets import PRESETS
from pipelines.single import check_ray, run_steps

# A value may hold commas itself, as model.channel_mult=[1,2] does; what begins a setting is a key.
BETWEEN_SETTINGS = re.compile(r",(?=[A-Za-z_][\w.]*=)")
Check = Callable[[Path], None]
"""Raises ValueError for what a prepared data set has not."""


@dataclass(frozen=True)
class Arm:
    """One line of a figure."""

    label: str
    config: RunConfig


def arms_of(
    preset: str, written: Sequence[str], *, settings: Sequence[str], data: str | None, store: ArtifactStore
) -> list[Arm]:
    """The arms as a command line has them, LABEL:KEY=VALUE,KEY=VALUE; with none there is one, the preset's.

    settings are those of all arms, and data a prepared data set's name. Raises ValueError for what is no arm.
    """
    base = choose("preset", preset, PRESETS)()
    changes = {**data_changes(data, store), **parse_settings(base, settings)}
    arms: dict[str, Arm] = {}
    for label, own in map(_parsed, written or (f"{preset}:",)):
        with _naming(label):
            if label in arms:
                raise ValueError("it is there twice; give every --arm a label of its own")
            of_its_own = parse_settings(base, own)
            if both := sorted(changes.keys() & of_its_own.keys()):
                raise ValueError(f"{both[0]} is set for all arms, too, by --set or --data: set it once")
            arms[label] = Arm(label, override(base, {**changes, **of_its_own}))
    return list(arms.values())


def _parsed(written: str) -> tuple[str, list[str]]:
    label, colon, settings = written.partition(":")
    if not label or not colon:
        raise ValueError(
            f"--arm {written!r}: write LABEL:KEY=VALUE,KEY=VALUE, such as simple:diffusion.loss=simple,"
            f"diffusion.variance=fixed_large, or LABEL: for the preset as it is"
        )
    return label, BETWEEN_SETTINGS.split(settings) if settings else []


def run_arms(
    arms: Sequence[Arm], step_of: Callable[[RunConfig], Step], places: Places, *, ray: bool, check_data: Check
) -> Mapping[str, Path]:
    """Run a step of every arm, and all it needs, unless it is there; the artifacts by the arms' labels.

    All arms are held against their data before the first is trained. Raises ValueError that names the arm.
    """
    check_ray(places, ray=ray)
    store, steps = places.artifact_store(), {}
    for arm in arms:
        with _naming(arm.label):
            check_workers(arm.config.train, places)
            steps[arm.label] = step_of(arm.config)
    places.check_checkpoints()
    prepare_sources(list(steps.values()), store, places.resources())
    for arm in arms:
        dataset = store.path(steps[arm.label].inputs["dataset"])
        with _naming(arm.label):
            # A figure is of the first stage: what a second one would need is not there.
            check(replace(arm.config, upsampler=None), {"dataset": dataset}, data_mib=places.data_mib)
            check_data(dataset)
    run_steps(list(steps.values()), store, places, ray=ray)
    return {label: store.path(step) for label, step in steps.items()}


@contextmanager
def _naming(label: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"arm {label!r}: {error}") from error
