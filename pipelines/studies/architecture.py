"""Which choices of the network matter? ADM's tables 1 to 3, as data."""

from __future__ import annotations

from typing import Any

from orchestrator.experiment import Better, Experiment
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import KID, PAPER_FID, frechet

QUESTION = "Which changes to the network lower FID: depth, heads, attention, BigGAN's blocks, rescaled residuals?"
QUESTION_ATTENTION = "Many heads or few, or as many channels for each?"
QUESTION_NORM = "Should t and the class scale and shift (AdaGN), or be added?"
GROUPS = 32  # of GroupNorm: widths are multiples of it
SHORTER = (7, 12)
"""700K of 1200K iterations: the first of table 1's two budgets."""

BASE = (15.33, 13.21)
"""FID at 700K and 1200K iterations."""
CHANGES = {
    "narrower and deeper": (-0.21, -0.48),
    "4 heads": (-0.54, -0.82),
    "attention at three sizes": (-0.72, -0.66),
    "BigGAN up/down": (-1.20, -1.21),
    "rescaled residuals": (+0.16, +0.25),
    "heads, attention and BigGAN": (-3.14, -3.00),
}
"""Row -> what the table prints: the change of FID against the base at both budgets."""
ONE_HEAD = 14.08
HEADS = {2: -0.50, 4: -0.97, 8: -1.17}
HEAD_CHANNELS = {32: -1.36, 64: -1.03, 128: -1.08}


def adm_architecture(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, table 1: one change of the base each, and the three that are kept together; judged at two budgets.

    The longer trainings go on from the shorter ones (docs/adr/0010).
    """
    changes = {"base": {}, **_changes(base)}
    batch, (part, whole) = base.train.batch_size, SHORTER
    first = max(1, round(base.train.images * part / whole / batch)) * batch
    variants, paper = {}, {}
    for number, budget in enumerate((f" ({part}/{whole})", "")):
        length: dict[str, Any] = {"milestones": (first,)} if not budget else {"train.images": first}
        for row, settings in changes.items():
            variants[row + budget] = {**settings, **length}
            paper[row + budget] = {"fid": BASE[number] + CHANGES.get(row, (0.0, 0.0))[number]}
    return Experiment(
        name="adm-architecture",
        title=f"ADM, table 1 ({part}/{whole}: at {first:,} of {base.train.images:,} images)",
        question=QUESTION,
        source="Dhariwal & Nichol 2021, table 1: ImageNet 128x128, 700K and 1200K iterations; changes as printed, "
               "added to the base's FID",
        base=base,
        seeds=seeds,
        variants=variants,
        columns=(frechet(base), KID),
        paper_columns=(PAPER_FID,),
        paper=paper,
        claims=_architecture_claims(frechet_name(base.features)),
        against={row + budget: f"base{budget}" for row in CHANGES for budget in (f" ({part}/{whole})", "")},
    )  # fmt: skip


def _changes(base: RunConfig) -> dict[str, dict[str, Any]]:
    """The paper's, in units of the base: 160 channels, 2 blocks a level, 1 head, attention at 16 of 128 pixels."""
    model = base.model
    narrower = max(GROUPS, model.model_channels * 4 // 5 // GROUPS * GROUPS)
    heads = {"model.num_heads": 4}
    attention = {"model.attention_resolutions": model.sizes[-3:]}
    blocks = {"model.resampling": "residual"}
    return {
        "narrower and deeper": {"model.model_channels": narrower, "model.num_res_blocks": 2 * model.num_res_blocks},
        "4 heads": heads,
        "attention at three sizes": attention,
        "BigGAN up/down": blocks,
        "rescaled residuals": {"model.residual_scale": "1/sqrt(2)"},
        "heads, attention and BigGAN": {**heads, **attention, **blocks},
    }


def _architecture_claims(distance: str) -> tuple[Better, ...]:
    helps = [row for row, (_, change) in CHANGES.items() if change < 0]
    return (
        *(Better(text=f"{row} helps", metric=distance, better=row, worse="base") for row in helps),
        Better(text="rescaled residuals harm", metric=distance, better="base", worse="rescaled residuals"),
        Better(text="together they help more than BigGAN's blocks alone", metric=distance,
               better="heads, attention and BigGAN", worse="BigGAN up/down"),
        Better(text="longer training helps", metric=distance, better="base",
               worse=f"base ({SHORTER[0]}/{SHORTER[1]})"),
    )  # fmt: skip


def adm_attention(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, table 2: as many heads everywhere, or heads of as many channels; those that the base's widths allow."""
    widths = [width for size, width in zip(base.model.sizes, base.model.widths, strict=True)
              if size in base.model.attention_resolutions or size == base.model.sizes[-1]]  # fmt: skip
    rows: dict[str, tuple[dict[str, Any], float]] = {"1 head": ({"model.num_heads": 1}, ONE_HEAD)}
    for heads, change in HEADS.items():
        rows[f"{heads} heads"] = ({"model.num_heads": heads}, ONE_HEAD + change)
    for channels, change in HEAD_CHANNELS.items():
        if not any(width % channels for width in widths):
            settings = {"model.num_heads": None, "model.num_head_channels": channels}
            rows[f"{channels} channels a head"] = (settings, ONE_HEAD + change)
    distance = frechet_name(base.features)
    return Experiment(
        name="adm-attention",
        title="ADM, table 2",
        question=QUESTION_ATTENTION,
        source="Dhariwal & Nichol 2021, table 2: ImageNet 128x128, 700K iterations; changes as printed, added to the "
               "first row's FID",
        base=base,
        seeds=seeds,
        variants={row: settings for row, (settings, _) in rows.items()},
        columns=(frechet(base), KID),
        paper_columns=(PAPER_FID,),
        paper={row: {"fid": fid} for row, (_, fid) in rows.items()},
        claims=tuple(
            Better(text=f"{row} beat 1 head", metric=distance, better=row, worse="1 head")
            for row in rows if row != "1 head"
        ),
        against={row: "1 head" for row in rows if row != "1 head"},
    )  # fmt: skip


def adm_norm(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, table 3: adaptive group normalization or addition."""
    return Experiment(
        name="adm-norm",
        title="ADM, table 3",
        question=QUESTION_NORM,
        source="Dhariwal & Nichol 2021, table 3: ImageNet 128x128",
        base=base,
        seeds=seeds,
        variants={"AdaGN": {"model.conditioning": "adagn"}, "addition": {"model.conditioning": "additive"}},
        columns=(frechet(base), KID),
        paper_columns=(PAPER_FID,),
        paper={"AdaGN": {"fid": 13.06}, "addition": {"fid": 15.08}},
        claims=(
            Better(text="AdaGN beats addition", metric=frechet_name(base.features), better="AdaGN", worse="addition"),
        ),
    )
