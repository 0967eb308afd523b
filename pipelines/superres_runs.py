"""Which set-ups are there of networks that make images larger? ADM's two, and one for two CPU cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from diffusion.ema import EmaConfig
from diffusion.gaussian import DiffusionConfig
from diffusion.published import PUBLISHED
from diffusion.superres import SuperResConfig
from diffusion.train_config import TrainConfig, TreeConfig
from diffusion.trunk import UNetConfig
from orchestrator.step import Step
from pipelines.classifier_runs import NAMED_BY_DATA
from pipelines.data import DataConfig, dataset_step
from pipelines.decoded import MIB
from pipelines.readers import check_memory
from pipelines.shards import Manifest
from pipelines.single import Family
from pipelines.train_superres import SuperResRun


def tiny() -> SuperResRun:
    """Handwritten digits from 4x4 to 8x8, on two CPU cores."""
    unet = UNetConfig(
        image_size=8, channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
        num_heads=2,
    )  # fmt: skip
    return SuperResRun(
        data=DataConfig(source="digits", image_size=8),
        model=SuperResConfig(unet=unet, small_size=4),
        diffusion=DiffusionConfig(),
        train=TrainConfig(
            images=12_800, batch_size=128, lr=2e-3, ema=EmaConfig(rates=(0.98,)), reduction=TreeConfig(shards=2)
        ),
    )


def _adm(name: str, *, iterations: int) -> SuperResRun:
    """ADM's, from its table of hyper-parameters: batch 256, lr 1e-4."""
    published = PUBLISHED[name]
    assert isinstance(published.network, SuperResConfig)
    size = published.network.unet.image_size
    return SuperResRun(
        data=DataConfig(source="files", content=NAMED_BY_DATA, image_size=size, channels=3, test_percent=None),
        model=published.network,
        diffusion=published.diffusion,
        train=TrainConfig(
            images=256 * iterations, batch_size=256, lr=1e-4, precision="fp16", flip=True,
            reduction=TreeConfig(shards=64),  # 4 images each: what a GPU holds at 256 pixels
        ),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], SuperResRun]] = {
    "tiny": tiny,
    "adm-64-256": partial(_adm, "64_256_upsampler", iterations=500_000),
    "adm-128-512": partial(_adm, "128_512_upsampler", iterations=1_050_000),
}


def plan(run: SuperResRun) -> dict[str, Step]:
    """The steps of a run by role."""
    dataset = dataset_step(run.data)
    return {"dataset": dataset, "train_superres": run.step(dataset=dataset)}


def check(run: SuperResRun, sources: Mapping[str, Path], *, data_mib: int) -> None:
    """Raises ValueError when a network that knows classes gets a data set of others, or shuffling needs more memory."""
    classes, known = len(Manifest.read(sources["dataset"]).classes), run.model.unet.num_classes
    if known is not None and known != classes:
        raise ValueError(f"model.unet.num_classes={known}: the data set has {classes} classes; set it to that, or null")
    shuffle_bytes = run.train.shuffle_mib * MIB
    check_memory(sources["dataset"], "train", shuffle_bytes=shuffle_bytes, memory_bytes=data_mib * MIB)


FAMILY: Family = Family(PRESETS, plan, check, network="model.unet")
