"""What does a classifier's guidance buy, and cost? ADM's table 4 with figure 4, and table 6, as data."""

from __future__ import annotations

from typing import Any

from orchestrator.experiment import Axis, Better, Experiment
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import (
    PAPER_FID,
    PAPER_IS,
    PAPER_PRECISION,
    PAPER_RECALL,
    PAPER_SFID,
    quality,
)

QUESTION = "How does the scale of guidance trade diversity for fidelity, with and without classes?"
QUESTION_UPSAMPLING = "What does a second stage that enlarges add to guidance?"
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 10.0)
"""Table 4 has 0, 1 and 10; the others are of figure 4's curves."""
PAPER_COLUMNS = (PAPER_FID, PAPER_SFID, PAPER_IS, PAPER_PRECISION, PAPER_RECALL)
KINDS = {"unconditional": {"model.num_classes": None}, "conditional": {}}
TABLE_4 = {
    ("unconditional", 0.0): (26.21, 6.35, 39.70, 0.61, 0.63),
    ("unconditional", 1.0): (33.03, 6.99, 32.92, 0.56, 0.65),
    ("unconditional", 10.0): (12.00, 10.40, 95.41, 0.76, 0.44),
    ("conditional", 0.0): (10.94, 6.02, 100.98, 0.69, 0.63),
    ("conditional", 1.0): (4.59, 5.25, 186.70, 0.82, 0.52),
    ("conditional", 10.0): (9.11, 10.93, 283.92, 0.88, 0.32),
}
TABLE_6 = {
    "upsampled": (7.49, 5.13, 127.49, 0.72, 0.63),
    "guided and upsampled": (3.94, 6.14, 215.84, 0.83, 0.53),
}


def adm_guidance(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, table 4: an unconditional and a conditional model, each at several scales of guidance.

    One classifier guides both. Raises ValueError for a base that knows no classes or has no classifier.
    """
    if base.classifier is None or base.model.num_classes is None:
        raise ValueError(
            f"classifier and model.num_classes={base.model.num_classes}: the rows of adm-guidance take a model that "
            f"knows classes and a classifier; set both"
        )
    rows = {(kind, scale): row_name(kind, scale) for kind in KINDS for scale in SCALES}
    variants: dict[str, dict[str, Any]] = {
        row: {**KINDS[kind], "sample.guidance_scale": scale} for (kind, scale), row in rows.items()
    }
    for row in (rows["unconditional", 0.0],):
        variants[row] |= {"sample.labels": "balanced"}  # nothing is told classes
    return Experiment(
        name="adm-guidance",
        title="ADM, table 4 and figure 4",
        question=QUESTION,
        source="Dhariwal & Nichol 2021, table 4: ImageNet 256x256, 2M iterations",
        base=base,
        seeds=seeds,
        variants=variants,
        columns=quality(base),
        paper_columns=PAPER_COLUMNS,
        paper={rows[key]: _printed(numbers) for key, numbers in TABLE_4.items()},
        claims=_claims(frechet_name(base.features)),
        against={rows[kind, scale]: kind for kind, scale in rows if scale},
        varies=("guidance", "classifier", "labels"),
        axis=Axis(
            label="scale of guidance", points={row: (kind, scale) for (kind, scale), row in rows.items()}
        ),
    )  # fmt: skip


def row_name(kind: str, scale: float) -> str:
    """What the table calls it."""
    return f"{kind}, s = {scale:g}" if scale else kind


def _claims(distance: str) -> tuple[Better, ...]:
    def better(text: str, metric: str, first: tuple[str, float], second: tuple[str, float]) -> Better:
        return Better(text=text, metric=metric, better=row_name(*first), worse=row_name(*second))

    plain, guided, strong = ("conditional", 0.0), ("conditional", 1.0), ("conditional", 10.0)
    return (
        better("classes help", distance, plain, ("unconditional", 0.0)),
        better("guidance helps (s = 1)", distance, guided, plain),
        better("too much guidance harms (s = 10)", distance, guided, strong),
        better("an unconditional model needs more (s = 10)", distance, ("unconditional", 10.0), ("unconditional", 0.0)),
        better("guidance raises precision (s = 1)", "precision", guided, plain),
        better("and ever more (s = 10)", "precision", strong, guided),
        better("guidance lowers recall (s = 1)", "recall", plain, guided),
        better("and ever more (s = 10)", "recall", guided, strong),
    )


def adm_upsampling(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, table 6: a model of small images and one that enlarges them; guidance steers the first alone.

    Raises ValueError for a base without a classifier, a second stage or a scale of guidance.
    """
    if base.upsampler is None or not base.is_guided:
        raise ValueError(
            f"upsampler and sample.guidance_scale={base.sample.guidance_scale:g}: the rows of adm-upsampling take a "
            f"second stage, a classifier and a scale; set all three"
        )
    distance = frechet_name(base.features)
    return Experiment(
        name="adm-upsampling",
        title="ADM, table 6",
        question=QUESTION_UPSAMPLING,
        source="Dhariwal & Nichol 2021, table 6: ImageNet 64x64 to 256x256",
        base=base,
        seeds=seeds,
        variants={"upsampled": {"sample.guidance_scale": 0.0}, "guided and upsampled": {}},
        columns=quality(base),
        paper_columns=PAPER_COLUMNS,
        paper={row: _printed(numbers) for row, numbers in TABLE_6.items()},
        claims=(
            Better(text="guidance helps", metric=distance, better="guided and upsampled", worse="upsampled"),
            Better(text="guidance raises precision", metric="precision", better="guided and upsampled",
                   worse="upsampled"),
            Better(text="guidance lowers recall", metric="recall", better="upsampled", worse="guided and upsampled"),
        ),
        against={"guided and upsampled": "upsampled"},
        varies=("guidance", "classifier"),
    )  # fmt: skip


def _printed(numbers: tuple[float, ...]) -> dict[str, float]:
    return dict(zip((column.key for column in PAPER_COLUMNS), numbers, strict=True))
