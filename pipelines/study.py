"""How is a table of a paper run? What the commands of all studies share: scale, run, and what is said at the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from orchestrator.config import override, parse_settings
from orchestrator.display import Display, duration
from orchestrator.errors import PreflightError
from orchestrator.experiment import Better, Experiment
from orchestrator.materialize import pending
from orchestrator.protocols import MixedProtocols
from orchestrator.run import StudyOutcome, run_experiment, study_folder
from orchestrator.store import ArtifactStore
from orchestrator.tracker import Tracker
from orchestrator.views import Presentation
from pipelines.cli import HERE, Overrides, Places, check_workers, choose
from pipelines.configs import RunConfig
from pipelines.drawn import GRID_FILE, STRIP_FILE
from pipelines.evaluate import frechet_name
from pipelines.measured import check_columns, is_tracked
from pipelines.named_data import data_changes
from pipelines.oversight import Limits, StudyOversight, cost_text
from pipelines.plan import check, plan
from pipelines.studies.catalogue import file_of
from pipelines.studies.kinds import Catalogue, Scale, Study
from pipelines.studies.own import SUFFIX, read_study

SOME_CELLS_FAILED = 4
SECOND_STAGE = "upsampler.training.model.unet"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which study, at which scale, and how much of it."""

    study: tyro.conf.Positional[str | None] = None
    """Name of the study (see --list), or a .toml file with one of your own."""
    preset: str = "tiny"
    """Scale at which it is run: tiny (two CPU cores, minutes), reduced (one GPU, hours) or paper (as published)."""
    seeds: int = 1
    """How many training seeds every row gets: 0, 1, ... More than before trains only the new ones."""
    rows: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """One of the rows, as the table calls it; repeatable. By default all. Trained once, whatever table it is in."""
    milestones: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Images seen at which every row is judged, too, in a row of its own, while it trains on; repeatable."""
    set: Overrides = ()
    data: str | None = None
    """A prepared data set by name, in place of the preset's; python pipelines/data.py list shows them."""
    large_data: str | None = None
    """The same of a second stage that enlarges: a prepared data set of the larger size."""
    mixed_protocols: MixedProtocols = "refuse"
    """mark: rows that were measured otherwise than the first one stand in the table, marked."""

    def chosen(self, studies: Catalogue) -> Study:
        """The study of that name, or of that file. Raises ValueError where there is none."""
        if self.study is None:
            raise ValueError(f"which study? There are: {', '.join(studies)}; --list says what they ask")
        if self.study.endswith(SUFFIX):
            return read_study(Path(self.study))
        return choose("study", self.study, dict(studies))

    def build(
        self, studies: Catalogue, store: ArtifactStore, *, may_lack_images: bool = False
    ) -> Experiment[RunConfig]:  # fmt: skip
        """The study with all that was asked for.

        Raises ValueError for an unknown name, key or value, and where the images that a scale needs are not named.
        """
        study = self.chosen(studies)
        scale = choose("preset", self.preset, dict(study.scales))
        enlarges = scale.base().upsampler is not None
        if self.large_data is not None and not enlarges:
            raise ValueError(f"--large-data {self.large_data}: {self.study} has no second stage; leave it out")
        unnamed = self.data is None or (enlarges and self.large_data is None)
        if scale.images is not None and unnamed and not may_lack_images:
            second = " and --large-data NAME" if enlarges else ""
            raise ValueError(
                f"--preset {self.preset} of {self.study} is of {scale.images}: prepare them with python "
                f"pipelines/data.py prepare FOLDER, and name them with --data NAME{second}"
            )
        large = data_changes(self.large_data, store, data="upsampler.training.data", network=SECOND_STAGE)
        return at_scale(
            study, scale, seeds=self.seeds, settings=self.set, images={**data_changes(self.data, store), **large},
            rows=self.rows, milestones=self.milestones,
        )  # fmt: skip

    def presentation(self, studies: Catalogue, base: RunConfig) -> Presentation:
        """What of it people look at."""
        shown = presentation(self.chosen(studies), base, self.mixed_protocols)
        return replace(shown, command=self.command(), row_command=self.row_command)

    def row_command(self, row: str) -> str:
        """What runs that row alone, at all its seeds; of one judged on the way, the row that trains on."""
        for number in self.milestones:
            row = row.removesuffix(_at(number))
        return replace(self, rows=(row,)).command()

    def command(self) -> str:
        """What runs it again, but for places: a line for a shell."""
        assert self.study is not None  # chosen() has seen to it
        words = ["python", f"pipelines/{file_of(self.study)}", self.study, "--preset", self.preset]
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        named = {"rows": self.rows, "milestones": self.milestones, "set": self.set, "data": _given(self.data),
                 "large-data": _given(self.large_data)}  # fmt: skip
        words += [word for name, values in named.items() for value in values for word in (f"--{name}", str(value))]
        words += ["--mixed-protocols", "mark"] if self.mixed_protocols == "mark" else []
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Selection):
    """Run a study, or what is still missing of it, and print its table."""

    places: tyro.conf.OmitArgPrefixes[Places] = HERE
    cells_at_once: int | None = None
    """How many cells run side by side; by default as many as the cluster has room for now."""
    tracking_uri: str | None = None
    """MLflow server or database; by default mlflow.db in the store."""
    list: bool = False
    """Print the studies and end."""
    dry_run: bool = False
    """Print what would run, what it would cost, and what is done already, and end."""
    yes: Annotated[bool, tyro.conf.arg(aliases=["-y"])] = False
    """Run without asking; only on a terminal is asked."""
    prices: str | None = None
    """JSON file of what machines cost an hour: {"currency": "USD", "instances": {"NAME": {"per_hour": 1.2, "gpus": 1,
    "cpus": 8}}}."""
    instance: str | None = None
    """Which of those machines the workers are on."""
    max_hours: float | None = None
    """GPU-hours, on CPUs CPU-hours, that the study may take, with all that was spent on its steps before; it is then
    stopped, with its state kept."""
    max_cost: float | None = None
    """The same in money."""
    verbose: bool = False
    """Show what Ray says, too."""

    def __call__(self, studies: Catalogue) -> int:
        """Returns the exit code."""
        if self.list:
            print("\n".join(f"{name:<24} {study.question}" for name, study in studies.items()))
            return 0
        store = self.places.artifact_store()
        experiment = self.build(studies, store, may_lack_images=self.dry_run)
        check_workers(experiment.base.train, self.places)
        if self.cells_at_once is not None and self.cells_at_once < 1:
            raise ValueError(f"--cells-at-once {self.cells_at_once}: must be at least 1")
        limits = self.limits()
        if self.dry_run:
            print(dry_run_text(experiment, store))
            print(self._plan_text(studies, experiment, store, limits))
            return 0
        return run_study(
            experiment, store, self.places, self.presentation(studies, experiment.base), limits=limits, yes=self.yes,
            cells_at_once=self.cells_at_once, tracking_uri=self.tracking_uri, verbose=self.verbose,
        )  # fmt: skip

    def limits(self) -> Limits:
        """Prices and caps. Raises ValueError for those that cannot be."""
        return Limits.of(
            self.places.resources(), prices=self.prices, instance=self.instance, max_hours=self.max_hours,
            max_cost=self.max_cost,
        )  # fmt: skip

    def _plan_text(
        self, studies: Catalogue, experiment: Experiment[RunConfig], store: ArtifactStore, limits: Limits
    ) -> str:
        if self.data is None and self.chosen(studies).scales[self.preset].images is not None:
            return "what it would cost hangs on the images: name them with --data"
        missing = {trial: pending(plan(trial.config).values(), store) for trial in experiment.trials()}
        return cost_text(missing, store, self.places, limits, cells_at_once=self.cells_at_once, verbose=self.verbose)


