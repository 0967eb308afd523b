"""What the steps of a plan do, counted from their configs: every forward that they will make, and none twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from orchestrator.planner import TRAINING
from orchestrator.step import Resources, Step
from orchestrator.store import ArtifactStore
from pipelines import presets, work
from pipelines.configs import RunConfig
from pipelines.nll import AllTerms, DrawnTerms
from pipelines.plan import plan
from pipelines.timed import timed_training
from pipelines.work import Work, work_of

HELD_OUT = 358


@pytest.fixture(autouse=True)
def _held_out():
    with patch.object(work, "count_images", lambda dataset, split: HELD_OUT):
        yield


def works(config: RunConfig, folder: Path, resources: Resources | None = None) -> dict[str, Work]:
    found = {}
    for role, step in plan(config).items():
        if step.inputs:
            one = work_of(step, ArtifactStore(str(folder)), lambda step: folder, resources or Resources())
            assert one is not None
            found[role] = one
    return found


def times(one: Work) -> float:
    ((_, count),) = one.parts
    return count


def test_every_step_of_a_run_is_known(tmp_path: Path) -> None:
    found = works(presets.tiny(), tmp_path)
    assert times(found["train"]) == 28_160 / 128
    assert found["train"].kind == TRAINING
    assert times(found["sample"]) == 512 * 100
    assert times(found["nll"]) == 8 * 100 + HELD_OUT * 11 * 2  # the pilot, and L_0 with ten others, twice
    assert times(found["features"]) == 512
    assert times(found["reference"]) == HELD_OUT
    assert times(found["metrics"]) == 1
    assert all(one.bytes > 0 for one in found.values())


def test_all_terms_are_as_many_forwards_as_the_chain_has_steps(tmp_path: Path) -> None:
    base = presets.tiny()
    whole = replace(base, nll=replace(base.nll, terms=AllTerms(), images=20))
    assert times(works(whole, tmp_path)["nll"]) == 20 * 4000
    shorter = replace(whole, nll=replace(whole.nll, respacing="50"))
    assert times(works(shorter, tmp_path)["nll"]) == 20 * 50
    once = replace(base, nll=replace(base.nll, terms=DrawnTerms(draws=3, rounds=1), images=20))
    assert times(works(once, tmp_path)["nll"]) == 8 * 100 + 20 * 4


def test_a_classifier_that_steers_is_trained_and_makes_every_step_of_a_sampler_dearer(tmp_path: Path) -> None:
    base = presets.tiny_guided()
    free = works(base, tmp_path)
    steered = works(replace(base, sample=replace(base.sample, guidance_scale=2.0)), tmp_path)
    assert "classifier" not in free
    assert steered["classifier"].kind == TRAINING
    # 100 steps, and four looks at all held-out images, forwards alone.
    assert times(steered["classifier"]) == pytest.approx(100 + 4 * HELD_OUT / 3 / 128)
    assert steered["sample"].parts[0][0].flops > 1.5 * free["sample"].parts[0][0].flops


def test_a_second_stage_is_trained_and_drawn_from_too(tmp_path: Path) -> None:
    found = works(presets.tiny_upsampled(), tmp_path)
    assert times(found["upsampler"]) == 100
    assert times(found["upsample"]) == 512 * 100
    assert times(found["features"]) == 512
    assert found["upsample"].parts[0][0].flops > found["sample"].parts[0][0].flops


def test_a_milestone_splits_the_images_of_a_training(tmp_path: Path) -> None:
    config = replace(presets.tiny(), milestones=(12_800,))
    last = plan(config)["train"]
    store = ArtifactStore(str(tmp_path))
    parts = [work_of(step, store, lambda step: tmp_path, Resources()) for step in (last.inputs["start"], last)]
    assert [times(part) for part in parts if part is not None] == [100, 120]


def test_workers_share_a_batch_and_blocks_of_images(tmp_path: Path) -> None:
    alone, two = works(presets.tiny(), tmp_path), works(presets.tiny(), tmp_path, Resources(workers=2))
    assert times(two["train"]) == times(alone["train"])
    assert two["train"].parts[0][0].flops == alone["train"].parts[0][0].flops / 2
    assert times(two["sample"]) == times(alone["sample"]) / 2
    many = works(presets.tiny(), tmp_path, Resources(workers=64))
    assert many["sample"].workers == 4  # no more than there are blocks


def test_what_costs_the_same_is_tried_once() -> None:
    config = plan(presets.tiny())["train"].config
    same = replace(config, seed=7, train=replace(config.train, lr=1e-4, images=128))
    longer = replace(same, diffusion=replace(same.diffusion, num_timesteps=100))
    assert {timed_training(one, workers=1) for one in (config, same, longer)} == {timed_training(config, workers=1)}
    wider = replace(config, model=replace(config.model, model_channels=64))
    assert timed_training(wider, workers=1).flops > 3 * timed_training(config, workers=1).flops


def test_a_step_of_another_kind_is_left_out_by_name(tmp_path: Path) -> None:
    other = Step(name="other", version=1, config=presets.tiny(), inputs={}, run=lambda config, ctx: None)
    assert work_of(other, ArtifactStore(str(tmp_path)), lambda step: tmp_path, Resources()) is None
