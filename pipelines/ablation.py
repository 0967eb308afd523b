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
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tyro

from orchestrator.config import override, parse_settings
from orchestrator.display import Display, duration
from orchestrator.errors import PreflightError
from orchestrator.experiment import Better, Claim, Column, Experiment, Extreme, PaperColumn
from orchestrator.materialize import pending
from orchestrator.protocols import MixedProtocols
from orchestrator.run import StudyOutcome, run_experiment
from orchestrator.store import ArtifactStore
from orchestrator.tracker import Tracker
from orchestrator.views import Presentation
from pipelines.cli import HERE, Overrides, Places, check_workers, choose, run
from pipelines.configs import RunConfig
from pipelines.drawn import GRID_FILE, STRIP_FILE
from pipelines.evaluate import frechet_name
from pipelines.named_data import data_changes
from pipelines.plan import check, plan
from pipelines.presets import PRESETS

SOME_CELLS_FAILED = 4
IMAGES_TO_FILL = 103_000
"""Uniform draws of t until each of 4000 had ten: the median of simulated runs."""
FEW_POOLS = 60
LEARNED = {"diffusion.variance": "learned_range"}
SIMPLE = {"diffusion.loss": "simple", "diffusion.variance": "fixed_large"}
HYBRID = {"diffusion.loss": "hybrid", **LEARNED}


@dataclass(frozen=True)
class Study:
    """A table of a paper, before it is given a scale."""

    question: str
    experiment: Any


def iddpm_objectives(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, table 2 (CIFAR-10): T, schedule and loss against NLL and FID."""
    return Experiment(
        name="iddpm-objectives",
        title="Improved DDPM, table 2",
        question=STUDIES["iddpm-objectives"].question,
        source="Nichol & Dhariwal 2021, table 2: CIFAR-10, 500K iterations",
        base=base,
        seeds=seeds,
        variants={
            "1K linear simple": {"diffusion.num_timesteps": 1000, "diffusion.schedule": "linear", **SIMPLE},
            "4K linear simple": {"diffusion.num_timesteps": 4000, "diffusion.schedule": "linear", **SIMPLE},
            "4K linear hybrid": {"diffusion.num_timesteps": 4000, "diffusion.schedule": "linear", **HYBRID},
            "4K cosine simple": {"diffusion.num_timesteps": 4000, "diffusion.schedule": "cosine", **SIMPLE},
            "4K cosine hybrid": {"diffusion.num_timesteps": 4000, "diffusion.schedule": "cosine", **HYBRID},
            "4K cosine vlb": {
                "diffusion.num_timesteps": 4000, "diffusion.schedule": "cosine", "diffusion.loss": "vlb", **LEARNED,
                "train.timesteps.kind": "loss_second_moment", "train.timesteps.pools": _pools(base),
            },
        },
        columns=(
            Column(
                metric="nll_bpd", label="NLL bits/dim", format=".3f", best="min", error="nll_bpd_se", count="nll_images"
            ),
            _frechet_column(base),
            Column(metric="kid", label="KID", format=".4f", best="min", error="kid_se", count="fd_samples"),
        ),
        paper_columns=(
            PaperColumn(key="nll_bpd", label="paper NLL", format=".2f"),
            PaperColumn(key="fid", label="paper FID", format=".2f"),
        ),
        paper={
            "1K linear simple": {"nll_bpd": 3.73, "fid": 3.29},
            "4K linear simple": {"nll_bpd": 3.37, "fid": 2.90},
            "4K linear hybrid": {"nll_bpd": 3.26, "fid": 3.07},
            "4K cosine simple": {"nll_bpd": 3.26, "fid": 3.05},
            "4K cosine hybrid": {"nll_bpd": 3.17, "fid": 3.19},
            "4K cosine vlb": {"nll_bpd": 2.94, "fid": 11.47},
        },
        claims=_objective_claims(frechet_name(base.features)),
    )  # fmt: skip


def presentation(base: RunConfig, mixed_protocols: MixedProtocols = "refuse") -> Presentation:
    """What of a study at that scale people look at."""
    return Presentation(
        attachments=(("sample", GRID_FILE),), strip=("sample", STRIP_FILE),
        scatter=("nll_bpd", frechet_name(base.features)),
        curve=("train", "simple", "L_simple, training"), mixed_protocols=mixed_protocols,
    )  # fmt: skip


def _frechet_column(base: RunConfig) -> Column:
    """FID where Inception sees the images; over another network the distance has a name of its own."""
    name = frechet_name(base.features)
    label = {"fid": "FID", "fd": "Frechet distance"}[name]
    return Column(metric=name, label=label, format=".2f", best="min", error=f"{name}_se", count="fd_samples")


def _objective_claims(distance: str) -> tuple[Claim, ...]:
    return (
        Better(
            text="hybrid beats simple (linear)", metric="nll_bpd", better="4K linear hybrid", worse="4K linear simple"
        ),
        Better(
            text="hybrid beats simple (cosine)", metric="nll_bpd", better="4K cosine hybrid", worse="4K cosine simple"
        ),
        Better(
            text="cosine beats linear (simple)", metric="nll_bpd", better="4K cosine simple", worse="4K linear simple"
        ),
        Better(
            text="cosine beats linear (hybrid)", metric="nll_bpd", better="4K cosine hybrid", worse="4K linear hybrid"
        ),
        Better(text="4K steps beat 1K", metric="nll_bpd", better="4K linear simple", worse="1K linear simple"),
        Better(text="4K steps beat 1K", metric=distance, better="4K linear simple", worse="1K linear simple"),
        Extreme(text="vlb has the best NLL", metric="nll_bpd", variant="4K cosine vlb", which="best"),
        Extreme(text="vlb has the worst FID", metric=distance, variant="4K cosine vlb", which="worst"),
        Extreme(text="vlb has the worst FID", metric="kid", variant="4K cosine vlb", which="worst"),
    )


def _pools(base: RunConfig) -> int | None:
    """A loss history for each t, as in the paper, unless filling them would take more than a tenth of the run."""
    return None if base.train.images >= 10 * IMAGES_TO_FILL else FEW_POOLS


STUDIES: dict[str, Study] = {
    "iddpm-objectives": Study(
        "Which T, schedule and loss buy likelihood, and what do they cost in FID?", iddpm_objectives
    ),
}


def main(
    study: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    preset: str = "tiny",
    seeds: int = 1,
    rows: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
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
    experiment = build(study, preset=preset, seeds=seeds, settings=set, images=data_changes(data, store))
    experiment = experiment.only(rows) if rows else experiment
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
    study: str, *, preset: str, seeds: int, settings: tuple[str, ...] = (), images: Mapping[str, Any] | None = None
) -> Experiment[RunConfig]:
    """The study at a preset's scale, by choice on other images (data_changes).

    Raises ValueError for an unknown name, key or value.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least 1 seed is needed")
    chosen = choose("study", study, STUDIES)
    at_scale = choose("preset", preset, PRESETS)()
    changes = parse_settings(at_scale, settings)
    experiment = chosen.experiment(override(at_scale, {**(images or {}), **changes}), tuple(range(seeds)))
    _check_settings_matter(experiment, changes)
    return experiment


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
