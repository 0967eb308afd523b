"""How well does a model predict held-out images? The variational bound on NLL in bits/dim, with its standard error.

python pipelines/nll.py tiny --store artifacts
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.gaussian import DiffusionConfig, build_schedule
from diffusion.likelihood import Cdf
from diffusion.nll import (
    FEWEST_IMAGES,
    NllEstimate,
    is_within,
    nll_estimate,
    nll_full,
    pilot,
    prior_bpd,
    summarize,
)
from diffusion.schedule import respace
from diffusion.unet import UNet
from orchestrator.protocols import MEASURED_WITH
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import WORKING, Block, Kept, kept_arrays, map_blocks
from pipelines.decoded import MIB
from pipelines.devices import worker_device
from pipelines.libraries import versions
from pipelines.readers import read_rows
from pipelines.shards import count_images
from pipelines.train import to_unit_range
from pipelines.trained import Origin, TrainedModel, load_trained

VERSION = 5
BLOCK = 64  # images a worker evaluates at a time
PILOT_IMAGES = 8
NLL_FILE = "nll.npz"

Where = tuple[Path, Path, Resources]
"""The trained model, the data set, and what a worker may use."""


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
    """Stop before that once the mean that all terms give on average is known to +- so much, with 95 % confidence."""

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
    respacing: str = ""
    """Of which chain: "" all T steps, otherwise a shorter one, written as in sample.sampler.respacing."""
    clip_denoised: bool = True
    ema: float | None = None
    """Rate of the average that is measured; null: the first of train.ema.rates."""
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


@dataclass(frozen=True)
class BlockNll:
    """What a worker measured of its block of n images, in float64."""

    nll_bpd: np.ndarray
    """(n,): the bound, prior included."""
    prior_bpd: np.ndarray
    """(n,): the part of it that is exact."""
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """Of all terms, by name, (T,): sums over the images, step t at index t."""


def measure(config: NllConfig, ctx: StepContext) -> None:
    """Measure the bound on the test split.

    nll.npz has nll_bpd (rounds, images) and prior_bpd (images,). Of all terms it also has terms_bpd, xstart_mse and
    eps_mse, means over the images, and timestep, the step of the model's own chain: (T,) each, in increasing t.
    """
    held_out = count_images(ctx.inputs["dataset"], "test")
    images = min(held_out, config.images or held_out)
    if isinstance(config.terms, DrawnTerms) and config.terms.interval_bpd is not None and images < FEWEST_IMAGES:
        raise ValueError(
            f"nll.terms.interval_bpd={config.terms.interval_bpd}: the {images} test images are too few to know an "
            f"interval's width, at least {FEWEST_IMAGES}; set it to null"
        )
    where = (ctx.inputs["train"], ctx.inputs["dataset"], ctx.resources)
    origin = Origin.read(ctx.inputs["train"])
    found = (
        _measure_all_terms(config, where, images, origin.diffusion, ctx)
        if isinstance(config.terms, AllTerms)
        else _measure_rounds(config, config.terms, where, images, ctx)
    )
    np.savez(ctx.output / NLL_FILE, **found)  # type: ignore[arg-type]  # its stub takes the arrays for allow_pickle
    estimate = summarize(torch.from_numpy(found["nll_bpd"]))
    metrics = {**summary(estimate), "prior_bpd": float(found["prior_bpd"].mean())}
    ctx.write_metrics(metrics, protocol={"nll_bpd": protocol(config, estimate, weights=origin.weights(config.ema))})


def _measure_all_terms(
    config: NllConfig, where: Where, images: int, diffusion: DiffusionConfig, ctx: StepContext
) -> dict[str, np.ndarray]:
    work = partial(measure_all, config, *where)
    blocks = map_blocks(ctx, work, images, block_size=BLOCK, kept=_kept(ctx, "all"))
    means = {name: np.sum([block.sums[name] for block in blocks], axis=0) / images for name in blocks[0].sums}
    timestep = respace(build_schedule(diffusion), config.respacing).timestep_map.numpy()
    return {
        "nll_bpd": np.concatenate([block.nll_bpd for block in blocks])[None],
        "prior_bpd": np.concatenate([block.prior_bpd for block in blocks]),
        **means,
        "timestep": timestep,
    }


def _measure_rounds(
    config: NllConfig, terms: DrawnTerms, where: Where, images: int, ctx: StepContext
) -> dict[str, np.ndarray]:
    pilot_block = (0, min(PILOT_IMAGES, images))
    (density,) = ctx.backend.map(partial(measure_pilot, config, *where), [pilot_block], resources=ctx.resources)
    rounds: list[np.ndarray] = []
    while len(rounds) < terms.rounds:
        work = partial(measure_drawn, config, *where, density, len(rounds))
        blocks = map_blocks(
            ctx, work, images, block_size=BLOCK, pass_number=len(rounds) + 1, passes=terms.rounds,
            kept=_kept(ctx, f"round-{len(rounds)}"),
        )  # fmt: skip
        rounds.append(np.concatenate([block.nll_bpd for block in blocks]))
        estimate = summarize(torch.from_numpy(np.stack(rounds)))
        if terms.interval_bpd is not None and is_within(estimate, terms.interval_bpd):
            break
    return {"nll_bpd": np.stack(rounds), "prior_bpd": np.concatenate([block.prior_bpd for block in blocks])}


def _kept(ctx: StepContext, name: str) -> Kept[BlockNll]:
    """Where blocks stay until the step is done."""
    own = ("nll_bpd", "prior_bpd")
    return kept_arrays(
        ctx.output / WORKING / name,
        VERSION,
        lambda block: {"nll_bpd": block.nll_bpd, "prior_bpd": block.prior_bpd, **block.sums},
        lambda arrays: BlockNll(
            arrays["nll_bpd"], arrays["prior_bpd"], {key: arrays[key] for key in arrays if key not in own}
        ),
    )


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


def protocol(config: NllConfig, estimate: NllEstimate, *, weights: str) -> dict[str, Any]:
    """What two NLLs must share to be compared. How many rounds an interval took is not among it."""
    return {
        "bound": _bound(config.terms),
        "chain": f"respacing {config.respacing}" if config.respacing else "all T steps",
        "decoder": f"{config.cdf} CDF",
        "split": "test",
        "images": estimate.images,
        "weights": weights,
        "x_start": "clipped" if config.clip_denoised else "not clipped",
        "seed": config.seed,
        MEASURED_WITH: {"nll": versions("torch", "numpy")},
    }


def _bound(terms: AllTerms | DrawnTerms) -> str:
    if isinstance(terms, AllTerms):
        return "all T terms"
    if terms.interval_bpd is not None:
        return f"L_0 and importance-drawn terms, to +-{terms.interval_bpd:g} of all T terms (95 %)"
    return f"L_0 and {terms.draws} importance-drawn terms per image, {terms.rounds} times"


def measure_pilot(config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block) -> Tensor:
    """The density from which the terms of all blocks are drawn, from the images of one."""
    model, x_start, y = _load(config, train, dataset, resources, block)
    with model.in_use():
        return pilot(
            model.diffusion, model.schedule, model.network, x_start=x_start, y=y, seed=config.seed,
            clip_denoised=config.clip_denoised, cdf=config.cdf,
        )  # fmt: skip


def measure_drawn(
    config: NllConfig, train: Path, dataset: Path, resources: Resources, density: Tensor, round: int, block: Block
) -> BlockNll:
    """One round of the block's test images."""
    assert isinstance(config.terms, DrawnTerms)
    model, x_start, y = _load(config, train, dataset, resources, block)
    with model.in_use():
        bits = nll_estimate(
            model.diffusion, model.schedule, model.network, x_start=x_start, y=y, seed=config.seed, density=density,
            index=torch.arange(*block, device=x_start.device), draws=config.terms.draws, round=round,
            clip_denoised=config.clip_denoised, cdf=config.cdf,
        )  # fmt: skip
    return BlockNll(_array(bits), _array(prior_bpd(model.schedule, x_start)))


