"""How few steps does a sample take? Improved DDPM's figure 8 and ADM's tables 15 and 16, as data: evaluation alone."""

from __future__ import annotations

from typing import Any

from orchestrator.experiment import Axis, Better, Experiment
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import KID, NLL, PAPER_FID, frechet
from pipelines.studies.objectives import HYBRID, SIMPLE

QUESTION = "How many sampling steps does a model need, by its objective and its sampler?"
QUESTION_SCHEDULES = "Where in the chain are 250 sampling steps best spent?"
STEPS = (25, 50, 100, 200, 400, 1000)
"""And all T."""
FEW, MANY = 25, 100

SWEPT = {
    "50,50,50,50,50": 2.31,
    "70,60,50,40,30": 2.17,
    "90,50,40,40,30": 2.10,
    "90,60,50,30,20": 2.09,
    "80,60,50,30,30": 2.09,
    "90,50,50,30,30": 2.07,
    "100,50,40,30,30": 2.03,
    "90,60,60,20,20": 2.02,
}
"""FID on LSUN bedroom by the steps in each fifth of the chain, the first fifth being the one next to the image."""
ALL_STEPS = 1.90
BUDGET = 250


def iddpm_sampling_steps(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """Improved DDPM, figure 8: FID and NLL against the number of steps K, of two trained models.

    The bound is of the respaced chain. The paper adds its first T/K steps for that, as striding alone harms the bound
    (appendix E); here the chain is the one that the samples are drawn with.
    """
    everywhere = base.diffusion.num_timesteps
    counts = (*(count for count in STEPS if count < everywhere), everywhere)
    variants: dict[str, dict[str, Any]] = {}
    points: dict[str, tuple[str, float]] = {}
    for loss, settings in (("L_simple", SIMPLE), ("L_hybrid", HYBRID)):
        for kind in ("ancestral", "ddim"):
            for count in counts:
                row = row_name(loss, kind, count)
                respacing = "" if count == everywhere else str(count)
                ddim = {"sample.sampler.kind": "ddim"} if kind == "ddim" else {}
                variants[row] = {
                    **settings, **ddim, "sample.sampler.respacing": respacing, "nll.respacing": respacing
                }  # fmt: skip
                points[row] = (f"{loss}, {kind}", float(count))
    return Experiment(
        name="iddpm-sampling-steps",
        title="Improved DDPM, figure 8",
        question=QUESTION,
        source="Nichol & Dhariwal 2021, figure 8 (curves; no numbers are printed): ImageNet 64x64 and CIFAR-10",
        base=base,
        seeds=seeds,
        variants=variants,
        columns=(frechet(base), KID, NLL),
        paper={},
        claims=_claims(frechet_name(base.features), everywhere),
        varies=("sampler", "chain"),
        axis=Axis(label="sampling steps K", points=points, log=True),
    )


def row_name(loss: str, kind: str, count: int) -> str:
    """What the table calls it."""
    return f"{loss}, {kind}, {count:,}"


def _claims(distance: str, everywhere: int) -> tuple[Better, ...]:
    def better(text: str, first: tuple[str, str, int], second: tuple[str, str, int], metric: str) -> Better:
        return Better(text=text, metric=metric, better=row_name(*first), worse=row_name(*second))

    simple, hybrid, ddim = ("L_simple", "ancestral"), ("L_hybrid", "ancestral"), ("L_hybrid", "ddim")
    claims = [
        better(f"L_simple suffers from {FEW} steps", (*simple, everywhere), (*simple, FEW), distance),
        better(f"L_hybrid beats L_simple at {FEW} steps", (*hybrid, FEW), (*simple, FEW), distance),
        better(f"DDIM is better below 50 steps ({FEW})", (*ddim, FEW), (*hybrid, FEW), distance),
        better(f"L_hybrid's bound beats L_simple's at {FEW} steps", (*hybrid, FEW), (*simple, FEW), "nll_bpd"),
    ]
    if everywhere > MANY:
        claims += [
            better(f"L_hybrid beats L_simple at {MANY} steps", (*hybrid, MANY), (*simple, MANY), distance),
            better(f"DDIM is worse from 50 steps on ({MANY})", (*hybrid, MANY), (*ddim, MANY), distance),
        ]
    return tuple(claims)


def adm_schedules(base: RunConfig, seeds: tuple[int, ...]) -> Experiment[RunConfig]:
    """ADM, tables 15 and 16: 250 steps spread evenly or by section, and all of them.

    A smaller chain has its share of them: base.sample.sampler.respacing says how many take the place of 250. Raises
    ValueError where that is no count that the paper's sections can be scaled to.
    """
    budget = _budget(base)
    rows = {f"all {base.diffusion.num_timesteps:,} steps": ("", ALL_STEPS)}
    for sections, fid in SWEPT.items():
        scaled = ",".join(str(int(count) * budget // BUDGET) for count in sections.split(","))
        rows[sections if budget == BUDGET else f"{scaled} (of {sections})"] = (scaled, fid)
    every, uniform, *_, best = rows
    return Experiment(
        name="adm-schedules",
        title="ADM, tables 15 and 16",
        question=QUESTION_SCHEDULES,
        source="Dhariwal & Nichol 2021, tables 15 and 16: LSUN bedroom 256x256",
        base=base,
        seeds=seeds,
        variants={row: {"sample.sampler.respacing": respacing} for row, (respacing, _) in rows.items()},
        columns=(frechet(base), KID),
        paper_columns=(PAPER_FID,),
        paper={row: {"fid": fid} for row, (_, fid) in rows.items()},
        claims=(
            Better(text="the swept schedule beats even steps", metric=frechet_name(base.features), better=best,
                   worse=uniform),
            Better(text="all steps beat even ones", metric=frechet_name(base.features), better=every,
                   worse=uniform),
        ),
        against={row: uniform for row in rows if row != uniform},
        varies=("sampler",),
    )  # fmt: skip


def _budget(base: RunConfig) -> int:
    written = base.sample.sampler.respacing
    unit = BUDGET // 10  # every section of the paper is a multiple of 10 steps
    if not written.isdecimal() or int(written) % unit or int(written) == 0:
        raise ValueError(
            f"sample.sampler.respacing={written!r}: the steps that take the place of the paper's {BUDGET}, a multiple "
            f"of {unit}"
        )
    return int(written)
