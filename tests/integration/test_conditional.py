"""A network that is told classes is told them everywhere: in training, of what it draws, and of what it predicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.nll import nll_full
from diffusion.sampling import class_labels
from orchestrator.backend import LocalBackend
from orchestrator.materialize import materialize
from orchestrator.step import Resources
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.drawn import BLOCKS, SAMPLES_FILE
from pipelines.nll import NLL_FILE, AllTerms, NllConfig
from pipelines.plan import plan
from pipelines.presets import tiny
from pipelines.sample import draw_block
from pipelines.shards import decoded_images, read_split
from pipelines.train import to_tensor, to_unit_range
from pipelines.trained import load_trained


def short_run(**changes: object) -> RunConfig:
    base = tiny()
    return replace(
        base,
        model=replace(base.model, num_classes=10),
        train=replace(base.train, images=2560),
        diffusion=replace(base.diffusion, num_timesteps=30),
        sample=replace(base.sample, count=150, sampler=replace(base.sample.sampler, respacing="5"), **changes),
        nll=NllConfig(terms=AllTerms(), images=70),
        metrics=replace(base.metrics, kid_subset_size=40),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    steps = plan(short_run())
    materialize([steps["sample"], steps["nll"]], store, backend=LocalBackend(), resources=Resources())
    return store


def test_samples_carry_the_class_they_were_drawn_for(store: ArtifactStore) -> None:
    output = store.path(plan(short_run())["sample"])
    with np.load(output / SAMPLES_FILE, allow_pickle=False) as samples:
        images, labels = samples["arr_0"], samples["arr_1"]
    assert np.array_equal(labels, np.arange(150) % 10)
    blocks = [decoded_images(file.read_bytes()) for file in sorted((output / BLOCKS).iterdir())]
    assert np.array_equal(np.concatenate([block[0] for block in blocks]), images)
    assert np.array_equal(np.concatenate([block[1] for block in blocks]), labels)


def test_another_class_is_another_image_and_classes_hang_on_the_index_alone(store: ArtifactStore) -> None:
    steps = plan(short_run())
    train = store.path(steps["train"])
    balanced = draw_block(short_run().sample, train, None, Resources(), (0, 20))
    drawn_config = short_run(labels="drawn").sample
    drawn = draw_block(drawn_config, train, None, Resources(), (0, 20))
    same = balanced[1] == drawn[1]
    assert 0 < same.sum() < 20
    assert np.array_equal(balanced[0][same], drawn[0][same])
    assert all((one != other).any() for one, other in zip(balanced[0][~same], drawn[0][~same], strict=True))
    later = class_labels("drawn", index=torch.arange(15, 20), seed=drawn_config.seed, num_classes=10)
    assert later.tolist() == drawn[1][15:].tolist()


def test_labels_are_drawn_evenly() -> None:
    labels = class_labels("drawn", index=torch.arange(10_000), seed=3, num_classes=10)
    counts = torch.bincount(labels, minlength=10)
    assert (counts - 1000).abs().max() < 4 * 30  # binomial: standard deviation 30


def test_the_bound_of_each_image_is_that_of_its_own_class(store: ArtifactStore) -> None:
    steps = plan(short_run())
    with np.load(store.path(steps["nll"]) / NLL_FILE, allow_pickle=False) as stored:
        found = stored["nll_bpd"][0]
    held = read_split(store.path(steps["dataset"]), "test")
    model = load_trained(store.path(steps["train"]))
    x_start, y = to_unit_range(to_tensor(held.images[:70])), torch.from_numpy(held.labels[:70].copy())
    of = {"x_start": x_start, "index": torch.arange(70), "seed": 0}
    truth = nll_full(model.diffusion, model.schedule, model.network, **of, y=y).total_bpd
    other = nll_full(model.diffusion, model.schedule, model.network, **of, y=(y + 1) % 10).total_bpd
    assert found == pytest.approx(truth.numpy(), rel=1e-4)  # batches of other sizes
    assert (other - truth).abs().min() > 1e-4


def test_a_network_that_is_told_classes_must_be_told_them(store: ArtifactStore) -> None:
    model = load_trained(store.path(plan(short_run())["train"]))
    with pytest.raises(ValueError, match="y"):
        model.network(torch.zeros(1, 1, 8, 8), torch.zeros(1))
