"""How does noise become an image, step by step? Pictures of a few images' way: what x_t is, and what it is taken for.

python pipelines/trajectory.py tiny --store artifacts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffusion.randomness import SAMPLE_INIT, normal
from diffusion.sampling import class_labels, to_uint8, walk_back
from diffusion.schedule import respace
from orchestrator.step import Resources, Step, StepContext
from pipelines.configs import RunConfig
from pipelines.devices import worker_device
from pipelines.drawn import image_grid
from pipelines.plan import check, plan
from pipelines.presets import PRESETS
from pipelines.sample import SampleConfig, networks_of
from pipelines.single import Family

VERSION = 2
STRIP_FILE, MOVIE_FILE = "trajectory.png", "trajectory.gif"
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 120, 1500


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryConfig:
    """Whose way is shown: that of the first samples."""

    sample: SampleConfig
    images: int = 8
    columns: int = 10
    """Moments of the walk, evenly spaced, from pure noise to the image."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.columns < 2:
            raise ValueError(f"images={self.images}, columns={self.columns}: at least 1 and 2")


def trajectory_step(config: TrajectoryConfig, *, sample: Step) -> Step:
    """The pictures as a step of a plan: of the networks that the samples come from."""
    return Step(name="trajectory", version=VERSION, config=config, inputs=sample.inputs, run=show)


def show(config: TrajectoryConfig, ctx: StepContext) -> None:
    """Draw the first images again, and leave trajectory.png and trajectory.gif.

    Two rows an image: x_t, and x_start as the network takes it to be.
    """
    work = partial(walked, config, ctx.inputs["train"], ctx.inputs.get("classifier"))
    ((noisy, predicted),) = ctx.backend.map(work, [ctx.resources], resources=ctx.resources)
    rows = np.stack([noisy, predicted], axis=1)  # (images, 2, columns, h, w, c)
    image_grid(rows.reshape(-1, *rows.shape[3:]), columns=rows.shape[2]).save(ctx.output / STRIP_FILE)
    frames = [image_grid(np.concatenate([noisy[:, at], predicted[:, at]])) for at in range(rows.shape[2])]
    shown = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_FRAME_MILLISECONDS]
    frames[0].save(ctx.output / MOVIE_FILE, save_all=True, append_images=frames[1:], duration=shown, loop=0)


def walked(
    config: TrajectoryConfig, train: Path, classifier: Path | None, resources: Resources
) -> tuple[np.ndarray, np.ndarray]:
    """x_t and the x_start that is predicted from it, at the moments shown: uint8 (images, columns, h, w, c) each."""
    device = worker_device(resources)
    networks = networks_of(train, classifier, config.sample.ema, device)
    model, network, seed = networks.model, networks.model.network, config.sample.seed
    index, size = torch.arange(config.images, device=device), network.config.image_size
    y = None
    if networks.num_classes is not None:
        y = class_labels(config.sample.labels, index=index, seed=seed, num_classes=networks.num_classes)
    steps = respace(model.schedule, config.sample.sampler.respacing).num_timesteps
    moments = set(np.linspace(steps - 1, 0, min(config.columns - 1, steps)).round().astype(int).tolist())
    shape = (network.config.channels, size, size)
    x = normal(seed=seed, stream=SAMPLE_INIT, step=0, index=index, shape=shape)
    walk = walk_back(
        config.sample.sampler, model.diffusion, model.schedule,
        network if network.config.num_classes is None else partial(network, y=y),
        x_T=x, index=index, seed=seed, guide=networks.guide(config.sample, y),
    )  # fmt: skip
    shown = []
    with model.in_use():
        for visit in walk:
            if visit.t in moments:
                shown.append((to_uint8(x), to_uint8(visit.pred_xstart)))
            x = visit.x
    shown.append((to_uint8(x), to_uint8(x)))
    noisy, predicted = (torch.stack(column, dim=1).cpu().numpy() for column in zip(*shown, strict=True))
    return noisy, predicted


def plan_with_trajectory(config: RunConfig) -> Mapping[str, Step]:
    """The plan of a run, and the pictures."""
    steps = plan(config)
    return {**steps, "trajectory": trajectory_step(TrajectoryConfig(sample=config.sample), sample=steps["sample"])}


FAMILY = Family(PRESETS, plan_with_trajectory, check)


if __name__ == "__main__":
    from pipelines import trajectory  # under its own name: workers must find it
    from pipelines.cli import run
    from pipelines.single import command

    run(command("trajectory", "Show how the first images of a model come about.", trajectory.FAMILY))
