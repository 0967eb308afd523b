"""How well does a model predict held-out images? The variational bound on NLL in bits/dim, with its standard error.

python pipelines/nll.py tiny --store artifacts
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.ema import rate_name
from diffusion.likelihood import Cdf
from diffusion.nll import FEWEST_IMAGES, NllEstimate, is_within, nll_estimate, nll_full, pilot, summarize
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import Block, map_blocks, worker_device
from pipelines.data import read_split
from pipelines.train import TrainedModel, TrainStepConfig, load_trained, to_tensor, to_unit_range, trained_config

VERSION = 2
BLOCK = 64  # images a worker evaluates at a time
PILOT_IMAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class AllTerms:
    """Every one of the T terms, each with one noise: T forwards an image."""

    kind: Literal["all"] = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnTerms:
    """An unbiased estimate: in each round L_0, and some of the other terms drawn by importance. The prior is exact."""

    kind: Literal["drawn"] = "drawn"
    draws: int = 7
    """Terms drawn per image and round."""
    rounds: int = 2
    """From two on, the error that the draws leave is known. With interval_bpd, the most there may be."""
    interval_bpd: float | None = None
    """Stop before that once the mean that all terms would give is known to +- so much, with 95 % confidence."""

    def __post_init__(self) -> None:
        if self.draws < 1 or self.rounds < 1:
            raise ValueError(
                f"nll.terms.draws={self.draws}, nll.terms.rounds={self.rounds}: both must be at least 1; for all T "
                f"terms set nll.terms.kind=all"
            )
        if self.interval_bpd is not None and not (0 < self.interval_bpd < math.inf and self.rounds >= 2):
            raise ValueError(
                f"nll.terms.interval_bpd={self.interval_bpd}, nll.terms.rounds={self.rounds}: an interval is more than "
                f"0 and takes at least 2 rounds to know"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NllConfig:
    """How the bound is measured."""

    terms: AllTerms | DrawnTerms = field(default_factory=DrawnTerms)
    """Which terms of the bound are evaluated."""
    images: int | None = None
    """How many test images, in the data set's order; None takes all."""
    cdf: Cdf = "approximate"
    """The normal CDF in the decoder: published is the tanh approximation."""
    seed: int = 0
    """Seed of the noise: the same in every row of a table."""

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise ValueError(f"nll.images={self.images}: a standard error needs at least 2 images; null takes all")
        until = self.terms.interval_bpd if isinstance(self.terms, DrawnTerms) else None
        if until is not None and self.images is not None and self.images < FEWEST_IMAGES:
            raise ValueError(
                f"nll.images={self.images}: nll.terms.interval_bpd needs at least {FEWEST_IMAGES} images to know its "
                f"width"
            )


def nll_step(config: NllConfig, *, train: Step, dataset: Step) -> Step:
    """NLL as a step of a plan."""
    return Step(name="nll", version=VERSION, config=config, inputs={"train": train, "dataset": dataset}, run=measure)


def measure(config: NllConfig, ctx: StepContext) -> None:
    """Measure the bound on the test split; nll.npz has every round of every image."""
    images = len(read_split(ctx.inputs["dataset"], "test").images[: config.images])
    where = (ctx.inputs["train"], ctx.inputs["dataset"], ctx.resources)
    if isinstance(config.terms, AllTerms):
        rounds = map_blocks(ctx, partial(measure_all, config, *where), images, block_size=BLOCK)[None]
    else:
        rounds = _measure_rounds(config, config.terms, where, images, ctx)
    np.savez(ctx.output / "nll.npz", nll_bpd=rounds)
    estimate = summarize(torch.from_numpy(rounds))
    ctx.write_metrics(
        summary(estimate), protocol={"nll_bpd": protocol(config, estimate, trained_config(ctx.inputs["train"]))}
    )


