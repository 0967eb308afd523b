"""How do FID and likelihood fall with compute? Improved DDPM's figure 10, as data."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from diffusion.flops import compute_of
from diffusion.unet import UNet, UNetConfig
from orchestrator.experiment import Axis, Better, Experiment
from orchestrator.power_law import PowerLaw
from pipelines.configs import RunConfig
from pipelines.evaluate import frechet_name
from pipelines.studies.columns import KID, NLL, frechet
from pipelines.train import out_channels

QUESTION = "Do FID and likelihood fall with compute as a power law, and with which exponents?"
WIDTHS = (64, 96, 128, 192)
LR_AT = 128
"""Channels at which the learning rate is the base's; otherwise it is that over the root of their ratio."""
PARTS = (1, 2, 4)
"""A half, and so on, of the training: the law goes through the longest."""
LAWS = {
    "frechet": PowerLaw(exponent=0.22, log_scale=-math.log(2.5e-25), offset=4.00),
    "nll_bpd": PowerLaw(exponent=0.17, log_scale=-math.log(3.0e-15), offset=3.40),
}
"""FID = 4.00 + (2.5e-25 C)^-0.22 and NLL = 3.40 + (3.0e-15 C)^-0.17."""


def iddpm_scaling(
    base: RunConfig, seeds: tuple[int, ...], *, widths: tuple[int, ...] = WIDTHS, lr_at: int = LR_AT
) -> Experiment[RunConfig]:
    """Improved DDPM, figure 10: models of several widths, each judged at a quarter, at half and at all of its training.

    Compute is the paper's: multiply-accumulates of forward and backward, times the images seen. Its figure's constants
    E were not fitted but set (by the FID of real images, and a little below the best NLL that was then known); ours are
    fitted, and with E = 0 besides.
    """
    batch = base.train.batch_size
    lengths = {
        (f" (1/{part})" if part > 1 else ""): max(1, round(base.train.images / part / batch)) * batch for part in PARTS
    }
    ordered = dict(sorted(lengths.items(), key=lambda item: item[1]))
    variants: dict[str, dict[str, Any]] = {}
    points: dict[str, tuple[str, float]] = {}
    for width in widths:
        network = replace(base.model, model_channels=width)
        macs = _training_macs(network, base)
        lr = base.train.lr / math.sqrt(width / lr_at)
        for number, (part, images) in enumerate(ordered.items()):
            row = f"{width} channels{part}"
            before = tuple(ordered.values())[:number]
            variants[row] = {
                "model.model_channels": width, "train.lr": lr, "train.images": images, "milestones": before
            }  # fmt: skip
            points[row] = (f"{width} channels", float(macs * images))
    distance = frechet_name(base.features)
    return Experiment(
        name="iddpm-scaling",
        title="Improved DDPM, figure 10",
        question=QUESTION,
        source="Nichol & Dhariwal 2021, figure 10 (curves; the laws alone are printed): ImageNet 64x64",
        base=base,
        seeds=seeds,
        variants=variants,
        columns=(NLL, frechet(base), KID),
        paper={},
        claims=tuple(
            Better(
                text=f"{wide} channels beat {narrow}", metric=metric, better=f"{wide} channels",
                worse=f"{narrow} channels",
            )
            for metric in ("nll_bpd", distance)
            for narrow, wide in pairwise(widths)
        ),
        axis=Axis(label="training compute, MACs", points=points, log=True),
        laws={"nll_bpd": LAWS["nll_bpd"], distance: LAWS["frechet"]},
    )  # fmt: skip


def _training_macs(network: UNetConfig, base: RunConfig) -> int:
    build = partial(UNet, network, out_channels=out_channels(network, base.diffusion))
    return compute_of(build).training_macs
