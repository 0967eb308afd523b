"""Which choices of a paper matter? Its ablation table, run cell by cell and set beside the paper's own numbers.

    python pipelines/ablation.py --list
    python pipelines/ablation.py iddpm-objectives --preset tiny
    python pipelines/ablation.py iddpm-objectives --preset tiny --seeds 2
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python pipelines/ablation.py iddpm-objectives --preset tiny
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import tyro

from orchestrator.config import override, parse_settings
from orchestrator.display import Display, duration
from orchestrator.errors import PreflightError
from orchestrator.experiment import Better, Experiment
from orchestrator.materialize import pending
from orchestrator.protocols import MixedProtocols
from orchestrator.run import StudyOutcome, run_experiment
from orchestrator.store import ArtifactStore
from orchestrator.tracker import Tracker
from orchestrator.views import Presentation
from pipelines import objectives
from pipelines.cli import HERE, Overrides, Places, check_workers, choose, run
from pipelines.configs import RunConfig
from pipelines.drawn import GRID_FILE, STRIP_FILE
from pipelines.evaluate import frechet_name
from pipelines.named_data import data_changes
from pipelines.plan import check, plan
from pipelines.presets import PRESETS

SOME_CELLS_FAILED = 4


@dataclass(frozen=True)
class Study:
    """A table of a paper, before it is given a scale."""

    question: str
    experiment: Any


def presentation(base: RunConfig, mixed_protocols: MixedProtocols = "refuse") -> Presentation:
    """What of a study at that scale people look at."""
    drawn = "sample" if base.upsampler is None else "upsample"  # what is judged
    return Presentation(
        attachments=((drawn, GRID_FILE),), strip=(drawn, STRIP_FILE),
        scatter=("nll_bpd", frechet_name(base.features)),
        curve=("train", "simple", "L_simple, training"), mixed_protocols=mixed_protocols,
    )  # fmt: skip


STUDIES: dict[str, Study] = {
    "iddpm-objectives": Study(objectives.QUESTION, objectives.iddpm_objectives),
}


def main(
    study: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    preset: str = "tiny",
    seeds: int = 1,
    rows: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    milestones: tyro.conf.UseAppendAction[tuple[int, ...]] = (),
    places: Annotated[Places, tyro.conf.arg(name="")] = HERE,
    set: Overrides = (),
    data: str | None = None,
    cells_at_once: int | None = None,
    tracking_uri: str | None = None,
    mixed_protocols: MixedProtocols = "refuse",
    list: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> int:
    """Run a study, or what is still missing of it, and print its table.

    Args:
        study: Name of the study; see --list.
        preset: Scale at which it is run: tiny (two CPU cores, minutes), fashion (two CPU cores, an hour a row) or
            reduced (one GPU, hours).
        seeds: How many training seeds every row gets: 0, 1, ... More than before trains only the new ones.
        rows: One of the rows, as the table calls it; repeatable. By default all. Trained once, whatever table it is in.
        milestones: Images seen at which every row is judged, too, in a row of its own, while it trains on; repeatable.
        places: Where artifacts are kept and how many workers a cell gets.
        data: A prepared data set by name, in place of the preset's; python pipelines/data.py list shows them.
        set: Dotted settings changed in every row, such as train.images=50000.
        cells_at_once: How many cells run side by side; by default as many as the cluster has room for now.
        tracking_uri: MLflow server or database; by default mlflow.db in the store.
        mixed_protocols: mark: rows that were measured otherwise than the first one stand in the table, marked.
        list: Print the studies and end.
        dry_run: Print what would run and what is done already, and end.
        verbose: Show what Ray says, too.
    """
    if list:
        print("\n".join(f"{name:<20} {study.question}" for name, study in STUDIES.items()))
        return 0
    if study is None:
        raise ValueError(f"which study? There are: {', '.join(STUDIES)}; --list says what they ask")
    store = places.artifact_store()
    experiment = build(
        study, preset=preset, seeds=seeds, settings=set, images=data_changes(data, store), rows=rows,
        milestones=milestones,
    )  # fmt: skip
    check_workers(experiment.base.train, places)
    if cells_at_once is not None and cells_at_once < 1:
        raise ValueError(f"--cells-at-once {cells_at_once}: must be at least 1")
    if dry_run:
        print(dry_run_text(experiment, store))
        return 0
    shown = presentation(experiment.base, mixed_protocols)
    return run_study(
        experiment, store, places, shown, cells_at_once=cells_at_once, tracking_uri=tracking_uri, verbose=verbose
    )


def build(
    study: str, *, preset: str, seeds: int, settings: tuple[str, ...] = (), images: Mapping[str, Any] | None = None,
    rows: tuple[str, ...] = (), milestones: tuple[int, ...] = (),
) -> Experiment[RunConfig]:  # fmt: skip
    """The study at a preset's scale, by choice on other images (data_changes), some rows of it, or judged on the way.

    Raises ValueError for an unknown name, key or value.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least 1 seed is needed")
    chosen = choose("study", study, STUDIES)
    at_scale = choose("preset", preset, PRESETS)()
    changes = parse_settings(at_scale, settings)
    experiment = chosen.experiment(override(at_scale, {**(images or {}), **changes}), tuple(range(seeds)))
    _check_settings_matter(experiment, changes)
    experiment = experiment.only(rows) if rows else experiment
    return _judged_on_the_way(experiment, milestones) if milestones else experiment


