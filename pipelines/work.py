"""What does each step of a plan do, and how often? Read off its config, the configs of what it needs, and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion.nll import PILOT_STEPS
from diffusion.schedule import kept_timesteps
from orchestrator.blobs import open_blobs
from orchestrator.checkpoint import CheckpointStore
from orchestrator.planner import TRAINING
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines import drawn, features, nll
from pipelines.features import FeaturesConfig
from pipelines.nll import AllTerms
from pipelines.shards import count_images
from pipelines.timed import Timed, TrainedBy, cost_of, timed_training
from pipelines.timed_evaluation import Comparing, Drawer, SamplerStep, Sight, Term, dimension, numbers
from pipelines.train_classifier import TrainClassifierConfig
from pipelines.train_on import kept_in
from pipelines.weights import WEIGHTS_FILE

FLOAT, DOUBLE, BOTH = 4, 8, 2
"""Bytes of a number; what is kept of blocks stays beside the output."""
CHECKPOINTS = 2
GRIDS = 100_000  # bytes of the pictures beside samples
SMALL = 4_096  # bytes of a step that leaves numbers alone
FORWARDS = 3
"""That a step of training costs on each image: what is only measured costs one."""

Sources = Callable[[Step], Path]
"""Where the artifact of a step without inputs is."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one step."""

    kind: str
    parts: tuple[tuple[Timed, float], ...]
    """What it repeats on each of its workers, and how often."""
    bytes: int
    workers: int
    is_training: bool = False
    """Whether it starts workers of its own, who work together."""
    uses_pool: bool = True
    """Whether its workers are those of a pool, which stays from one step of a cell to the next."""


def work_of(step: Step, store: ArtifactStore, sources: Sources, resources: Resources) -> Work | None:
    """Of a step that has inputs; None for one of a kind that is not known here."""
    if step.name in ("train", "train_classifier", "train_superres"):
        return _training(step, store, sources, resources)
    known = {
        "nll": _likelihood, "sample": _sampling, "upsample": _enlarging, "features": _sight_of_samples,
        "reference": _sight_of_reference, "metrics": _comparing,
    }  # fmt: skip
    return known[step.name](step, sources, resources) if step.name in known else None


def _training(step: Step, store: ArtifactStore, sources: Sources, resources: Resources) -> Work:
    config: TrainedBy = step.config
    before = step.inputs["start"].config.train.images if "start" in step.inputs else 0
    kept = CheckpointStore(open_blobs(kept_in(store.path(step), resources.checkpoints))).clock()
    images = config.train.images - max(before, int(kept))
    alone = step.prefix == "features_classifier_"
    workers = 1 if alone else resources.workers
    steps = images / config.train.batch_size
    if isinstance(config, TrainClassifierConfig):
        seen = config.held_out.images or count_images(sources(step.inputs["dataset"]), "test")
        measured = images // config.held_out.every_images * seen
        steps += measured / FORWARDS / config.train.batch_size
    parameters, rates = cost_of(config).parameters, len(config.train.ema.rates)
    average = DOUBLE if config.train.ema.arithmetic == "float64" else FLOAT
    state = parameters * (3 * FLOAT + rates * average)
    return Work(
        kind=TRAINING,
        parts=((timed_training(config, workers=workers), steps),),
        bytes=parameters * FLOAT * max(rates, 1) + CHECKPOINTS * state,
        workers=workers,
        is_training=True,
        uses_pool=False,
    )


