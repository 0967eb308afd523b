"""Which set-ups of classifier training are there? The papers', and one that two CPU cores train in a minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffusion.augment import prepared_size
from diffusion.classifier import ClassifierConfig
from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.published import PUBLISHED
from diffusion.train_config import LossScaleConfig, TrainConfig, TreeConfig
from diffusion.trunk import UNetConfig
from orchestrator.step import Step
from pipelines.data import DataConfig, dataset_step
from pipelines.decoded import MIB
from pipelines.readers import check_memory
from pipelines.shards import Manifest
from pipelines.single import Family
from pipelines.train_classifier import HeldOutConfig, TrainClassifierConfig, train_classifier_step

NAMED_BY_DATA = "0" * 64  # the content of no data set: --data names the one that is meant
NO_AVERAGE = EmaConfig(rates=())  # PAPERS.md 3.3


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierRun:
    """One classifier: data, network, and how it is trained."""

    data: DataConfig
    model: ClassifierConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    held_out: HeldOutConfig
    noised: bool = True
    crop: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        size = self.model.encoder.image_size
        wanted = prepared_size(size) if self.crop else size
        if self.data.image_size != wanted or self.data.channels != self.model.encoder.channels:
            raise ValueError(
                f"data.image_size={self.data.image_size}, data.channels={self.data.channels}: a classifier of {size} "
                f"pixels and {self.model.encoder.channels} channels, with crop={str(self.crop).lower()}, takes images "
                f"of {wanted} pixels and as many channels"
            )

    def step_config(self) -> TrainClassifierConfig:
        """What decides its weights."""
        return TrainClassifierConfig(
            model=self.model, diffusion=self.diffusion, train=self.train, held_out=self.held_out, noised=self.noised,
            crop=self.crop, seed=self.seed,
        )  # fmt: skip


def tiny() -> ClassifierRun:
    """Handwritten digits at 8x8 on two CPU cores."""
    encoder = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
        num_heads=None, num_head_channels=16, resampling="residual",
    )  # fmt: skip
    return ClassifierRun(
        data=DataConfig(source="digits", image_size=8),
        model=ClassifierConfig(encoder=encoder, num_classes=10),
        diffusion=DiffusionConfig(),
        train=TrainConfig(
            images=12_800,
            batch_size=128,
            lr=1e-3,
            weight_decay=0.05,
            lr_anneal="adm",
            ema=NO_AVERAGE,
            reduction=TreeConfig(shards=2),
        ),
        held_out=HeldOutConfig(every_images=1280),
    )


def _adm(image_size: int, *, batch_size: int, iterations: int, lr: float, weight_decay: float) -> ClassifierRun:
    """ADM's, from its table of hyper-parameters; data.py must have prepared ImageNet larger, for the crops."""
    published = PUBLISHED[f"{image_size}x{image_size}_classifier"]
    assert isinstance(published.network, ClassifierConfig)
    return ClassifierRun(
        data=DataConfig(
            source="files", content=NAMED_BY_DATA, image_size=prepared_size(image_size), channels=3, test_percent=None
        ),
        model=published.network,
        diffusion=published.diffusion,
        train=TrainConfig(
            images=iterations * batch_size, batch_size=batch_size, lr=lr, weight_decay=weight_decay, lr_anneal="adm",
            ema=NO_AVERAGE, precision="fp16", loss_scale=LossScaleConfig(initial_log2=16.0), flip=True,
            reduction=TreeConfig(shards=32),  # for up to as many GPUs
        ),
        held_out=HeldOutConfig(every_images=5000 * batch_size, images=50_000),
        crop=True,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], ClassifierRun]] = {
    "tiny": tiny,
    "adm-64": partial(_adm, 64, batch_size=1024, iterations=300_000, lr=6e-4, weight_decay=0.2),
    "adm-128": partial(_adm, 128, batch_size=256, iterations=300_000, lr=3e-4, weight_decay=0.05),
    "adm-256": partial(_adm, 256, batch_size=256, iterations=500_000, lr=3e-4, weight_decay=0.05),
    "adm-512": partial(_adm, 512, batch_size=256, iterations=500_000, lr=3e-4, weight_decay=0.05),
}


def plan(run: ClassifierRun) -> dict[str, Step]:
    """The steps of a run by role."""
    dataset = dataset_step(run.data)
    return {"dataset": dataset, "train_classifier": train_classifier_step(run.step_config(), dataset=dataset)}


def check(run: ClassifierRun, sources: Mapping[str, Path], *, data_mib: int) -> None:
    """Raises ValueError when the data set has other classes than the network, or too few held-out images."""
    manifest = Manifest.read(sources["dataset"])
    if len(manifest.classes) != run.model.num_classes:
        raise ValueError(
            f"model.num_classes={run.model.num_classes}: the data set has {len(manifest.classes)} classes; set it to "
            f"that, or name another data set with --data"
        )
    held_out = manifest.images.get("test", 0)
    if held_out < (run.held_out.images or 1):
        raise ValueError(
            f"held_out.images={run.held_out.images}: the data set holds out {held_out}; ask for at most that"
        )
    shuffle_bytes = run.train.shuffle_mib * MIB
    check_memory(sources["dataset"], "train", shuffle_bytes=shuffle_bytes, memory_bytes=data_mib * MIB)


FAMILY: Family = Family(PRESETS, plan, check, network="model.encoder")