def _given(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)


def presentation(study: Study, base: RunConfig, mixed_protocols: MixedProtocols = "refuse") -> Presentation:
    """What of a study at that scale people look at."""
    drawn = "sample" if base.upsampler is None else "upsample"  # what is judged
    names = {"frechet": frechet_name(base.features)}
    axes = None if study.scatter is None else (names.get(study.scatter[0], study.scatter[0]),
                                               names.get(study.scatter[1], study.scatter[1]))  # fmt: skip
    return Presentation(
        attachments=((drawn, GRID_FILE),), strip=(drawn, STRIP_FILE), scatter=axes,
        curve=("train", "simple", "L_simple, training"), mixed_protocols=mixed_protocols,
        is_tracked=is_tracked,
    )  # fmt: skip


def at_scale(
    study: Study, scale: Scale, *, seeds: int, settings: tuple[str, ...] = (), images: Mapping[str, Any] | None = None,
    rows: tuple[str, ...] = (), milestones: tuple[int, ...] = (),
) -> Experiment[RunConfig]:  # fmt: skip
    """The study at that scale, by choice on other images (data_changes), some rows of it, or judged on the way.

    Raises ValueError for an unknown key or value.
    """
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least 1 seed is needed")
    base = scale.base()
    changes = parse_settings(base, settings)
    rows_of = scale.experiment or study.experiment
    experiment = rows_of(override(base, {**(images or {}), **changes}), tuple(range(seeds)))
    check_columns(experiment)
    _check_settings_matter(experiment, changes)
    experiment = experiment.only(rows) if rows else experiment
    return _judged_on_the_way(experiment, milestones) if milestones else experiment


