"""A training that is cut into steps which go on from each other is the same training, and a finished one goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from diffusion.ema import EmaConfig
from orchestrator.backend import LocalBackend
from orchestrator.errors import PreflightError, StepFailed
from orchestrator.journal import read_points
from orchestrator.materialize import materialize
from orchestrator.step import JOURNAL_FILE, Resources, Step
from orchestrator.store import ArtifactStore
from pipelines.configs import RunConfig
from pipelines.plan import plan
from pipelines.presets import tiny
from pipelines.trained import MODEL_FILE

BATCH = 32


def short(*, images: int, milestones: tuple[int, ...] = ()) -> RunConfig:
    base = tiny()
    train = replace(base.train, images=images, batch_size=BATCH, ema=EmaConfig(rates=(0.9, 0.5)))
    return replace(base, train=train, model=replace(base.model, dropout=0.1), milestones=milestones)


def trained(store: ArtifactStore, config: RunConfig, *, checkpoints: str | None = None) -> Step:
    step = plan(config)["train"]
    materialize([step], store, backend=LocalBackend(), resources=Resources(checkpoints=checkpoints))
    return step


def test_weights_and_averages_are_the_same_bits_with_and_without_milestones(tmp_path: Path) -> None:
    whole, cut = ArtifactStore(str(tmp_path / "whole")), ArtifactStore(str(tmp_path / "cut"))
    images = 13 * BATCH  # milestones that end no window of the journal's means
    one = trained(whole, short(images=images))
    three = trained(cut, short(images=images, milestones=(4 * BATCH, 9 * BATCH)))
    for file in (MODEL_FILE, "ema_0.5.safetensors"):
        assert (whole.path(one) / file).read_bytes() == (cut.path(three) / file).read_bytes()
    middle = three.inputs["start"]
    seen = [
        sorted({point.step for point in read_points(cut.path(step) / JOURNAL_FILE)[0]})
        for step in (middle.inputs["start"], middle, three)
    ]
    assert [steps[-1] for steps in seen] == [4 * BATCH, 9 * BATCH, images]
    assert all(before[-1] < after[0] for before, after in pairwise(seen))


def test_a_finished_training_is_made_longer_without_being_trained_again(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    finished = trained(store, short(images=4 * BATCH))
    before = (store.path(finished) / "record.json").read_bytes()
    longer = trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)))
    assert longer.inputs["start"] == finished
    assert (store.path(finished) / "record.json").read_bytes() == before
    assert read_points(store.path(longer) / JOURNAL_FILE)[0][0].step > 4 * BATCH


def test_it_goes_on_from_wherever_the_first_one_kept_its_state(tmp_path: Path) -> None:
    store, elsewhere = ArtifactStore(str(tmp_path / "store")), str(tmp_path / "elsewhere")
    trained(store, short(images=4 * BATCH))
    trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)), checkpoints=elsewhere)
    trained(store, short(images=12 * BATCH, milestones=(4 * BATCH, 8 * BATCH)), checkpoints=elsewhere)


def test_a_part_with_states_of_its_own_needs_none_of_the_first_any_more(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    first = trained(store, short(images=4 * BATCH))
    longer = trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)))
    weights = (store.path(longer) / MODEL_FILE).read_bytes()
    shutil.rmtree(store.path(first) / "checkpoints")
    (store.path(longer) / "record.json").unlink()  # as if it had been killed before that
    trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)))
    assert (store.path(longer) / MODEL_FILE).read_bytes() == weights


def test_a_first_part_whose_last_state_is_damaged_is_told_by_place(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    finished = trained(store, short(images=4 * BATCH))
    for state in (store.path(finished) / "checkpoints").glob("step-*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(StepFailed, match=rf"train/{finished.fingerprint}/checkpoints: the last state .* is damaged"):
        trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)))


def test_a_first_part_whose_state_was_removed_is_told_by_name(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    finished = trained(store, short(images=4 * BATCH))
    shutil.rmtree(store.path(finished) / "checkpoints")
    said = rf"cannot go on from train/{finished.fingerprint}.*after {4 * BATCH} images"
    with pytest.raises(PreflightError, match=said):
        trained(store, short(images=8 * BATCH, milestones=(4 * BATCH,)))


@pytest.mark.parametrize("milestones", [(64, 32), (128,), (33,), (0,), (32, 32)])
def test_milestones_that_are_none_are_refused(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"milestones=\["):
        short(images=4 * BATCH, milestones=milestones)


def test_a_milestone_within_the_warm_up_is_refused() -> None:
    base = short(images=4 * BATCH)
    with pytest.raises(ValueError, match=r"milestones=\[32\].*train\.lr_warmup_images=64"):
        replace(base, train=replace(base.train, lr_warmup_images=64), milestones=(BATCH,))


def test_a_learning_rate_that_falls_towards_the_end_has_no_milestones() -> None:
    base = short(images=4 * BATCH)
    with pytest.raises(ValueError, match=r"train\.lr_anneal='iddpm'"):
        replace(base, train=replace(base.train, lr_anneal="iddpm"), milestones=(BATCH,))
