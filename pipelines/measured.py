"""Which numbers does a run end in, and which of them are looked at? A table that asks for another is refused."""

from __future__ import annotations

import re

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

DETAILS = re.compile(r"_(low|high|q[0-3])$|_top5|^nll_rounds$|^nll_bpd_se_draws$|^fd_reference$|^data_wait$")
"""In the CSV and the journals alone: bounds of intervals whose error is there, and quarters of losses."""
OTHER_TRAININGS = re.compile(r"^(features_classifier|classifier|upsampler)_")
LOOKED_AT = re.compile(r"^(?:(?:classifier|upsampler)_loss|(?:features_)?classifier_held_out_accuracy)$")
"""Of trainings beside the model's own."""


def is_tracked(name: str) -> bool:
    """Whether MLflow is sent a metric: a run's page and charts are of use with some thirty, not with 150."""
    if DETAILS.search(name):
        return False
    return name.startswith("classifier_score") or not OTHER_TRAININGS.match(name) or bool(LOOKED_AT.match(name))


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
