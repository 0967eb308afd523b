"""Which tables of the papers can be run? By the command that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from diffusion.published import ADM_ABLATION, PUBLISHED
from pipelines import presets
from pipelines.configs import RunConfig
from pipelines.studies import (
    architecture,
    beside_gans,
    guidance,
    objectives,
    published,
    sampling_steps,
    scales,
    scaling,
)
from pipelines.studies.kinds import Catalogue, Scale, Study

Base = Callable[[], RunConfig]
FRECHET = "frechet"


def _adm_ablation(network: str, iterations: int) -> Base:
    diffusion = PUBLISHED["128x128_diffusion"].diffusion
    return partial(published.adm, ADM_ABLATION[network], diffusion, iterations=iterations)


def _guided(name: str, iterations: int, classifier: Callable[[], published.TrainClassifierConfig]) -> Base:
    def base() -> RunConfig:
        return replace(published.published_adm(name, iterations=iterations), classifier=classifier())

    return base


def _upsampled() -> RunConfig:
    base = published.published_adm("64x64_diffusion", iterations=540_000, lr=3e-4, batch=2048)
    return replace(
        base,
        classifier=published.classifier("64x64_classifier", iterations=300_000, lr=6e-4, batch=1024, weight_decay=0.2),
        upsampler=published.upsampler("64_256_upsampler", iterations=500_000),
        sample=replace(base.sample, guidance_scale=1.0),
    )


def _longest() -> RunConfig:
    return published.iddpm("imagenet64_uncond_100M_1500K", iterations=1_500_000)


IMAGENET = {
    size: partial(published.classifier, f"{size}x{size}_classifier", iterations=steps)
    for size, steps in {128: 300_000, 256: 500_000, 512: 500_000}.items()
}
GUIDED_256 = _guided("256x256_diffusion", 1_980_000, IMAGENET[256])
ART: dict[beside_gans.DataName, Base] = {
    "lsun-bedroom": partial(published.published_adm, "lsun_bedroom", iterations=500_000),
    "lsun-horse": partial(published.published_adm, "lsun_horse", iterations=250_000),
    "lsun-cat": partial(published.published_adm, "lsun_cat", iterations=200_000),
    "imagenet64": partial(published.published_adm, "64x64_diffusion", iterations=540_000, lr=3e-4, batch=2048),
    "imagenet128": _guided("128x128_diffusion", 4_360_000, IMAGENET[128]),
    "imagenet256": GUIDED_256,
    "imagenet512": _guided("512x512_diffusion", 1_940_000, IMAGENET[512]),
}

ABLATIONS: Catalogue = {
    "iddpm-cifar10": Study(
        question=objectives.QUESTION, experiment=objectives.iddpm_cifar10, scatter=("nll_bpd", FRECHET),
        scales={
            "tiny": Scale(presets.tiny), "fashion": Scale(presets.fashion), "reduced": Scale(presets.reduced),
            "paper": Scale(published.cifar10, "CIFAR-10"),
        },
    ),
    "iddpm-imagenet64": Study(
        question=objectives.QUESTION, experiment=objectives.iddpm_imagenet64, scatter=("nll_bpd", FRECHET),
        scales={
            "tiny": Scale(scales.tiny_short), "reduced": Scale(scales.reduced_short),
            "paper": Scale(published.imagenet64, "ImageNet at 64x64"),
        },
    ),
    "iddpm-nll": Study(
        question=objectives.QUESTION_NLL, experiment=objectives.iddpm_nll,
        scales={
            "tiny": Scale(presets.tiny), "reduced": Scale(presets.reduced),
            "paper": Scale(published.cifar10, "CIFAR-10"),
        },
    ),
    "iddpm-class-conditional": Study(
        question=beside_gans.QUESTION, experiment=beside_gans.iddpm_class_conditional, scatter=("recall", "precision"),
        scales={
            "tiny": Scale(scales.tiny_classes), "reduced": Scale(scales.reduced_classes),
            "paper": Scale(
                published.class_conditional64, "ImageNet at 64x64",
                partial(
                    beside_gans.iddpm_class_conditional,
                    small={"train.images": 1_700_000 * 128, "train.batch_size": 128, "train.lr": 1e-4},
                ),
            ),
        },
    ),
    "adm-state-of-the-art": Study(
        question=beside_gans.QUESTION_ART, experiment=beside_gans.adm_state_of_the_art, scatter=("recall", "precision"),
        scales={
            "tiny": Scale(scales.tiny_guidance), "reduced": Scale(scales.reduced_guidance),
            "paper": Scale(GUIDED_256, "ImageNet at 256x256"),
            **{
                name: Scale(base, beside_gans.ART[name].name, partial(beside_gans.adm_state_of_the_art, of=name))
                for name, base in ART.items()
            },
        },
    ),
}  # fmt: skip

GUIDANCE: Catalogue = {
    "adm-guidance": Study(
        question=guidance.QUESTION, experiment=guidance.adm_guidance, scatter=("recall", "precision"),
        scales={
            "tiny": Scale(scales.tiny_guidance), "reduced": Scale(scales.reduced_guidance),
            "paper": Scale(GUIDED_256, "ImageNet at 256x256"),
        },
    ),
    "adm-upsampling": Study(
        question=guidance.QUESTION_UPSAMPLING, experiment=guidance.adm_upsampling, scatter=("recall", "precision"),
        scales={
            "tiny": Scale(scales.tiny_upsampling), "reduced": Scale(scales.reduced_upsampling),
            "paper": Scale(_upsampled, "ImageNet at 64x64 and at 256x256"),
        },
    ),
}  # fmt: skip

SAMPLING_STEPS: Catalogue = {
    "iddpm-sampling-steps": Study(
        question=sampling_steps.QUESTION, experiment=sampling_steps.iddpm_sampling_steps,
        scales={
            "tiny": Scale(scales.tiny_steps), "reduced": Scale(presets.reduced),
            "paper": Scale(published.imagenet64, "ImageNet at 64x64"),
        },
    ),
    "adm-schedules": Study(
        question=sampling_steps.QUESTION_SCHEDULES, experiment=sampling_steps.adm_schedules,
        scales={
            "tiny": Scale(scales.tiny_schedules), "reduced": Scale(scales.reduced_schedules),
            "paper": Scale(ART["lsun-bedroom"], "LSUN bedroom at 256x256"),
        },
    ),
}  # fmt: skip


def _kept(base: Base) -> Base:
    return lambda: scales.with_attention(base())


def _kept_heads(base: Base) -> Base:
    return lambda: scales.with_head_channels(base())


ARCHITECTURE: Catalogue = {
    "adm-architecture": Study(
        question=architecture.QUESTION, experiment=architecture.adm_architecture,
        scales={
            "tiny": Scale(scales.tiny_architecture), "reduced": Scale(scales.reduced_architecture),
            "paper": Scale(_adm_ablation("base", 1_200_000), "ImageNet at 128x128"),
        },
    ),
    "adm-attention": Study(
        question=architecture.QUESTION_ATTENTION, experiment=architecture.adm_attention,
        scales={
            "tiny": Scale(_kept(scales.tiny_architecture)), "reduced": Scale(_kept(scales.reduced_architecture)),
            "paper": Scale(_adm_ablation("attention, 1 heads", 700_000), "ImageNet at 128x128"),
        },
    ),
    "adm-norm": Study(
        question=architecture.QUESTION_NORM, experiment=architecture.adm_norm,
        scales={
            "tiny": Scale(_kept_heads(scales.tiny_architecture)),
            "reduced": Scale(_kept_heads(scales.reduced_architecture)),
            "paper": Scale(_adm_ablation("AdaGN", 700_000), "ImageNet at 128x128"),
        },
    ),
}  # fmt: skip

SMALL = (32, 64, 96, 128)
"""Channels; GroupNorm takes multiples of 32."""

SCALING: Catalogue = {
    "iddpm-scaling": Study(
        question=scaling.QUESTION, experiment=scaling.iddpm_scaling,
        scales={
            "tiny": Scale(scales.tiny_scaling, None, partial(scaling.iddpm_scaling, widths=SMALL, lr_at=32)),
            "reduced": Scale(scales.reduced_short, None, partial(scaling.iddpm_scaling, widths=SMALL, lr_at=64)),
            "paper": Scale(_longest, "ImageNet at 64x64"),
        },
    ),
}  # fmt: skip

FILES: Mapping[str, Catalogue] = {
    "ablation.py": ABLATIONS, "guidance.py": GUIDANCE, "sampling_steps.py": SAMPLING_STEPS,
    "architecture.py": ARCHITECTURE, "scaling.py": SCALING,
}  # fmt: skip
ALL: Catalogue = {name: study for studies in FILES.values() for name, study in studies.items()}


def file_of(study: str) -> str:
    """The command that runs a study of that name; ablation.py runs those of files, too."""
    return next((file for file, studies in FILES.items() if study in studies), "ablation.py")