def _likelihood(step: Step, sources: Sources, resources: Resources) -> Work:
    config, trained = step.config, step.inputs["train"].config
    held_out = count_images(sources(step.inputs["dataset"]), "test")
    images = min(held_out, config.images or held_out)
    chain = len(kept_timesteps(trained.diffusion.num_timesteps, config.respacing))
    if isinstance(config.terms, AllTerms):
        each, pilot, rounds = chain, 0, 1
    else:
        rounds = config.terms.rounds
        each, pilot = (config.terms.draws + 1) * rounds, nll.PILOT_IMAGES * min(PILOT_STEPS, chain - 1)
    pairs = min(512, nll.BLOCK * each // rounds, images * each // rounds)
    term = Term(drawer=Drawer.of(trained), pairs=pairs, clip_denoised=config.clip_denoised, cdf=config.cdf)
    workers = _pool(images, nll.BLOCK, resources)
    return Work(
        kind="likelihood",
        parts=((term, pilot + images * each / workers),),
        bytes=BOTH * DOUBLE * images * (rounds + 1),
        workers=workers,
    )


def _sampling(step: Step, sources: Sources, resources: Resources) -> Work:
    steering = step.inputs.get("classifier")
    return _drawing(
        step, "sampling", step.config.count, step.inputs["train"].config, resources,
        classifier=None if steering is None else steering.config.model,
    )  # fmt: skip


def _enlarging(step: Step, sources: Sources, resources: Resources) -> Work:
    return _drawing(step, "sampling", _count(step), step.inputs["upsampler"].config, resources)


def _drawing(step: Step, kind: str, count: int, trained: Any, resources: Resources, *, classifier: Any = None) -> Work:
    drawer, block = Drawer.of(trained), max(drawn.BLOCK, resources.batch or 0)
    together = min(resources.batch or block, block, count)
    sampler = replace(step.config.sampler, respacing="")
    walk = len(kept_timesteps(trained.diffusion.num_timesteps, step.config.sampler.respacing))
    workers, unet = _pool(count, block, resources), drawer.unet
    one = SamplerStep(drawer=drawer, sampler=sampler, images=together, classifier=classifier)
    pixels = unet.image_size**2 * unet.channels
    return Work(
        kind=kind,
        parts=((one, count * walk / workers),),
        bytes=BOTH * count * pixels + GRIDS,
        workers=workers,
    )


def _sight_of_samples(step: Step, sources: Sources, resources: Resources) -> Work:
    count = _count(step.inputs["samples"])
    return _sight(step, step.config, _data_of(step), count, sources, resources, statistics=False)


def _sight_of_reference(step: Step, sources: Sources, resources: Resources) -> Work:
    dataset = step.inputs["dataset"]
    count = count_images(sources(dataset), step.config.split)
    return _sight(step, step.config.network, dataset.config, count, sources, resources, statistics=True)


def _sight(
    step: Step, network: FeaturesConfig, data: Any, count: int, sources: Sources, resources: Resources, *,
    statistics: bool,
) -> Work:  # fmt: skip
    file = sources(step.inputs["weights"]) / WEIGHTS_FILE if "weights" in step.inputs else None
    workers = _pool(count, features.BLOCK, resources)
    one = Sight(config=network, data=data, images=min(count, features.BLOCK), weights=file)
    moments = DOUBLE * dimension(network) ** 2 if statistics else 0
    return Work(
        kind="features and metrics",
        parts=((one, count / workers),),
        bytes=BOTH * FLOAT * count * numbers(network) + moments,
        workers=workers,
    )


def _comparing(step: Step, sources: Sources, resources: Resources) -> Work:
    seen, reference = step.inputs["features"], step.inputs["reference"]
    one = Comparing(
        config=replace(step.config, seed=0),
        features=seen.config,
        samples=_count(seen.inputs["samples"]),
        reference=count_images(sources(reference.inputs["dataset"]), reference.config.split),
    )
    return Work(
        kind="features and metrics", parts=((one, 1.0),), bytes=SMALL, workers=resources.workers, uses_pool=False
    )


def _count(samples: Step) -> int:
    """How many images there are, where they may have been made larger since."""
    return int(samples.config.count) if samples.name == "sample" else _count(samples.inputs["samples"])


def _data_of(seen: Step) -> Any:
    """Of what size the images are that were drawn."""
    trained = seen.inputs["samples"].inputs["upsampler" if seen.inputs["samples"].name == "upsample" else "train"]
    return trained.inputs["dataset"].config


def _pool(count: int, block: int, resources: Resources) -> int:
    """Workers that share so many images in blocks."""
    return min(resources.workers, -(-count // block))
