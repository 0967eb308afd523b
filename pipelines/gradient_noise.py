"""How noisy is a trained model's gradient, with t drawn evenly and with t drawn by importance (IDDPM section 3.3)?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffusion.gaussian import VLB_WEIGHT, DiffusionConfig
from diffusion.gradient_noise import (
    FEWEST_MICROBATCHES,
    MEASURED,
    PILOT_PASS,
    MicrobatchGradient,
    NoiseScale,
    inner_products,
    learned_density,
    microbatch_gradient,
    noise_scale,
    uniform_density,
)
from diffusion.objectives import DiffusionObjective, Examples
from diffusion.randomness import GRADIENT_IMAGE, uniform
from diffusion.timestep_sampler import LossSecondMomentConfig
from orchestrator.step import Resources, Step, StepContext
from pipelines.blocks import WORKING, Block, Kept, kept_arrays, map_blocks
from pipelines.decoded import MIB
from pipelines.devices import worker_device
from pipelines.readers import read_rows
from pipelines.shards import count_images
from pipelines.train import examples_of
from pipelines.trained import Origin, TrainedModel, load_trained

VERSION = 1
GRADIENT_NOISE_FILE = "gradient_noise.npz"
SAMPLERS = ("uniform", "importance")
"""Of t, in the order of the file's first axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientNoiseConfig:
    """On what the noise is measured, and of which loss. The driver holds a gradient of each microbatch."""

    loss: Literal["simple", "vlb", "hybrid"] | None = None
    """None: the one the model was trained with."""
    microbatches: int = 32
    microbatch: int = 64
    """Examples of each, drawn from the training images with replacement: a backward pass for each example."""
    importance: LossSecondMomentConfig = field(default_factory=lambda: LossSecondMomentConfig(pools=60))
    """How t is drawn by importance. Its histories are filled by a pilot pass, which of pools takes a thousand examples
    and without them a hundred thousand."""
    seed: int = 0
    """Seed of the images, t and noise: the same for every model."""

    def __post_init__(self) -> None:
        if self.microbatches < FEWEST_MICROBATCHES or self.microbatch < 1:
            raise ValueError(
                f"gradient_noise.microbatches={self.microbatches}, gradient_noise.microbatch={self.microbatch}: at "
                f"least {FEWEST_MICROBATCHES} of at least 1 example"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"gradient_noise.seed={self.seed}: must be between 0 and 2^64-1")


def gradient_noise_step(config: GradientNoiseConfig, *, train: Step, dataset: Step) -> Step:
    """Measuring it as a step. Raises ValueError for a loss that the model's variance cannot have."""
    measured_diffusion(config, train.config.diffusion)
    return Step(
        name="gradient_noise", version=VERSION, config=config, inputs={"train": train, "dataset": dataset}, run=measure
    )


def measured_diffusion(config: GradientNoiseConfig, trained: DiffusionConfig) -> DiffusionConfig:
    """The process a model was trained for, with the loss whose gradient is measured."""
    if config.loss is None:
        return trained
    weight = trained.vlb_weight if config.loss == "hybrid" else VLB_WEIGHT  # no other loss has one
    return replace(trained, loss=config.loss, vlb_weight=weight)


def measure(config: GradientNoiseConfig, ctx: StepContext) -> None:
    """Measure the noise that both samplers of t would leave, from the same gradients.

    gradient_noise.npz has, by sampler in the order of SAMPLERS, noise_scale and standard_error (nan where noise hides
    the gradient), trace and grad_norm2, (2,) each, and what they are from: inner products of the m microbatches'
    gradients (m, m), their second moments (2, m), and each sampler's density of t (2, T).
    """
    where = (ctx.inputs["train"], ctx.inputs["dataset"], ctx.resources)
    origin = Origin.read(ctx.inputs["train"])
    (learned,) = ctx.backend.map(partial(learn_importance, config, *where), [PILOT_PASS], resources=ctx.resources)
    densities = torch.stack([uniform_density(len(learned)), learned])
    work = partial(measure_microbatch, config, *where, densities)
    count = config.microbatches * config.microbatch
    found = map_blocks(ctx, work, count, block_size=config.microbatch, kept=_kept(ctx))
    products = inner_products([one.mean for one in found])
    second_moments = torch.stack([one.second_moments for one in found], dim=1)
    scales = [noise_scale(products, of_sampler) for of_sampler in second_moments]
    raw = {"products": products, "second_moments": second_moments, "densities": densities}
    arrays = {**_arrays(scales), **{name: values.numpy() for name, values in raw.items()}}
    np.savez(ctx.output / GRADIENT_NOISE_FILE, **arrays)  # type: ignore[arg-type]  # its stub's allow_pickle
    metrics = {"gradient_norm2": scales[0].grad_norm2}
    for sampler, scale in zip(SAMPLERS, scales, strict=True):
        metrics |= _metrics(sampler, scale)
    how = protocol(config, origin)
    notes = [] if scales[0].noise_scale is not None else [_hidden(config)]
    ctx.write_metrics(metrics, protocol={name: how for name in metrics if not name.endswith("_se")}, notes=notes)


