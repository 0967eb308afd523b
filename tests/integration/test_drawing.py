"""Which images are drawn hangs on seed and index alone; averages, a classifier and a second stage do what they say."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.ema import EmaConfig
from diffusion.randomness import SAMPLE_INIT, normal
from diffusion.sampling import to_uint8
from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.ray_backend import RayBackend
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.blocks import Block
from pipelines.configs import RunConfig
from pipelines.drawn import BLOCKS, GRID_FILE, PROTOCOL_FILE, Drawn, drawn
from pipelines.plan import plan
from pipelines.presets import tiny_guided, tiny_upsampled
from pipelines.sample import draw_block
from pipelines.shards import UNLABELLED, encoded_images
from pipelines.train import to_tensor, to_unit_range
from pipelines.trained import load_classifier
from pipelines.trajectory import MOVIE_FILE, STRIP_FILE, plan_with_trajectory
from pipelines.upsample import enlarge_block


def short(base: RunConfig, **changes: object) -> RunConfig:
    """A model of little training, whose chain has 30 steps, of which 10 are walked."""
    diffusion = replace(base.diffusion, num_timesteps=30)
    classifier = base.classifier and replace(base.classifier, diffusion=diffusion)
    sampler = replace(base.sample.sampler, respacing="10")
    upsampler = base.upsampler and replace(
        base.upsampler,
        training=replace(
            base.upsampler.training, diffusion=diffusion, train=replace(base.upsampler.training.train, images=2560)
        ),
        sample=replace(base.upsampler.sample, sampler=sampler),
    )
    return replace(
        base,
        diffusion=diffusion,
        train=replace(base.train, images=2560, ema=EmaConfig(rates=(0.98, 0.5))),
        classifier=classifier,
        upsampler=upsampler,
        sample=replace(base.sample, count=200, sampler=sampler, **changes),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    steps = plan(short(tiny_guided(), guidance_scale=1.0))
    materialize([steps["train"], steps["classifier"]], store, backend=LocalBackend(), resources=Resources())
    return store


def draw(
    store: ArtifactStore, block: Block = (0, 64), *, batch: int | None = None, **changes: object
) -> tuple[np.ndarray, np.ndarray]:
    config = short(tiny_guided(), **changes)
    steps = plan(config)
    classifier = store.path(steps["classifier"]) if config.is_guided else None
    return draw_block(config.sample, store.path(steps["train"]), classifier, Resources(batch=batch), block)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
def test_an_image_is_the_same_in_batches_of_any_size_but_for_a_rounding_in_a_million_pixels(
    store: ArtifactStore, guidance_scale: float
) -> None:
    images, labels = draw(store, batch=64, guidance_scale=guidance_scale)
    for batch in (1, 7):
        others, their_labels = draw(store, batch=batch, guidance_scale=guidance_scale)
        assert np.array_equal(labels, their_labels)
        # Matrix products over other sizes end in other last bits: a pixel between two grey levels may fall either way.
        apart = np.abs(images.astype(int) - others)
        assert apart.max() <= 1
        assert apart.sum() <= 2


def test_an_image_is_the_same_whichever_block_it_is_drawn_in(store: ArtifactStore) -> None:
    images, labels = draw(store, (0, 64))
    others, their_labels = draw(store, (32, 96))
    assert np.abs(images[32:].astype(int) - others[:32]).sum() <= 1
    assert np.array_equal(labels[32:], their_labels[:32])


def die_at(marker: Path, work: partial[Drawn], block: Block) -> Drawn:
    """The second block's worker is killed the first time."""
    if block[0] and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(block)


@pytest.mark.ray
def test_two_workers_of_which_one_is_killed_draw_what_one_draws(
    store: ArtifactStore, local_ray: None, tmp_path: Path
) -> None:
    config = short(tiny_guided(), guidance_scale=1.0)
    steps = plan(config)
    blocks = [(0, 32), (32, 64), (64, 96), (96, 128)]
    work = partial(
        draw_block, config.sample, store.path(steps["train"]), store.path(steps["classifier"]), Resources(workers=2)
    )
    backend = RayBackend(str(tmp_path / "ray"))
    try:
        found = backend.map(partial(die_at, tmp_path / "killed", work), blocks, resources=Resources(workers=2))
    finally:
        backend.release()
    assert (tmp_path / "killed").exists()
    for block, (images, labels) in zip(blocks, found, strict=True):
        alone, their_labels = work(block)
        assert np.array_equal(images, alone)
        assert np.array_equal(labels, their_labels)


