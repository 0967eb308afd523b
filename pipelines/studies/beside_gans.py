"""How do diffusion models compare with GANs? Improved DDPM's table 4 and ADM's table 5, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.experiment import Better, Experiment
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import (
    PAPER_FID,
    PAPER_PRECISION,
    PAPER_RECALL,
    PAPER_SFID,
    PRECISION,
    RECALL,
    frechet,
    quality,
)

QUESTION = "Do class-conditional diffusion models cover more of the data than a GAN of like FID?"
QUESTION_ART = "Which published FIDs do ADM's models reach, guided or not, beside GANs and others?"
GROUPS = 32  # of GroupNorm: widths are multiples of it
DataName = Literal[
    "lsun-bedroom", "lsun-horse", "lsun-cat", "imagenet64", "imagenet128", "imagenet256", "imagenet512"
]  # fmt: skip
FewSteps = {"sample.sampler.kind": "ddim", "sample.sampler.respacing": "ddim25"}


def iddpm_class_conditional(
    base: RunConfig, seeds: tuple[int, ...], *, small: Mapping[str, Any] | None = None
) -> Experiment[RunConfig]:
    """Improved DDPM, table 4: a small and a large model (128 and 192 channels), precision and recall with k = 5.

    small: in what the small model differs besides its width.
    """
    if base.model.num_classes is None:
        raise ValueError("model.num_classes=null: the rows of iddpm-class-conditional know classes; set their number")
    narrower = max(GROUPS, base.model.model_channels * 2 // 3 // GROUPS * GROUPS)
    return Experiment(
        name="iddpm-class-conditional",
        title="Improved DDPM, table 4",
        question=QUESTION,
        source="Nichol & Dhariwal 2021, table 4: ImageNet 64x64 with classes, 250 steps, k = 5",
        base=base,
        seeds=seeds,
        variants={"small": {"model.model_channels": narrower, **(small or {})}, "large": {}},
        columns=(frechet(base), PRECISION, RECALL),
        paper_columns=(PAPER_FID, PAPER_PRECISION, PAPER_RECALL),
        paper={
            "small": {"fid": 6.92, "precision": 0.77, "recall": 0.72},
            "large": {"fid": 2.92, "precision": 0.82, "recall": 0.71},
        },
        literature={"BigGAN-deep": {"fid": 4.06, "precision": 0.86, "recall": 0.59}},
        claims=(
            Better(text="the large model is better", metric=frechet_name(base.features), better="large", worse="small"),
            Better(text="the large model is more precise", metric="precision", better="large", worse="small"),
        ),
    )


Numbers = tuple[float | None, float | None, float | None, float | None]
"""FID, sFID, precision and recall, as printed; None where nothing is."""


@dataclass(frozen=True)
class Art:
    """Table 5 for one data set."""

    name: str
    ours: Mapping[str, tuple[Mapping[str, Any], Numbers]]
    """Row -> settings, and the paper's numbers."""
    others: Mapping[str, Numbers]


def _guided(scale: float, few_steps: float) -> dict[str, dict[str, Any]]:
    return {
        "ADM": {"sample.guidance_scale": 0.0},
        "ADM-G (25 steps)": {**FewSteps, "sample.guidance_scale": few_steps},
        "ADM-G": {"sample.guidance_scale": scale},
    }


def _rows(settings: Mapping[str, Mapping[str, Any]], *numbers: Numbers) -> dict[str, tuple[Mapping[str, Any], Numbers]]:
    return {row: (own, printed) for (row, own), printed in zip(settings.items(), numbers, strict=True)}