def _measure_rounds(
    config: NllConfig, terms: DrawnTerms, where: tuple[Path, Path, Resources], images: int, ctx: StepContext
) -> np.ndarray:
    pilot_block = (0, min(PILOT_IMAGES, images))
    (density,) = ctx.backend.map(partial(measure_pilot, config, *where), [pilot_block], resources=ctx.resources)
    rounds: list[np.ndarray] = []
    while len(rounds) < terms.rounds:
        work = partial(measure_drawn, config, *where, density, len(rounds))
        rounds.append(map_blocks(ctx, work, images, block_size=BLOCK, pass_number=len(rounds) + 1, passes=terms.rounds))
        estimate = summarize(torch.from_numpy(np.stack(rounds)))
        if terms.interval_bpd is not None and is_within(estimate, terms.interval_bpd):
            break
    return np.stack(rounds)


def summary(estimate: NllEstimate) -> dict[str, float]:
    """Mean bits/dim, its standard error as a whole, and the part of it that more draws would take away."""
    said = {
        "nll_bpd": estimate.mean_bpd,
        "nll_bpd_se": estimate.standard_error,
        "nll_images": float(estimate.images),
        "nll_rounds": float(estimate.rounds),
    }
    if estimate.standard_error_of_draws is not None:
        said["nll_bpd_se_draws"] = estimate.standard_error_of_draws
    return said


def protocol(config: NllConfig, estimate: NllEstimate, trained: TrainStepConfig) -> dict[str, str | int]:
    """What two NLLs must share to be compared. How many rounds an interval took is not among it."""
    return {
        "bound": _bound(config.terms),
        "decoder": f"{config.cdf} CDF",
        "split": "test",
        "images": estimate.images,
        "weights": f"EMA {rate_name(trained.train.ema.rates[0])}",
        "x_start": "clipped",
        "seed": config.seed,
    }


def _bound(terms: AllTerms | DrawnTerms) -> str:
    if isinstance(terms, AllTerms):
        return "all T terms"
    if terms.interval_bpd is not None:
        return f"L_0 and importance-drawn terms, to +-{terms.interval_bpd:g} of all T terms (95 %)"
    return f"L_0 and {terms.draws} importance-drawn terms per image, {terms.rounds} times"


def measure_pilot(config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block) -> Tensor:
    """The density from which the terms of all blocks are drawn, from the images of one."""
    model, x_start = _load(train, dataset, resources, block)
    return pilot(model.diffusion, model.schedule, model.network, x_start=x_start, seed=config.seed, cdf=config.cdf)


def measure_drawn(
    config: NllConfig, train: Path, dataset: Path, resources: Resources, density: Tensor, round: int, block: Block
) -> np.ndarray:
    """One round of the block's test images, in bits/dim, float64."""
    assert isinstance(config.terms, DrawnTerms)
    model, x_start = _load(train, dataset, resources, block)
    index = torch.arange(*block, device=x_start.device)
    bits = nll_estimate(
        model.diffusion, model.schedule, model.network, x_start=x_start, index=index, seed=config.seed,
        density=density, draws=config.terms.draws, round=round, cdf=config.cdf,
    )  # fmt: skip
    return bits.double().cpu().numpy()


def measure_all(config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block) -> np.ndarray:
    """The whole bound of the block's test images, in bits/dim, float64."""
    model, x_start = _load(train, dataset, resources, block)
    index = torch.arange(*block, device=x_start.device)
    found = nll_full(
        model.diffusion, model.schedule, model.network, x_start=x_start, index=index, seed=config.seed,
        cdf=config.cdf,
    )  # fmt: skip
    return found.total_bpd.double().cpu().numpy()


def _load(train: Path, dataset: Path, resources: Resources, block: Block) -> tuple[TrainedModel, Tensor]:
    """The model and the block's test images, on this worker's device."""
    device = worker_device(resources)
    images = read_split(dataset, "test").images[slice(*block)]
    return load_trained(train, device=device), to_unit_range(to_tensor(images)).to(device)


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("nll", "Measure a model's NLL in bits/dim on held-out images."))
