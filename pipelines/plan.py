"""Which steps make one run? Read this file first: it is the whole way from a data set to a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.step import Step
from pipelines.configs import RunConfig
from pipelines.data import dataset_step
from pipelines.decoded import MIB
from pipelines.evaluate import metrics_step
from pipelines.features import features_step, reference_step
from pipelines.nll import nll_step
from pipelines.readers import check_memory
from pipelines.sample import sample_step
from pipelines.shards import Manifest, count_images
from pipelines.train import train_step_of


def check(config: RunConfig, sources: Mapping[str, Path], *, data_mib: int) -> None:
    """Raises ValueError when the config asks for more held-out images than the data set has.

    Also when data_mib, which a node may hold of decoded images, is too little to shuffle them as the config says.
    """
    images = count_images(sources["dataset"], "test")
    asked = {
        "nll.images": config.nll.images or 0,
        "metrics.kid_subset_size": config.metrics.kid_subset_size,
    }
    for name, count in asked.items():
        if count > images:
            raise ValueError(f"{name}={count}: {config.data.source} has {images} held-out images; ask for at most that")
    if config.metrics.neighbours >= images:
        raise ValueError(
            f"metrics.neighbours={config.metrics.neighbours}: {config.data.source} has {images} held-out images, and "
            f"needs more than that"
        )
    classes, known = len(Manifest.read(sources["dataset"]).classes), config.model.num_classes
    if known is not None and known != classes:
        raise ValueError(f"model.num_classes={known}: the data set has {classes} classes; set it to that, or null")
    shuffle_bytes = config.train.shuffle_mib * MIB
    check_memory(sources["dataset"], "train", shuffle_bytes=shuffle_bytes, memory_bytes=data_mib * MIB)


def plan(config: RunConfig) -> dict[str, Step]:
    """The steps of a run by role. Two runs that share a step (same config, same inputs) run it once."""
    dataset = dataset_step(config.data)
    train = train_step_of(config.model, config.diffusion, config.train, config.seed, dataset=dataset)
    samples = sample_step(config.sample, train=train)
    reference = reference_step(config.features, dataset=dataset)
    features = features_step(config.features, samples=samples)
    return {
        "dataset": dataset,
        "reference": reference,
        "train": train,
        "nll": nll_step(config.nll, train=train, dataset=dataset),
        "sample": samples,
        "features": features,
        "metrics": metrics_step(config.metrics, features=features, reference=reference),
    }