WITH_DROPOUT = {"ADM": {"model.dropout": 0.0}, "ADM (dropout)": {"model.dropout": 0.1}}
ART: dict[DataName, Art] = {
    "lsun-bedroom": Art(
        "LSUN bedroom 256x256",
        {"ADM (dropout)": ({}, (1.90, 5.59, 0.66, 0.51))},
        {"DCTransformer": (6.40, 6.66, 0.44, 0.56), "DDPM": (4.89, 9.07, 0.60, 0.45),
         "IDDPM": (4.24, 8.21, 0.62, 0.46), "StyleGAN": (2.35, 6.62, 0.59, 0.48)},
    ),
    "lsun-horse": Art(
        "LSUN horse 256x256",
        _rows(WITH_DROPOUT, (2.95, 5.94, 0.69, 0.55), (2.57, 6.81, 0.71, 0.55)),
        {"StyleGAN2": (3.84, 6.46, 0.63, 0.48)},
    ),
    "lsun-cat": Art(
        "LSUN cat 256x256",
        {"ADM (dropout)": ({}, (5.57, 6.69, 0.63, 0.52))},
        {"DDPM": (17.1, 12.4, 0.53, 0.48), "StyleGAN2": (7.25, 6.33, 0.58, 0.43)},
    ),
    "imagenet64": Art(
        "ImageNet 64x64",
        _rows(WITH_DROPOUT, (2.61, 3.77, 0.73, 0.63), (2.07, 4.29, 0.74, 0.63)),
        {"BigGAN-deep": (4.06, 3.96, 0.79, 0.48), "IDDPM": (2.92, 3.79, 0.74, 0.62)},
    ),
    "imagenet128": Art(
        "ImageNet 128x128",
        _rows(_guided(0.5, 1.25), (5.91, 5.09, 0.70, 0.65), (5.98, 7.04, 0.78, 0.51), (2.97, 5.09, 0.78, 0.59)),
        {"BigGAN-deep": (6.02, 7.18, 0.86, 0.35), "LOGAN": (3.36, None, None, None)},
    ),
    "imagenet256": Art(
        "ImageNet 256x256",
        _rows(_guided(1.0, 2.5), (10.94, 6.02, 0.69, 0.63), (5.44, 5.32, 0.81, 0.49), (4.59, 5.25, 0.82, 0.52)),
        {"DCTransformer": (36.51, 8.24, 0.36, 0.67), "VQ-VAE-2": (31.11, 17.38, 0.36, 0.57),
         "IDDPM": (12.26, 5.42, 0.70, 0.62), "SR3": (11.30, None, None, None),
         "BigGAN-deep": (6.95, 7.36, 0.87, 0.28)},
    ),
    "imagenet512": Art(
        "ImageNet 512x512",
        _rows(_guided(4.0, 9.0), (23.24, 10.19, 0.73, 0.60), (8.41, 9.67, 0.83, 0.47), (7.72, 6.57, 0.87, 0.42)),
        {"BigGAN-deep": (8.43, 8.13, 0.88, 0.29)},
    ),
}  # fmt: skip
PAPER_COLUMNS = (PAPER_FID, PAPER_SFID, PAPER_PRECISION, PAPER_RECALL)


def adm_state_of_the_art(
    base: RunConfig, seeds: tuple[int, ...], *, of: DataName = "imagenet256"
) -> Experiment[RunConfig]:
    """ADM, table 5: its models of one data set beside the published ones of others."""
    art = ART[of]
    ours = {row: dict(settings) for row, (settings, _) in art.ours.items()}
    distance = frechet_name(base.features)
    claims: tuple[Better, ...] = ()
    if "ADM-G" in ours:
        claims = (
            Better(text="guidance helps", metric=distance, better="ADM-G", worse="ADM"),
            Better(text="more steps help", metric=distance, better="ADM-G", worse="ADM-G (25 steps)"),
        )
    elif "ADM" in ours:
        claims = (Better(text="dropout helps", metric=distance, better="ADM (dropout)", worse="ADM"),)
    return Experiment(
        name="adm-state-of-the-art",
        title=f"ADM, table 5: {art.name}",
        question=QUESTION_ART,
        source=f"Dhariwal & Nichol 2021, table 5: {art.name}",
        base=base,
        seeds=seeds,
        variants=ours,
        columns=quality(base),
        paper_columns=PAPER_COLUMNS,
        paper={row: _printed(numbers) for row, (_, numbers) in art.ours.items()},
        literature={name: _printed(numbers) for name, numbers in art.others.items()},
        claims=claims,
        varies=("guidance", "classifier", "sampler"),
    )


def _printed(numbers: Numbers) -> dict[str, float]:
    pairs = zip((column.key for column in PAPER_COLUMNS), numbers, strict=True)
    return {key: number for key, number in pairs if number is not None}
