"""What do T, schedule and loss do? Improved DDPM's table 2, as data."""

from __future__ import annotations

from orchestrator.experiment import Better, Claim, Column, Experiment, Extreme, PaperColumn
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name

QUESTION = "Which T, schedule and loss buy likelihood, and what do they cost in FID?"
IMAGES_TO_FILL = 103_000
"""Uniform draws of t until each of 4000 had ten: the median of simulated runs."""
FEW_POOLS = 60
LEARNED = {"diffusion.variance": "learned_range"}
SIMPLE = {"diffusion.loss": "simple", "diffusion.variance": "fixed_large"}
HYBRID = {"diffusion.loss": "hybrid", **LEARNED}


def iddpm_cifar10(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, table 2 (CIFAR-10): T, schedule and loss against NLL and FID."""
    return Experiment(
        name="iddpm-cifar10",
        title="Improved DDPM, table 2",
        question=QUESTION,
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