def test_a_classifier_steers_images_towards_their_class_the_more_the_larger_its_scale(store: ArtifactStore) -> None:
    classifier = load_classifier(store.path(plan(short(tiny_guided(), guidance_scale=1.0))["classifier"]))

    def log_p(**changes: object) -> float:
        images, labels = draw(store, (0, 128), **changes)
        x = to_unit_range(to_tensor(images))
        logits = classifier(x, torch.zeros(len(x)))
        return float(-torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))

    unguided, weakly, strongly = (log_p(guidance_scale=scale) for scale in (0.0, 1.0, 10.0))
    assert unguided < weakly < strongly


def test_another_average_draws_other_images_and_the_first_is_the_one_that_null_means(store: ArtifactStore) -> None:
    images, _ = draw(store)
    assert np.array_equal(draw(store, ema=0.98)[0], images)
    assert (draw(store, ema=0.5)[0] != images).any()
    with pytest.raises(ValueError, match=r"sample\.ema=0\.9.*0\.98, 0\.5"):
        short(tiny_guided(), ema=0.9)


def test_a_second_stage_enlarges_image_by_image_and_says_how(tmp_path: Path) -> None:
    store, steps = ArtifactStore(str(tmp_path)), plan(config := short(tiny_upsampled()))
    materialize([steps["upsample"]], store, backend=LocalBackend(), resources=Resources())
    small, large = (drawn(store.path(steps[role]), (0, 200))[0] for role in ("sample", "upsample"))
    assert small.shape == (200, 4, 4, 1)
    assert large.shape == (200, 8, 8, 1)
    assert config.upsampler is not None
    folder, upsampler = store.path(steps["sample"]), store.path(steps["upsampler"])
    again, _ = enlarge_block(config.upsampler.sample, folder, upsampler, Resources(), (0, 128))
    assert np.array_equal(again, large[:128])
    small[5] = 255 - small[5]
    (tmp_path / BLOCKS).mkdir()
    (tmp_path / BLOCKS / "000000000-000000200.parquet").write_bytes(encoded_images((small, np.full(200, UNLABELLED))))
    other, _ = enlarge_block(config.upsampler.sample, tmp_path, upsampler, Resources(), (0, 128))
    assert np.flatnonzero((other != again).any(axis=(1, 2, 3))).tolist() == [5]
    said = json.loads((store.path(steps["upsample"]) / PROTOCOL_FILE).read_text())
    assert said["sampler"] == said["upsampler sampler"] == "ancestral, respacing 10"
    assert said["seed"] != said["upsampler seed"]
    assert (store.path(steps["upsample"]) / GRID_FILE).exists()


def test_the_way_of_the_first_images_ends_in_them(store: ArtifactStore) -> None:
    steps = plan_with_trajectory(short(tiny_guided()))
    materialize([steps["trajectory"]], store, backend=LocalBackend(), resources=Resources())
    output = store.path(steps["trajectory"])
    assert (output / MOVIE_FILE).stat().st_size > 0
    strip = np.asarray(Image.open(output / STRIP_FILE))
    zoom = strip.shape[1] // (10 * 9 - 1)  # a line between images
    first_column, last_column = (
        np.stack([strip[::zoom, ::zoom][9 * row : 9 * row + 8, columns] for row in range(0, 16, 2)])
        for columns in (slice(0, 8), slice(-8, None))
    )
    images, _ = draw(store, (0, 8))
    assert np.abs(last_column.astype(int) - images[..., 0]).max() <= 1
    noise = normal(seed=0, stream=SAMPLE_INIT, step=0, index=torch.arange(8), shape=(1, 8, 8))
    assert np.array_equal(first_column, to_uint8(noise).numpy()[..., 0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier": None}, "no classifier"),
        ({"diffusion": {"schedule": "linear"}}, "classifier.diffusion.schedule='cosine'"),
        ({"model": {"num_classes": 9}}, "model.num_classes=9"),
    ],
)
def test_a_classifier_that_cannot_steer_is_refused_before_anything_runs(changes: dict, said: str) -> None:
    base = short(tiny_guided(), guidance_scale=1.0)
    changed = {
        name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=said):
        replace(base, **changed)


def test_a_second_stage_with_the_first_ones_noise_is_refused() -> None:
    base = short(tiny_upsampled())
    assert base.upsampler is not None
    same = replace(base.upsampler, sample=replace(base.upsampler.sample, seed=base.sample.seed))
    with pytest.raises(ValueError, match=r"upsampler\.sample\.seed=0"):
        replace(base, upsampler=same)