def measure_all(config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block) -> BlockNll:
    """The whole bound of the block's test images."""
    model, x_start, y = _load(config, train, dataset, resources, block)
    with model.in_use():
        found = nll_full(
            model.diffusion, model.schedule, model.network, x_start=x_start, y=y, seed=config.seed,
            index=torch.arange(*block, device=x_start.device), clip_denoised=config.clip_denoised, cdf=config.cdf,
        )  # fmt: skip
    curves = {"terms_bpd": found.terms, "xstart_mse": found.xstart_mse, "eps_mse": found.eps_mse}
    sums = {name: _array(values.sum(dim=0)) for name, values in curves.items()}
    return BlockNll(_array(found.total_bpd), _array(found.prior_bpd), sums)


def load_block(
    train: Path, dataset: Path, resources: Resources, block: Block, *, ema: float | None = None
) -> tuple[TrainedModel[UNet], Tensor, Tensor | None]:
    """The model, the block's test images, and their classes where it is told them; on the worker's device."""
    device = worker_device(resources)
    stored = read_rows(dataset, "test", slice(*block), memory_bytes=resources.data_mib * MIB)
    model = load_trained(train, device=device, ema=ema)
    y = None if model.network.config.num_classes is None else stored.labels.to(device)
    return model, to_unit_range(stored.images).to(device), y


def _load(
    config: NllConfig, train: Path, dataset: Path, resources: Resources, block: Block
) -> tuple[TrainedModel[UNet], Tensor, Tensor | None]:
    """The same, with the chain that is measured."""
    model, x_start, y = load_block(train, dataset, resources, block, ema=config.ema)
    return replace(model, schedule=respace(model.schedule, config.respacing)), x_start, y


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


if __name__ == "__main__":
    from pipelines.cli import run
    from pipelines.single import command  # needs this module under its own name

    run(command("nll", "Measure a model's NLL in bits/dim on held-out images."))
