"""Which steps make one run? Read this file first: it is the whole way from a data set to a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusion.train_config import TrainConfig
from orchestrator.step import Step
from pipelines.configs import RunConfig
from pipelines.data import DataConfig, dataset_step
from pipelines.decoded import MIB
from pipelines.evaluate import metrics_step
from pipelines.features import features_step, reference_step
from pipelines.nll import nll_step
from pipelines.own_classifier import OwnClassifierConfig
from pipelines.readers import check_memory
from pipelines.sample import sample_step
from pipelines.shards import Manifest, Split, count_images
from pipelines.train import train_step_of
from pipelines.train_classifier import train_classifier_step
from pipelines.upsample import upsample_step

WORDS: Mapping[Split, str] = {"test": "held-out", "train": "training"}


def check(config: RunConfig, sources: Mapping[str, Path], *, data_mib: int) -> None:
    """Raises ValueError when the config asks for more held-out images than the data set has.

    Also when data_mib, which a node may hold of decoded images, is too little to shuffle them as the config says.
    """
    data, compared = config.data, sources["dataset"]
    if config.upsampler is not None:
        data, compared = config.upsampler.training.data, sources["large_dataset"]
    _check_counts(config.data, {"nll.images": config.nll.images or 0}, sources["dataset"], "test")
    _check_counts(data, {"metrics.kid_subset_size": config.metrics.kid_subset_size}, compared, config.reference)
    if config.metrics.neighbours >= (images := count_images(compared, config.reference)):
        raise ValueError(
            f"metrics.neighbours={config.metrics.neighbours}: {_named(data)} has {images} {WORDS[config.reference]} "
            f"images, and needs more than that"
        )
    classes = {"model.num_classes": config.model.num_classes}
    if config.is_guided and config.classifier is not None:
        classes["classifier.model.num_classes"] = config.classifier.model.num_classes
    _check_classes(classes, sources["dataset"])
    if isinstance(config.features, OwnClassifierConfig):
        _check_classes({"features.num_classes": config.features.num_classes}, compared, or_none="")
    _check_shuffling(config.train, sources["dataset"], data_mib=data_mib)
    if config.upsampler is not None:
        training = config.upsampler.training
        _check_classes({"upsampler.training.model.unet.num_classes": training.model.unet.num_classes}, compared)
        _check_shuffling(training.train, compared, data_mib=data_mib)


def _named(data: DataConfig) -> str:
    return f"{data.source} at {data.image_size} pixels"


def _check_counts(data: DataConfig, asked: Mapping[str, int], dataset: Path, split: Split) -> None:
    images = count_images(dataset, split)
    for name, count in asked.items():
        if count > images:
            raise ValueError(f"{name}={count}: {_named(data)} has {images} {WORDS[split]} images; ask for at most that")


def _check_classes(told: Mapping[str, int | None], dataset: Path, *, or_none: str = ", or null") -> None:
    classes = len(Manifest.read(dataset).classes)
    for name, known in told.items():
        if known is not None and known != classes:
            raise ValueError(f"{name}={known}: the data set has {classes} classes; set it to that{or_none}")


def _check_shuffling(train: TrainConfig, dataset: Path, *, data_mib: int) -> None:
    check_memory(dataset, "train", shuffle_bytes=train.shuffle_mib * MIB, memory_bytes=data_mib * MIB)


def plan(config: RunConfig) -> dict[str, Step]:
    """The steps of a run by role. Two runs that share a step (same config, same inputs) run it once."""
    dataset = compared = dataset_step(config.data)
    steps = {"dataset": dataset}
    if config.upsampler is not None:
        steps["large_dataset"] = compared = dataset_step(config.upsampler.training.data)
    steps["reference"] = reference_step(config.features, dataset=compared, split=config.reference)
    steps["train"] = train = train_step_of(
        config.model, config.diffusion, config.train, config.seed, dataset=dataset, milestones=config.milestones
    )
    steps["nll"] = nll_step(config.nll, train=train, dataset=dataset)
    if config.is_guided:
        assert config.classifier is not None  # RunConfig has seen to it
        steps["classifier"] = train_classifier_step(config.classifier, dataset=dataset)
    steps["sample"] = drawn = sample_step(config.sample, train=train, classifier=steps.get("classifier"))
    if config.upsampler is not None:
        steps["upsampler"] = upsampler = config.upsampler.training.step(dataset=compared)
        steps["upsample"] = drawn = upsample_step(config.upsampler.sample, samples=drawn, upsampler=upsampler)
    steps["features"] = features_step(config.features, samples=drawn, dataset=compared)
    steps["metrics"] = metrics_step(config.metrics, features=steps["features"], reference=steps["reference"])
    return steps
