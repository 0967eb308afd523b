"""How are the figures of Improved DDPM drawn, of any models of ours? PNGs, and their numbers beside them as CSV.

python pipelines/figures.py schedules
python pipelines/figures.py terms tiny --set nll.images=32 \\
    --arm simple:diffusion.loss=simple,diffusion.variance=fixed_large --arm hybrid:diffusion.loss=hybrid
python pipelines/figures.py variances tiny
python pipelines/figures.py gradient-noise tiny --arm hybrid: --arm vlb:diffusion.loss=vlb --images-seen 6400 25600
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from orchestrator.config import override
from orchestrator.figures import Figure
from orchestrator.step import Step
from pipelines.arms import Arm, Check, arms_of, run_arms
from pipelines.cli import HERE, Overrides, Places, run
from pipelines.configs import RunConfig
from pipelines.curves import (
    Measured,
    alphas_cumprod_figure,
    gradient_noise_figure,
    posterior_variance_figure,
    terms_figure,
    variances_figure,
)
from pipelines.gradient_noise import GradientNoiseConfig, gradient_noise_step
from pipelines.plan import plan
from pipelines.variances import VariancesConfig, check_images, variances_step

OUTPUT = Path("build/figures")
Arms = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name="arm", metavar="LABEL:KEY=VALUE,KEY=VALUE", help="A line, and what its model has; repeatable."),
]


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Draw alphas_cumprod of both schedules, and the posterior variance over beta. Takes no model."""

    num_timesteps: tuple[int, ...] = (100, 1000, 4000)
    """T of the chains whose variances are shown; the last one's alphas_cumprod are."""
    output: Path = OUTPUT
    """Folder of the figures."""

    def __call__(self) -> int:
        """Draw both."""
        if not self.num_timesteps:
            raise ValueError("--num-timesteps: name at least one T, such as 1000")
        variances = posterior_variance_figure(self.num_timesteps)
        _write(alphas_cumprod_figure(self.num_timesteps[-1]), self.output, "alphas_cumprod")
        _write(variances, self.output, "posterior_variance")
        return 0


@dataclass(frozen=True, kw_only=True)
class OfModels:
    """What the figures of trained models have in common."""

    preset: tyro.conf.Positional[str] = "tiny"
    """A set-up, as pipelines/train.py takes it."""
    places: Annotated[Places, tyro.conf.arg(name="")] = HERE
    """Where artifacts are kept and how many workers there are."""
    arms: Arms = ()
    set: Overrides = ()
    data: str | None = None
    """A prepared data set by name, in place of the preset's."""
    ray: bool = False
    """Run on a Ray that is started for this command, instead of in this process."""
    output: Path = OUTPUT
    """Folder of the figure."""

    def named_arms(self, *more: str) -> list[Arm]:
        """The arms, with these settings beside those of --set."""
        store = self.places.artifact_store()
        return arms_of(self.preset, self.arms, settings=(*self.set, *more), data=self.data, store=store)

    def run(self, arms: Sequence[Arm], step_of: Callable[[RunConfig], Step], check_data: Check) -> Mapping[str, Path]:
        """As run_arms does it, in its places."""
        return run_arms(arms, step_of, self.places, ray=self.ray, check_data=check_data)


@dataclass(frozen=True, kw_only=True)
class Terms(OfModels):
    """Draw the terms of L_vlb against t. T forwards an image: --set nll.images=64 bounds how many."""

    def __call__(self) -> int:
        """Measure what is missing, and draw it."""
        arms = self.named_arms("nll.terms.kind=all")
        if len({arm.config.nll for arm in arms}) > 1:
            raise ValueError("the arms differ in nll: terms that were measured differently are not compared; use --set")
        _write(terms_figure(self.run(arms, lambda config: plan(config)["nll"], _anything)), self.output, "terms")
        return 0


@dataclass(frozen=True, kw_only=True)
class Variances(OfModels):
    """Draw which variance between its bounds a model has learned, against t."""

    how: Annotated[VariancesConfig, tyro.conf.arg(name="")] = field(default_factory=VariancesConfig)

    def __call__(self) -> int:
        """Measure what is missing, and draw it."""

        def step_of(config: RunConfig) -> Step:
            steps = plan(config)
            return variances_step(self.how, train=steps["train"], dataset=steps["dataset"])

        artifacts = self.run(self.named_arms(), step_of, partial(check_images, self.how))
        _write(variances_figure(artifacts), self.output, "variances")
        return 0


@dataclass(frozen=True, kw_only=True)
class GradientNoise(OfModels):
    """Draw the gradient noise scale against images seen, with t drawn evenly and by importance."""

    images_seen: tuple[int, ...] = ()
    """One training, looked at after so many images each; by default the arm's train.images."""
    how: Annotated[GradientNoiseConfig, tyro.conf.arg(name="")] = field(default_factory=GradientNoiseConfig)

    def __call__(self) -> int:
        """Measure what is missing, and draw it."""

        def step_of(config: RunConfig) -> Step:
            steps = plan(config)
            return gradient_noise_step(self.how, train=steps["train"], dataset=steps["dataset"])

        lengths = {arm.label: self._lengths(arm) for arm in self.named_arms()}
        artifacts = self.run([arm for arms in lengths.values() for arm in arms], step_of, _anything)
        measured = {
            label: [Measured(arm.config.train.images, artifacts[arm.label]) for arm in arms]
            for label, arms in lengths.items()
        }
        _write(gradient_noise_figure(measured), self.output, "gradient_noise")
        return 0

    def _lengths(self, arm: Arm) -> list[Arm]:
        images_seen = tuple(sorted(set(self.images_seen))) or (arm.config.train.images,)
        # Where the learning rate falls towards the end, a shorter training is no beginning of a longer one.
        shared = arm.config.train.lr_anneal == "none"
        lengths = {
            images: {"train.images": images, "milestones": images_seen[:number] if shared else ()}
            for number, images in enumerate(images_seen)
        }
        return [
            Arm(f"{arm.label}, {images} images", override(arm.config, settings)) for images, settings in lengths.items()
        ]


def _anything(dataset: Path) -> None:
    """Nothing is asked of the data beyond what its config does."""


def _write(figure: Figure, folder: Path, name: str) -> None:
    for file in figure.write(folder, name):
        print(file)


def main(
    command: Annotated[
        Annotated[Schedules, tyro.conf.subcommand("schedules")]
        | Annotated[Terms, tyro.conf.subcommand("terms")]
        | Annotated[Variances, tyro.conf.subcommand("variances")]
        | Annotated[GradientNoise, tyro.conf.subcommand("gradient-noise")],
        tyro.conf.arg(name=""),
    ],
) -> int:
    """Draw a figure of Improved DDPM, and train and measure what it lacks first."""
    return command()


if __name__ == "__main__":
    run(main)