def _kept(ctx: StepContext) -> Kept[MicrobatchGradient]:
    return kept_arrays(
        ctx.output / WORKING / "microbatches",
        VERSION,
        lambda one: {"mean": one.mean.numpy(), "second_moments": one.second_moments.numpy()},
        lambda arrays: MicrobatchGradient(*(torch.from_numpy(arrays[name]) for name in ("mean", "second_moments"))),
    )


def _arrays(found: list[NoiseScale]) -> dict[str, np.ndarray]:
    names = ("noise_scale", "standard_error", "trace", "grad_norm2")
    return {name: np.array([getattr(one, name) for one in found], dtype=np.float64) for name in names}


def _metrics(sampler: str, scale: NoiseScale) -> dict[str, float]:
    said = {f"gradient_trace_{sampler}": scale.trace}
    if scale.noise_scale is not None and scale.standard_error is not None:
        said[f"noise_scale_{sampler}"] = scale.noise_scale
        said[f"noise_scale_{sampler}_se"] = scale.standard_error
    return said


def _hidden(config: GradientNoiseConfig) -> str:
    return (
        f"the mean gradient of {config.microbatches * config.microbatch} examples is hidden by its noise, whose scale "
        f"is not known: raise gradient_noise.microbatches or gradient_noise.microbatch"
    )


def protocol(config: GradientNoiseConfig, origin: Origin) -> dict[str, str | int]:
    """What two noise scales must share to be compared. The loss is the model's own."""
    importance = config.importance
    return {
        "examples": f"{config.microbatches} microbatches of {config.microbatch} training images",
        "importance": f"pools {importance.pools}, history {importance.history_per_term}",
        "weights": origin.weights(None),
        "dropout": "off",
        "precision": "float32",
        "seed": config.seed,
    }


def learn_importance(
    config: GradientNoiseConfig, train: Path, dataset: Path, resources: Resources, step: int
) -> Tensor:
    """The density of t (T,) that a pilot pass, whose draws are those of that step, leads to."""
    device = worker_device(resources)
    model, objective = _load(config, train, device)
    examples = _drawn(config, train, dataset, resources, device, step)
    with model.in_use():
        density = learned_density(
            config.importance, objective, model.network, examples, seed=config.seed, device=device
        )
    return density.cpu()


def measure_microbatch(
    config: GradientNoiseConfig, train: Path, dataset: Path, resources: Resources, densities: Tensor, block: Block
) -> MicrobatchGradient:
    """What the block's examples tell of the gradient, and of its noise under each density of t."""
    device = worker_device(resources)
    model, objective = _load(config, train, device)
    parameters = list(model.network.requires_grad_(True).parameters())
    examples = _drawn(config, train, dataset, resources, device, MEASURED)(torch.arange(*block, device=device))
    with model.in_use():
        found = microbatch_gradient(
            objective, model.network, parameters, examples, densities=densities.to(device), seed=config.seed
        )
    return MicrobatchGradient(found.mean.cpu(), found.second_moments.cpu())


def _load(config: GradientNoiseConfig, train: Path, device: str) -> tuple[TrainedModel, DiffusionObjective]:
    model = load_trained(train, device=device)
    return model, DiffusionObjective(measured_diffusion(config, model.diffusion), model.schedule)


def _drawn(
    config: GradientNoiseConfig, train: Path, dataset: Path, resources: Resources, device: str, step: int
) -> Callable[[Tensor], Examples]:
    """Training images by (seed, step, index), with replacement, as training sees them: mirrored where it mirrors."""
    origin, count = Origin.read(train), count_images(dataset, "train")
    assert origin.train is not None  # the step's input is a training
    as_trained = examples_of(origin.train, config.seed, device, labelled=origin.num_classes is not None)

    def examples(index: Tensor) -> Examples:
        draws = uniform(seed=config.seed, stream=GRADIENT_IMAGE, step=step, index=index.cpu(), count=1)[:, 0]
        rows = (draws * count).long().clamp(max=count - 1).numpy()
        stored = read_rows(dataset, "train", rows, memory_bytes=resources.data_mib * MIB)
        return as_trained(stored, step, index)

    return examples