def _judged_on_the_way(experiment: Experiment[RunConfig], milestones: tuple[int, ...]) -> Experiment[RunConfig]:
    """Each row after one for every milestone, which shares its training up to there: ADR 10."""
    variants = {}
    for row, settings in experiment.variants.items():
        for number, images in enumerate(milestones):
            shorter = {"train.images": images, "milestones": milestones[:number]}
            variants[f"{row}, {images:,} images"] = {**settings, **shorter}
        variants[row] = {**settings, "milestones": milestones}
    # The best of all rows is another claim where each stands there at several lengths.
    claims = tuple(claim for claim in experiment.claims if isinstance(claim, Better))
    return replace(experiment, variants=variants, claims=claims)


def _check_settings_matter(experiment: Experiment[RunConfig], settings: Iterable[str]) -> None:
    """Raises ValueError for a setting that a row replaces by its own."""
    for key in settings:
        if key == "seed":
            raise ValueError("--set seed: a study's seeds are 0, 1, ... below --seeds; set that instead")
        rows = [variant for variant, row in experiment.variants.items() if key in row]
        if rows:
            raise ValueError(
                f"--set {key}: that is what the rows of {experiment.name} differ in ({', '.join(rows)}); leave it out"
            )


def dry_run_text(experiment: Experiment[RunConfig], store: ArtifactStore) -> str:
    """Which cells are done, and which steps the others lack."""
    lines = [f"{experiment.name}: {experiment.question}"]
    for trial in experiment.trials():
        missing = pending(plan(trial.config).values(), store)
        lines.append(f"  {trial.name:<34} {'done' if not missing else 'to run: ' + ', '.join(s.name for s in missing)}")
    return "\n".join(lines)


def run_study(
    experiment: Experiment[RunConfig], store: ArtifactStore, places: Places, shown: Presentation, *,
    cells_at_once: int | None, tracking_uri: str | None, verbose: bool,
) -> int:  # fmt: skip
    """Run the study on Ray, print its table, and return the exit code."""
    from orchestrator.ray_tune import TuneLauncher  # seconds to import: not for --help and --list

    began = time.monotonic()
    places.check_checkpoints()
    resources = places.resources()
    tracker = tracker_of(store, tracking_uri)
    launcher = TuneLauncher(
        store.root / ".ray", resources=resources, address=places.address, at_once=cells_at_once, verbose=verbose
    )
    outcome = run_experiment(
        experiment, plan, partial(check, data_mib=places.data_mib),
        store=store, tracker=tracker, launcher=launcher, resources=resources,
        presentation=shown, display=Display(), grace_seconds=places.grace_seconds,
    )  # fmt: skip
    print(report(outcome, seconds=time.monotonic() - began, how_to_look=tracker.how_to_look()))
    if outcome.table.any_failed:
        return SOME_CELLS_FAILED
    return PreflightError.exit_code if outcome.unwritten else 0


def tracker_of(store: ArtifactStore, uri: str | None) -> Tracker:
    """MLflow, as a server or database; by default mlflow.db in the store."""
    from orchestrator.mlflow_tracker import MlflowTracker  # seconds to import: not for --help and --list

    return MlflowTracker(uri or f"sqlite:///{store.root / 'mlflow.db'}", artifact_root=store.root / "mlartifacts")


def report(outcome: StudyOutcome, *, seconds: float, how_to_look: str) -> str:
    """What was found, and what was run for it."""
    before = len(outcome.table.experiment.trials()) - outcome.trials_run
    ran = f"{outcome.trials_run} cells run in {duration(seconds)}, {before} done before"
    return f"{found(outcome, how_to_look=how_to_look)}\n{ran}"


def found(outcome: StudyOutcome, *, how_to_look: str) -> str:
    """The table as text, where its files are, and how to look at the runs."""
    lines = [outcome.table.to_text(), ""]
    lines += [f"{name:<18} {path}" for name, path in outcome.files.items()]
    lines += [f"{name:<18} could not be written: {why}" for name, why in outcome.unwritten.items()]
    lines += [f"{'MLflow':<18} {how_to_look}"]
    if outcome.tracker_behind is not None:
        lines.append(
            f"MLflow lacks part of this ({outcome.tracker_behind}); the same command sends it once MLflow answers"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