def _judged_on_the_way(experiment: Experiment[RunConfig], milestones: tuple[int, ...]) -> Experiment[RunConfig]:
    """Each row after one for every milestone, which shares its training up to there: ADR 10."""
    variants = {}
    for row, settings in experiment.variants.items():
        for number, images in enumerate(milestones):
            shorter = {"train.images": images, "milestones": milestones[:number]}
            variants[f"{row}{_at(images)}"] = {**settings, **shorter}
        variants[row] = {**settings, "milestones": milestones}
    # The best of all rows is another claim where each stands there at several lengths.
    claims = tuple(claim for claim in experiment.claims if isinstance(claim, Better))
    return replace(experiment, variants=variants, claims=claims)


def _at(images: int) -> str:
    """Behind the name of a row that is judged there."""
    return f", {images:,} images"


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
    limits: Limits, yes: bool, cells_at_once: int | None, tracking_uri: str | None, verbose: bool,
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
    oversight = StudyOversight(
        [step for trial in experiment.trials() for step in plan(trial.config).values()], store, resources, limits,
        folder=study_folder(experiment, store), yes=yes,
    )  # fmt: skip
    outcome = run_experiment(
        experiment, plan, partial(check, data_mib=places.data_mib),
        store=store, tracker=tracker, launcher=launcher, resources=resources,
        presentation=shown, display=Display(), grace_seconds=places.grace_seconds, oversight=oversight,
    )  # fmt: skip
    print(report(outcome, seconds=time.monotonic() - began, how_to_look=tracker.how_to_look()))
    if compared := oversight.told():
        print(compared)
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
    if (fitted := outcome.files.get("laws.md")) is not None:
        lines += [fitted.read_text(), ""]
    lines += [f"{name:<18} {path}" for name, path in outcome.files.items()]
    lines += [f"{name:<18} could not be written: {why}" for name, why in outcome.unwritten.items()]
    lines += [f"{'MLflow':<18} {how_to_look}"]
    if outcome.tracker_behind is not None:
        lines.append(
            f"MLflow lacks part of this ({outcome.tracker_behind}); the same command sends it once MLflow answers"
        )
    return "\n".join(lines)
