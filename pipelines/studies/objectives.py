"""What do T, schedule and loss do? Improved DDPM's tables 1 to 3, as data."""

from __future__ import annotations

from typing import Any

from orchestrator.experiment import Better, Claim, Experiment, Extreme
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import KID, NLL, PAPER_FID, PAPER_NLL, frechet

QUESTION = "Which T, schedule and loss buy likelihood, and what do they cost in FID?"
QUESTION_NLL = "How near does a diffusion model's likelihood come to what other kinds of models reach?"
IMAGES_TO_FILL = 103_000
"""Uniform draws of t until each of 4000 had ten: the median of simulated runs."""
FEW_POOLS = 60
LONGER = 7.5
"""1.5M iterations of table 1, in units of the other rows' 200K."""
LEARNED = {"diffusion.variance": "learned_range"}
SIMPLE = {"diffusion.loss": "simple", "diffusion.variance": "fixed_large"}
HYBRID = {"diffusion.loss": "hybrid", **LEARNED}
BASELINE = "1K linear simple"
"""DDPM's own."""
DROPOUT = {"linear": 0.1, "cosine": 0.3}
"""Of CIFAR-10, each the best of 0.1, 0.2 and 0.3 (Improved DDPM, appendix A)."""


def iddpm_cifar10(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, table 2 (CIFAR-10): T, schedule and loss against NLL and FID."""
    return Experiment(
        name="iddpm-cifar10",
        title="Improved DDPM, table 2",
        question=QUESTION,
        source="Nichol & Dhariwal 2021, table 2: CIFAR-10, 500K iterations",
        base=base,
        seeds=seeds,
        variants=_rows(base),
        columns=(NLL, frechet(base), KID),
        paper_columns=(PAPER_NLL, PAPER_FID),
        paper={
            "1K linear simple": {"nll_bpd": 3.73, "fid": 3.29},
            "4K linear simple": {"nll_bpd": 3.37, "fid": 2.90},
            "4K linear hybrid": {"nll_bpd": 3.26, "fid": 3.07},
            "4K cosine simple": {"nll_bpd": 3.26, "fid": 3.05},
            "4K cosine hybrid": {"nll_bpd": 3.17, "fid": 3.19},
            "4K cosine vlb": {"nll_bpd": 2.94, "fid": 11.47},
        },
        claims=_claims(frechet_name(base.features), vlb="4K cosine vlb"),
        against={row: BASELINE for row in _rows(base) if row != BASELINE},
    )  # fmt: skip


def iddpm_imagenet64(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, table 1 (ImageNet 64x64): the same rows, and two that are trained 7.5 times as long.

    The longer rows go on from the shorter ones.
    """
    longer = round(LONGER * base.train.images / base.train.batch_size) * base.train.batch_size
    rows = _rows(base)
    on = {"train.images": longer, "milestones": (base.train.images,)}
    rows |= {f"{row}, 7.5 times": {**rows[row], **on} for row in ("4K cosine hybrid", "4K cosine vlb")}
    return Experiment(
        name="iddpm-imagenet64",
        title="Improved DDPM, table 1",
        question=QUESTION,
        source="Nichol & Dhariwal 2021, table 1: ImageNet 64x64, 200K iterations, the last two rows 1.5M",
        base=base,
        seeds=seeds,
        variants=rows,
        columns=(NLL, frechet(base), KID),
        paper_columns=(PAPER_NLL, PAPER_FID),
        paper={
            "1K linear simple": {"nll_bpd": 3.99, "fid": 32.5},
            "4K linear simple": {"nll_bpd": 3.77, "fid": 31.3},
            "4K linear hybrid": {"nll_bpd": 3.66, "fid": 32.2},
            "4K cosine simple": {"nll_bpd": 3.68, "fid": 27.0},
            "4K cosine hybrid": {"nll_bpd": 3.62, "fid": 28.0},
            "4K cosine vlb": {"nll_bpd": 3.57, "fid": 56.7},
            "4K cosine hybrid, 7.5 times": {"nll_bpd": 3.57, "fid": 19.2},
            "4K cosine vlb, 7.5 times": {"nll_bpd": 3.53, "fid": 40.1},
        },
        claims=(
            *_claims(frechet_name(base.features), vlb=None),
            Better(
                text="longer training helps", metric="nll_bpd", better="4K cosine hybrid, 7.5 times",
                worse="4K cosine hybrid",
            ),
            Better(
                text="longer training helps", metric=frechet_name(base.features), better="4K cosine hybrid, 7.5 times",
                worse="4K cosine hybrid",
            ),
        ),
        against={row: BASELINE for row in rows if row != BASELINE},
    )  # fmt: skip


def iddpm_nll(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, table 3 (CIFAR-10): L_vlb beside L_hybrid, DDPM's objective and other kinds of models."""
    rows = _rows(base)
    names = {"Improved DDPM (L_vlb)": "4K cosine vlb", "L_hybrid": "4K cosine hybrid", "DDPM": "1K linear simple"}
    return Experiment(
        name="iddpm-nll",
        title="Improved DDPM, table 3",
        question=QUESTION_NLL,
        source="Nichol & Dhariwal 2021, table 3: CIFAR-10 (L_hybrid: table 2)",
        base=base,
        seeds=seeds,
        variants={name: rows[row] for name, row in names.items()},
        columns=(NLL,),
        paper_columns=(PAPER_NLL,),
        paper={
            "Improved DDPM (L_vlb)": {"nll_bpd": 2.94},
            "L_hybrid": {"nll_bpd": 3.17},
            "DDPM": {"nll_bpd": 3.70},
        },
        literature={name: {"nll_bpd": value} for name, value in OTHER_LIKELIHOODS.items()},
        claims=(
            Better(text="learned variances and L_vlb beat DDPM", metric="nll_bpd", better="Improved DDPM (L_vlb)",
                   worse="DDPM"),
            Better(text="L_vlb beats L_hybrid", metric="nll_bpd", better="Improved DDPM (L_vlb)", worse="L_hybrid"),
        ),
    )  # fmt: skip


OTHER_LIKELIHOODS = {
    "Glow": 3.35, "PixelCNN": 3.14, "Flow++": 3.08, "NVAE": 2.91, "Image Transformer": 2.90, "Very Deep VAE": 2.87,
    "PixelSNAIL": 2.85, "Sparse Transformer": 2.80,
}  # fmt: skip
"""Bits/dim on CIFAR-10 that the table prints of others."""


def _rows(base: RunConfig) -> dict[str, dict[str, Any]]:
    chosen: dict[str, tuple[int, str, dict[str, Any]]] = {
        "1K linear simple": (1000, "linear", SIMPLE),
        "4K linear simple": (4000, "linear", SIMPLE),
        "4K linear hybrid": (4000, "linear", HYBRID),
        "4K cosine simple": (4000, "cosine", SIMPLE),
        "4K cosine hybrid": (4000, "cosine", HYBRID),
        "4K cosine vlb": (
            4000, "cosine",
            {"diffusion.loss": "vlb", **LEARNED, "train.timesteps.kind": "loss_second_moment",
             "train.timesteps.pools": _pools(base)},
        ),
    }  # fmt: skip
    return {
        row: {
            "diffusion.num_timesteps": num_timesteps, "diffusion.schedule": schedule, **loss,
            **({"model.dropout": DROPOUT[schedule]} if base.model.dropout else {}),
        }
        for row, (num_timesteps, schedule, loss) in chosen.items()
    }  # fmt: skip


def _claims(distance: str, *, vlb: str | None) -> tuple[Claim, ...]:
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
        *_of_vlb(distance, vlb),
    )


def _of_vlb(distance: str, row: str | None) -> tuple[Claim, ...]:
    """Where all rows are trained as long."""
    if row is None:
        return ()
    return (
        Extreme(text="vlb has the best NLL", metric="nll_bpd", variant=row, which="best"),
        Extreme(text="vlb has the worst FID", metric=distance, variant=row, which="worst"),
        Extreme(text="vlb has the worst FID", metric="kid", variant=row, which="worst"),
    )


def _pools(base: RunConfig) -> int | None:
    """A loss history for each t, as in the paper, unless filling them would take more than a tenth of the run."""
    return None if base.train.images >= 10 * IMAGES_TO_FILL else FEW_POOLS
