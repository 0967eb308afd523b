"""Which tables of the papers can be run? By the command that runs them."""

from __future__ import annotations

from pipelines import presets
from pipelines.studies import objectives
from pipelines.study import Catalogue, Scale, Study

ABLATIONS: Catalogue = {
    "iddpm-cifar10": Study(
        question=objectives.QUESTION, experiment=objectives.iddpm_cifar10, scatter=("nll_bpd", "frechet"),
        scales={"tiny": Scale(presets.tiny), "fashion": Scale(presets.fashion), "reduced": Scale(presets.reduced)},
    ),
}  # fmt: skip

ALL: Catalogue = {**ABLATIONS}
