"""Which numbers does a run end in? By its config, so that a table that asks for another is refused before it runs."""

from __future__ import annotations

from orchestrator.config import hint
from orchestrator.experiment import Experiment
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.features import InceptionConfig
from pipelines.own_classifier import OwnClassifierConfig

WITH_INTERVAL = ("", "_se", "_low", "_high")
ALWAYS = ("fd_samples", "fd_reference", "nll_bpd", "nll_bpd_se", "nll_images")
NEEDS = {
    **dict.fromkeys(("fid", "sfid", "is"), "features.kind=inception"),
    "fd": "another features.kind than inception, whose distance is fid",
    "classifier_score": "features.kind=classifier",
}


def measured(config: RunConfig) -> frozenset[str]:
    """Names of metrics that every such run has. Distances of infinitely many samples come with enough samples alone."""
    names = [frechet_name(config.features), "kid", "precision", "recall"]
    if isinstance(config.features, InceptionConfig):
        names += ["sfid", "is"]
    if isinstance(config.features, OwnClassifierConfig):
        names += ["classifier_score"]
    return frozenset([f"{name}{suffix}" for name in names for suffix in WITH_INTERVAL]) | frozenset(ALWAYS)


def check_columns(experiment: Experiment[RunConfig]) -> None:
    """Raises ValueError for a column that some row would not fill in."""
    for trial in experiment.trials():
        known = measured(trial.config)
        for column in experiment.columns:
            for name in (column.metric, column.error, column.count):
                if name is not None and name not in known:
                    fix = f"it takes {NEEDS[name]}" if name in NEEDS else f"there are {', '.join(sorted(known))}"
                    nearest = hint(name, sorted(known)) or ";"
                    raise ValueError(
                        f"{experiment.name}, column {column.label!r}: row {trial.variant!r} does not measure "
                        f"{name!r}{nearest} {fix}"
                    )
