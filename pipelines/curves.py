"""What do IDDPM's figures show? Their curves, from schedules and from what steps have measured of trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion.schedule import NoiseSchedule, cosine, linear
from orchestrator.figures import Axis, Curve, Figure
from pipelines.gradient_noise import GRADIENT_NOISE_FILE, SAMPLERS
from pipelines.nll import NLL_FILE
from pipelines.variances import VARIANCES_FILE

SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {"linear": linear, "cosine": cosine}
SHARE = Axis(name="t_over_T", label="diffusion step, t / T")
STEP = Axis(name="t_plus_1", label="diffusion step, t + 1", scale="log")  # the papers count from 1
LEAST, MOST = 0.1, 0.9


def alphas_cumprod_figure(num_timesteps: int) -> Figure:
    """How fast an image becomes noise (IDDPM figure 5)."""
    chains = {name: make(num_timesteps) for name, make in SCHEDULES.items()}
    return Figure(
        title=f"What is left of the image, T = {num_timesteps}",
        x=SHARE,
        y=Axis(name="alphas_cumprod", label="alphas_cumprod, share of x_start's variance"),
        curves=[_over_share(name, chain, chain.alphas_cumprod.numpy()) for name, chain in chains.items()],
    )


def posterior_variance_figure(num_timesteps: Sequence[int]) -> Figure:
    """How far apart the bounds of a learned variance are (IDDPM figure 1). At t = 0 the lower one is 0."""
    chains = {f"{name}, T = {T}": make(T) for name, make in SCHEDULES.items() for T in num_timesteps}
    return Figure(
        title="Lower over upper bound of the variance of a step back",
        x=replace(SHARE, scale="log"),  # they differ at the first steps alone
        y=Axis(name="posterior_variance_over_beta", label="posterior variance / beta"),
        curves=[
            _over_share(label, chain, (chain.posterior_variance / chain.betas).numpy())
            for label, chain in chains.items()
        ],
    )


def terms_figure(artifacts: Mapping[str, Path]) -> Figure:
    """Where along the chain the bits of L_vlb are (IDDPM figure 2), from nll steps of all terms, by arm."""
    curves = []
    for label, artifact in artifacts.items():
        with np.load(artifact / NLL_FILE, allow_pickle=False) as stored:
            curves.append(Curve(label=label, x=stored["timestep"] + 1, y=stored["terms_bpd"]))
    y = Axis(name="term_bpd", label="term of L_vlb, bits/dim", scale="log")
    return Figure(title="Terms of the variational bound on held-out images", x=STEP, y=y, curves=curves)


def variances_figure(artifacts: Mapping[str, Path]) -> Figure:
    """Which variance models have learned, from variances steps, by arm."""
    curves = []
    for label, artifact in artifacts.items():
        with np.load(artifact / VARIANCES_FILE, allow_pickle=False) as stored:
            fraction = stored["fraction"]
            low, high = np.quantile(fraction, (LEAST, MOST), axis=0)
            x, mean = stored["timestep"] + 1, fraction.mean(axis=0)
            curves.append(Curve(label=label, x=x, y=mean, low=low, high=high))
    return Figure(
        title="Learned variance of a step back: 0 at the posterior variance, 1 at beta",
        x=STEP,
        y=Axis(name="variance_fraction", label="fraction v of the range, mean over pixels"),
        curves=curves,
        spread=f"mean over images, and their {LEAST:.0%} to {MOST:.0%} quantiles",
    )


@dataclass(frozen=True)
class Measured:
    """A gradient_noise step's artifact, and how long its model was trained."""

    images_seen: int
    artifact: Path


def gradient_noise_figure(measured: Mapping[str, Sequence[Measured]]) -> Figure:
    """The noise scale over training (IDDPM figure 3), by arm in ascending images_seen: a line for each sampler of t."""
    curves = []
    for label, points in measured.items():
        x = np.array([point.images_seen for point in points])
        scales, errors = np.stack([_noise_scales(point.artifact) for point in points], axis=1)
        for number, sampler in enumerate(SAMPLERS):
            y, error = scales[:, number], errors[:, number]
            curves.append(Curve(label=f"{label}, t {sampler}", x=x, y=y, low=y - error, high=y + error))
    return Figure(
        title="Gradient noise: in a batch of so many examples there is as much noise as gradient",
        x=Axis(name="images_seen", label="images seen"),
        y=Axis(name="noise_scale", label="noise scale tr(Sigma) / |G|^2, examples", scale="log"),
        curves=curves,
        spread="one standard error",
    )


def _noise_scales(artifact: Path) -> np.ndarray:
    """(2, samplers): noise_scale and standard_error."""
    with np.load(artifact / GRADIENT_NOISE_FILE, allow_pickle=False) as stored:
        return np.stack([stored["noise_scale"], stored["standard_error"]])


def _over_share(label: str, chain: NoiseSchedule, y: np.ndarray) -> Curve:
    return Curve(label=label, x=np.arange(chain.num_timesteps) / chain.num_timesteps, y=y)
