"""How does a user's own question become a table? A study written down in a TOML file, run as the papers' are.

    question = "Does dropout help?"

    [rows."no dropout"]
    "model.dropout" = 0.0

    [rows."dropout 0.1"]
    "model.dropout" = 0.1

    [[claims]]
    metric = "nll_bpd"
    better = "dropout 0.1"
    worse = "no dropout"

Its scale is a preset's. More rows, columns or claims continue the same study: only what is new is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.config import from_dict, hint
from orchestrator.experiment import Better, Column, Experiment, PaperColumn
from pipelines.configs import RunConfig
from pipelines.presets import PRESETS
from pipelines.studies import columns
from pipelines.studies.kinds import Scale, Study

SUFFIX = ".toml"
COLUMNS: Mapping[str, Column] = {
    column.metric: column
    for column in (
        columns.NLL, columns.FID, columns.FD, columns.SFID, columns.IS, columns.CLASSIFIER_SCORE, columns.KID,
        columns.PRECISION, columns.RECALL,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What is expected: in this metric, one row is better than another."""

    metric: str
    better: str
    worse: str
    text: str = ""
    """As the table words it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFile:
    """What the file may say."""

    question: str
    rows: dict[str, dict[str, Any]]
    """Row -> dotted settings in which it differs from the preset."""
    columns: tuple[str, ...] = ("nll_bpd", "fd", "kid")
    """Metrics."""
    claims: tuple[Claim, ...] = ()
    source: str = ""
    """Where the numbers below are printed."""
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row -> metric -> a number to set ours beside."""
    literature: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same of models that nobody runs."""
    varies: tuple[str, ...] = ()
    """Keys of protocols in which rows differ on purpose: sampler, chain, guidance, classifier, labels, weights."""


def read_study(path: Path) -> Study:
    """The study that a file describes.

    Raises ValueError for a file that is not there or no TOML, and for unknown keys; what rows and claims get wrong is
    told when the study is built.
    """
    try:
        written = from_dict(StudyFile, tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); name a {SUFFIX} file that describes a study") from error
    except ValueError as error:  # tomllib's own, too
        raise ValueError(f"{path}: {error}") from error
    for name in written.columns:
        if name not in COLUMNS:
            nearest = hint(name, list(COLUMNS)) or "."
            raise ValueError(f"{path}: columns: unknown metric {name!r}{nearest} There are: {', '.join(COLUMNS)}")
    return Study(
        question=written.question,
        experiment=partial(_experiment, path.stem, written),
        scales={name: Scale(base) for name, base in PRESETS.items()},
    )


def _experiment(name: str, written: StudyFile, base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    numbers = [*written.paper.values(), *written.literature.values()]
    printed = dict.fromkeys(key for of_row in numbers for key in of_row)
    return Experiment(
        name=name,
        title=name,
        question=written.question,
        source=written.source or "not said",
        base=base,
        seeds=seeds,
        variants=written.rows,
        columns=tuple(COLUMNS[metric] for metric in written.columns),
        paper_columns=tuple(PaperColumn(key=key, label=f"paper {key}", format=".3g") for key in printed),
        paper=written.paper,
        literature=written.literature,
        claims=tuple(
            Better(text=claim.text or f"{claim.better} beats {claim.worse}", metric=claim.metric, better=claim.better,
                   worse=claim.worse)
            for claim in written.claims
        ),
        varies=written.varies,
    )  # fmt: skip
